"""A small Ray of its own, in a process of its own: runs each line that it reads as a `serve` command, until they end.

python ray_commands.py FOLDER: where Ray keeps its files; sockets have short names, so the folder must have one too.
"""

import os
import shlex
import sys

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from ray import serve
from ray.serve.scripts import cli

ray.init(
    num_cpus=2, object_store_memory=80_000_000, include_dashboard=False, _temp_dir=sys.argv[1], namespace="serve",
    log_to_driver=False,
)  # fmt: skip
try:
    for line in sys.stdin:
        cli.main(shlex.split(line), standalone_mode=False)
        sys.stdout.write("done\n")
        sys.stdout.flush()
finally:
    serve.shutdown()
    ray.shutdown()
