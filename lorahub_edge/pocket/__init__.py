"""The embedded default: a small T5, its tokenizer, modules and tasks, made by `python -m lorahub_edge.pocket.make`.

This file only says where the data lie; it needs neither torch nor the generators. How they were made: data/README.md.
"""

from pathlib import Path

DATA = Path(__file__).parent / "data"
PARTS = ("examples", "test")

# The task of a run without arguments: the one whose exact match after adapting lies nearest the mean of all eight, on
# rows drawn with another seed than the test rows.
DEFAULT_TASK = "sound_in_braces"


def base_folder() -> Path:
    """The base, as transformers reads it."""
    return DATA / "base"


def modules_folder() -> Path:
    """One PEFT folder per upstream task."""
    return DATA / "modules"


def module_names() -> list[str]:
    """All embedded LoRA modules, in name order."""
    return sorted(path.parent.name for path in modules_folder().glob("*/adapter_config.json"))


def heldout_names() -> list[str]:
    """All held-out tasks, in name order."""
    return sorted(path.name.removesuffix(".test.jsonl") for path in (DATA / "heldout").glob("*.test.jsonl"))


def task_file(name: str, part: str) -> Path:
    """The JSONL file of a held-out task: its pool of "examples" to draw from, or its "test" rows.

    Raises:
        ValueError: no such task or part; the message lists those there are.
    """
    if part not in PARTS:
        raise ValueError(f"task_file: part is '{part}', expected one of {', '.join(PARTS)}")
    if name not in heldout_names():
        raise ValueError(f"task_file: no held-out task '{name}'; there are {', '.join(heldout_names())}")
    return DATA / "heldout" / f"{name}.{part}.jsonl"
