"""Make the embedded data: `python -m lorahub_edge.pocket.make`.

Stages, in order: tokenizer, tasks (the held-out files), base, modules. Each reads what the earlier ones wrote, so one
can be made again with --only; a module that is there already is left alone. The defaults made the committed data.
"""

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer

from lorahub_edge import pocket
from lorahub_edge.base import load_base
from lorahub_edge.modules import LoraFactors, read_module, write_module
from lorahub_edge.outputs import whole_folder
from lorahub_edge.pocket import heldout, upstream
from lorahub_edge.pocket.base_training import BaseSettings, save_base, train_base
from lorahub_edge.pocket.tokenizer import save_tokenizer
from lorahub_edge.tasks import Example
from lorahub_edge.train import TrainSettings, train_module

log = logging.getLogger(__name__)
STAGES = ("tokenizer", "tasks", "base", "modules")
EXAMPLES_PER_TASK = 40
TEST_ROWS_PER_TASK = 100
# One seed for all modules: they start from the same A, so a sum of their factors stays near a sum of their deltas.
MODULE_SEED = 42


def make_tasks(out: Path, seed: int) -> None:
    """Write both files of each held-out task; they are drawn together, so no test row is among the examples."""
    folder = out / "heldout"
    folder.mkdir(parents=True, exist_ok=True)
    for task in heldout.HELDOUT:
        rows = heldout.heldout_rows(task, EXAMPLES_PER_TASK + TEST_ROWS_PER_TASK, seed=seed)
        write_rows(folder / f"{task.name}.examples.jsonl", rows[:EXAMPLES_PER_TASK])
        write_rows(folder / f"{task.name}.test.jsonl", rows[EXAMPLES_PER_TASK:])


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_base(out: Path, settings: BaseSettings) -> None:
    folder = out / "base"
    save_base(train_base(Tokenizer.from_file(str(folder / "tokenizer.json")), settings), folder)


def make_modules(out: Path, settings: TrainSettings, n_rows: int, seed: int) -> None:
    """Train one LoRA module per upstream task on the base as it was written."""
    base = load_base(str(out / "base"), precision="fp32", device="cpu")
    for name in upstream.TASK_NAMES:
        target = out / "modules" / name
        if target.exists():
            log.info("module %s is there already", name)
            continue
        start = time.perf_counter()
        rows = [Example(**row) for row in upstream.upstream_rows(name, n_rows, seed)]
        losses: list[float] = []
        with tempfile.TemporaryDirectory() as scratch:
            trained = Path(scratch) / name
            train_module(base, rows, trained, settings=settings, on_step=partial(note_loss, losses))
            keep_module(trained, target)
        log.info("module %s: loss %.3f to %.3f, %.0f s", name, losses[0], losses[-1], time.perf_counter() - start)


def note_loss(losses: list[float], step: int, total: int, loss: float) -> None:
    losses.append(loss)


def keep_module(trained: Path, target: Path) -> None:
    """Write a trained module in float16, without what is only true of the machine that trained it."""
    module = read_module(trained)
    half = {t: LoraFactors(f.A.to(torch.float16), f.B.to(torch.float16), f.scaling) for t, f in module.factors.items()}
    with whole_folder(target) as unfinished:
        write_module(
            replace(module, factors=half),
            unfinished,
            base_name="lorahub_edge/pocket",
            task_type="SEQ_2_SEQ_LM",
            targets=sorted({t.rpartition(".")[2] for t in half}),
        )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    defaults = BaseSettings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=pocket.DATA, help="folder to write; default: the package's data")
    parser.add_argument("--only", choices=STAGES, action="append", help="make this stage only; may be repeated")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of tasks, base and upstream rows")
    parser.add_argument("--width", type=int, default=defaults.width, help="of the base; a multiple of 32")
    parser.add_argument("--layers", type=int, nargs=2, default=(defaults.encoder_layers, defaults.decoder_layers))
    parser.add_argument("--steps", type=int, default=defaults.steps, help="of the base's training")
    parser.add_argument("--module-steps", type=int, default=150, help="of each module's training")
    parser.add_argument("--module-rows", type=int, default=4800, help="rows that each module is trained on")
    parser.add_argument("--module-learning-rate", type=float, default=3e-3)
    parser.add_argument("--module-rank", type=int, default=16, help="of each module; alpha is twice as much")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the stages that were asked for."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # sums in another order would give other bytes
    stages = options.only or STAGES
    (options.out / "base").mkdir(parents=True, exist_ok=True)
    if "tokenizer" in stages:
        save_tokenizer(options.out / "base")
    if "tasks" in stages:
        make_tasks(options.out, options.seed)
    if "base" in stages:
        encoder_layers, decoder_layers = options.layers
        settings = BaseSettings(options.width, encoder_layers, decoder_layers, options.steps, seed=options.seed)
        make_base(options.out, settings)
    if "modules" in stages:
        training = TrainSettings(
            rank=options.module_rank,
            alpha=2 * options.module_rank,
            dropout=0.0,
            epochs=options.module_steps,
            max_steps=options.module_steps,
            learning_rate=options.module_learning_rate,
            batch_size=32,
            seed=MODULE_SEED,
        )
        make_modules(options.out, training, options.module_rows, options.seed)


if __name__ == "__main__":
    main()
