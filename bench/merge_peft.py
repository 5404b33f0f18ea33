"""PEFT's way from modules and coefficients to a merged folder, in a process of its own; prints its stages' seconds.

python merge_peft.py BASE MODULES COEFFICIENTS OUT
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM


def main() -> None:
    """Load, add up, merge, write."""
    base, modules, coefficients, out = sys.argv[1:]
    found: dict[str, float] = json.loads(Path(coefficients).read_text())
    marks = [time.perf_counter()]
    model = AutoModelForSeq2SeqLM.from_pretrained(base)
    first, *others = found
    adapted = PeftModel.from_pretrained(model, f"{modules}/{first}", adapter_name=first)
    for name in others:
        adapted.load_adapter(f"{modules}/{name}", adapter_name=name)
    marks.append(time.perf_counter())
    # "linear" gives A and B the root of a weight each, so the square of a coefficient makes LoRAHub's module
    adapted.add_weighted_adapter(list(found), [c * c for c in found.values()], "composed", combination_type="linear")
    adapted.set_adapter("composed")
    marks.append(time.perf_counter())
    merged = adapted.merge_and_unload()
    marks.append(time.perf_counter())
    merged.save_pretrained(out)
    marks.append(time.perf_counter())
    stages = ("load_s", "compose_s", "merge_s", "save_s")
    seconds = {stage: marks[i + 1] - marks[i] for i, stage in enumerate(stages)}
    sys.stdout.write("\n" + json.dumps(seconds) + "\n")


if __name__ == "__main__":
    main()
