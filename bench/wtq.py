"""WikiTableQuestions on a real base, with and without a table-question module among the others.

    python -m bench.wtq ROWS.jsonl WORK --base BASE.gguf --modules FOLDER

ROWS has {"split", "inputs", "targets"}; an input is a table and a question about it. The table-question module is
trained in WORK by the recipe of the other modules, but half their batch (tables are long: memory), on training rows
whose tables no tested row has.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import torch

from bench.records import RESULTS, say
from lorahub_edge.base import load_base
from lorahub_edge.benchmark.methods import methods_by_name
from lorahub_edge.benchmark.quality import Results, measure
from lorahub_edge.benchmark.trial import Pool, Protocol, TaskRows
from lorahub_edge.cache import default_cache
from lorahub_edge.modules import find_modules
from lorahub_edge.train import TrainSettings, train_module

BENCH = "wtq"
TASK = "wikitablequestions"
MODULE = "table_questions"
MAX_CHARACTERS = 700  # of an input, for training and test; the other modules' rows are as short
MAX_NEW_TOKENS = 24
METHODS = ("zero-shot", "best-single", "uniform", "lorahub-code", "edge")
PROMPT = "<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n"
RECIPE = TrainSettings(rank=16, alpha=32, max_steps=60, learning_rate=1e-3, batch_size=4)

Row: TypeAlias = "dict[str, str]"


def main() -> None:
    """Parse; train the module where it is not there yet; measure each pool."""
    options = _parser().parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in options.rows.read_text(encoding="utf-8").splitlines()]
    training, tested = split_rows(rows)
    task = _write(options.work / f"{TASK}.jsonl", tested)
    trained = _trained(options.work, training, options.base)
    base = load_base(options.base, device="cpu", cache=default_cache())
    seeds, results = range(1, options.seeds + 1), Results(options.out)
    protocol = Protocol(BENCH, prompt=PROMPT, max_new_tokens=MAX_NEW_TOKENS, batch_size=options.batch_size)
    tasks = [TaskRows(TASK, str(task), str(task))]
    for specs, names in pools_of(options.modules, trained, options.methods):
        pool = Pool(base, find_modules(specs))
        measure(protocol, pool, tasks, methods_by_name(list(names)), seeds=seeds, results=results, say=say)


def pools_of(modules: str, trained: Path, methods: Sequence[str]) -> list[tuple[list[str | Path], Sequence[str]]]:
    """What each pool is made of and which methods it is for: without the module, with it, and it alone.

    Alone it is its pool's best single module, which is what the training by itself reaches.
    """
    return [([modules], methods), ([modules, trained], methods), ([trained], ["best-single"])]


def split_rows(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Rows to train the module on, and rows for examples and test.

    Both are short. The second are those of split "test"; the first are those of split "train" about tables that none
    of the second is about: the data set asks several questions about one table, in both splits.
    """
    short = [row for row in rows if len(row["inputs"]) < MAX_CHARACTERS]
    tested = [row for row in short if row["split"] == "test"]
    tables = {table_of(row) for row in tested}
    training = [row for row in short if row["split"] == "train" and table_of(row) not in tables]
    return training, tested


def table_of(row: Row) -> str:
    """The input up to its question."""
    return row["inputs"].rpartition("\nQuestion:")[0]


def _write(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _trained(work: Path, rows: Sequence[Row], base: str) -> Path:
    out = work / MODULE
    if not out.exists():
        file = _write(work / f"{MODULE}.jsonl", rows)
        train_module(base, file, out, settings=RECIPE, prompt=PROMPT, device="cpu", on_step=_say_loss)
    return out


def _say_loss(step: int, total: int, loss: float) -> None:
    if step % 10 == 0:
        say(f"{MODULE}: step {step} of {total}, loss {loss:.3f}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.wtq", description=__doc__.partition("\n")[0])
    parser.add_argument("rows", type=Path, help="the data set as JSONL")
    parser.add_argument("work", type=Path, help="where the task file and the trained module are kept")
    parser.add_argument("--base", required=True, help="as lorahub-edge takes it")
    parser.add_argument("--modules", required=True, help="a folder of modules; the table-question module joins them")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=27)
    parser.add_argument("--out", type=Path, default=RESULTS / f"{BENCH}.jsonl")
    return parser


if __name__ == "__main__":
    main()
