"""A command's seconds and peak memory, from start to exit; after what it printed comes one line of JSON.

Imports next to nothing: the peak that the system reports of a process is at least its parent's size when it started.

python -S peak.py COMMAND...
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time


def main() -> None:
    """Run it and say what it took."""
    started = time.perf_counter()
    code = subprocess.call(sys.argv[1:])
    seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)  # peak: of the largest process among the children
    report = {"seconds": [seconds], "cpu_s": used.ru_utime + used.ru_stime, "peak_bytes": used.ru_maxrss * 1024}
    sys.stdout.write(json.dumps(report) + "\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
