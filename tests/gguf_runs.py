"""Runs on tiny GGUF bases, whose modules change every linear layer by ranks and scalings that differ."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lorahub_edge
from lorahub_edge.errors import LorahubEdgeWarning
from lorahub_edge.modules import LoraFactors, LoraModule, write_module
from tests import gguf_files
from tests.resealed import reseal

# What the files' tokenizers can say.
ROWS = [("a?a.", "a."), ("?a", "?")]


def make_run(folder: Path, kind: str, *, head: bool = False, **values: Any) -> tuple[Path, Path]:
    """A base of one of gguf_files.KINDS, and a run on it with a random module for a result; returns both places.

    Args:
        folder: a new one.
        head: whether the module changes the output layer too.
        values: of the base's config.
    """
    folder.mkdir()
    model, run = gguf_files.make_model(kind, **values), folder / "run"
    base = gguf_files.write(folder, kind, model)
    write_random_module(model, folder / "module", head=head)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LorahubEdgeWarning)  # T5's tokenizer loses "?"
        lorahub_edge.adapt(
            str(base), [str(folder / "module")], ROWS, n_examples=2, budget=1, device="cpu", null_control=False,
            precision="fp32", out=run,
        )  # fmt: skip
    write_random_module(model, run / "adapter", head=head)
    reseal(run)
    return base, run


def write_random_module(model: Any, folder: Path, *, head: bool) -> None:
    """Rank 3 and scaling 2 or rank 2 and scaling 3, by target; wide enough that answers change."""
    rng = torch.Generator().manual_seed(0)
    factors = {}
    for k, (name, layer) in enumerate(model.named_modules()):
        if isinstance(layer, nn.Linear) and (head or name != "lm_head"):
            rank = 2 + k % 2
            shapes = (rank, layer.in_features), (layer.out_features, rank)
            A, B = (torch.randn(shape, generator=rng) * 0.3 for shape in shapes)
            factors[name] = LoraFactors(A, B, 3.0 - k % 2)
    folder.mkdir(exist_ok=True)
    write_module(LoraModule(folder.name, factors), folder, base_name="", task_type="CAUSAL_LM", targets=list(factors))
