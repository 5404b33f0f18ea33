"""A base without instruction tuning: pocket's twin that was only ever asked to fill gaps, and a pool trained on it.

    python -m bench.plain_base WORK        # base and 27 modules, half an hour on a quiet core; then the points

LoRAHub says that composition also works on T5 as it was pretrained. This asks the same of pocket: a base of the same
shape sees the same texts without any instruction and learns to fill gaps in them, as T5 did. Then the same recipe makes
one module per upstream task, and the same methods are measured on the same held-out tasks. WORK keeps base and modules
between runs.

Source: Raffel et al., arXiv:1910.10683, section 3.1.4 (span corruption); LoRAHub, arXiv:2307.13269.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer

from bench.records import RESULTS, say
from lorahub_edge.base import load_base
from lorahub_edge.benchmark.methods import methods_by_name
from lorahub_edge.benchmark.quality import Results, measure
from lorahub_edge.benchmark.trial import Pool, Protocol, find_tasks
from lorahub_edge.modules import find_modules
from lorahub_edge.outputs import whole_folder
from lorahub_edge.pocket import DATA, make
from lorahub_edge.pocket.base_training import BaseSettings, save_base, train_base
from lorahub_edge.pocket.skills import pick
from lorahub_edge.pocket.upstream import PAIRS, Row

BENCH = "plain-base"
METHODS = ["zero-shot", "constant-oracle", "best-single", "uniform", "random-null", "lorahub-code", "edge"]

# T5's own share is 0.15 with spans of three, for texts of 512 tokens; these have about ten words.
CORRUPTED_SHARE, MEAN_SPAN = 0.3, 2
N_SENTINELS = 16
SPAN_START = CORRUPTED_SHARE / MEAN_SPAN / (1 - CORRUPTED_SHARE)  # chance that a span begins behind a kept word


def main() -> None:
    """Parse; train what is missing; measure."""
    options = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    settings = BaseSettings(steps=options.steps)
    if not (options.work / "base").exists():
        make_plain_base(options.work / "base", settings)
    make.main(["--only", "modules", "--out", str(options.work)])
    pool = Pool(load_base(str(options.work / "base"), device="cpu"), find_modules(str(options.work / "modules")))
    seeds = range(1, options.seeds + 1)
    methods = methods_by_name(METHODS)
    measure(Protocol(BENCH), pool, find_tasks(["pocket"]), methods, seeds=seeds, results=Results(options.out), say=say)


def make_plain_base(folder: Path, settings: BaseSettings) -> None:
    """Train the twin and write it with its tokenizer: pocket's words and T5's marks for what was taken out."""
    tokenizer = Tokenizer.from_file(str(DATA / "base" / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(sentinel(k), normalized=False) for k in range(N_SENTINELS)])
    model = train_base(tokenizer, settings, corrupted_rows(settings.seed))
    with whole_folder(folder) as unfinished:
        save_base(model, unfinished)
        tokenizer.save(str(unfinished / "tokenizer.json"))
        shutil.copyfile(DATA / "base" / "tokenizer_config.json", unfinished / "tokenizer_config.json")


def sentinel(k: int) -> str:
    """The mark that stands for the k-th span taken out of a text."""
    return f"<extra_id_{k}>"


def corrupted_rows(seed: int) -> Iterator[Row]:
    """Endless texts with spans taken out, and what was in them: the input and target of T5's pretraining."""
    rng = np.random.default_rng(seed)
    while True:
        row = corrupted(_text(rng), rng)
        if row["target"]:
            yield row


def _text(rng: np.random.Generator) -> str:
    """A problem and its answer in some form, with no word of what is asked; never a pair that is kept back."""
    skill, form = pick(rng, PAIRS)
    problem = skill.make(rng)
    return f"{problem.content} {form.apply(problem.answer)}"


def corrupted(text: str, rng: np.random.Generator) -> Row:
    """One text with its spans replaced by sentinels, the target being each sentinel with the words it stands for."""
    kept: list[str] = []
    taken: list[str] = []
    left = n_spans = 0
    for word in text.split():
        may_begin = left == 0 and n_spans < N_SENTINELS and kept[-1:] != [sentinel(n_spans - 1)]
        if may_begin and rng.random() < SPAN_START:
            left = int(rng.integers(1, 2 * MEAN_SPAN))
            kept.append(sentinel(n_spans))
            taken.append(sentinel(n_spans))
            n_spans += 1
        (taken if left else kept).append(word)
        left = max(0, left - 1)
    return {"input": " ".join(kept), "target": " ".join(taken)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.plain_base", description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path, help="where the trained base and pool are kept")
    parser.add_argument("--steps", type=int, default=BaseSettings().steps, help="of the base's training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / f"{BENCH}.jsonl")
    return parser


if __name__ == "__main__":
    main()
