"""The package lorahub's own adapt with 40 evaluations, start to exit; prints its memory as JSON.

python adapt_lorahub.py BASE MODULES TASK
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from adapt_worker import _memory
from lorahub.algorithm import lorahub_learning


def main() -> None:
    """Run it as its README does."""
    base, modules, task = sys.argv[1:]
    rows = [json.loads(line) for line in Path(task).read_text().splitlines()]
    lorahub_learning(
        lora_module_list=sorted(str(path) for path in Path(modules).iterdir()),
        example_inputs=[row["input"] for row in rows],
        example_outputs=[row["target"] for row in rows],
        max_inference_step=40,
        batch_size=5,
        model_name_or_path=base,
    )
    sys.stdout.write("\n" + json.dumps(_memory()) + "\n")


if __name__ == "__main__":
    main()
