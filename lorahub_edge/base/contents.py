"""What a checkpoint must hold for a model, and what else it may: everything beyond that would change the answers."""

from __future__ import annotations

import re
from collections.abc import Iterator

from transformers import PreTrainedModel

from lorahub_edge.base.checkpoint import FLOATS, Checkpoint
from lorahub_edge.base.families import Family
from lorahub_edge.errors import UnsupportedFormat

# Positions that every version since 2023 makes anew from the config, and a trainer's value head, which answers nothing.
_NEVER_NEEDED = (r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$", r"(^|\.)position_ids$", r"^v_head\.")


def match_tensors(
    model: PreTrainedModel, family: Family, checkpoint: Checkpoint, *, head_is_tied: bool | None = None
) -> dict[str, str]:
    """Where each parameter of the model is in the checkpoint.

    Args:
        model: with empty parameters.
        family, checkpoint: its own.
        head_is_tied: whether the output layer needs no tensor; None: what the config says.

    Returns:
        Parameter's name -> tensor's name. int8 matrices have two more tensors beside them, X.SCB and X.weight_format.
        The head is not in it if the checkpoint has none and needs none.

    Raises:
        UnsupportedFormat: a tensor is missing, has another shape, is packed in some other way, or is not the model's.
    """
    where = f"base checkpoint in {checkpoint.files[0].parent}"
    names = checkpoint.names()
    copies = tuple(f"{copy}.weight" for copy in family.embedding_copies)
    head = f"{family.head}.weight"
    if head_is_tied is None:  # T5's config in memory always says tied, so only its tensors can tell
        head_is_tied = family.is_seq2seq or model.config.tie_word_embeddings
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters(remove_duplicate=False) if n not in copies}
    found = {n: s for n in shapes if (s := next((s for s in _spellings(n, family) if s in names), None)) is not None}
    used = {*found.values(), *copies}
    for name, stored in found.items():
        used |= _check(name, stored, shapes[name], checkpoint, where)
    ignored = re.compile("|".join((*_NEVER_NEEDED, *(model._keys_to_ignore_on_load_unexpected or ()))))
    left_over = sorted(n for n in names - used if not ignored.search(n))
    layers = {name.rpartition(".")[0] for name in (*shapes, *found.values())}
    for name in left_over:
        if any(name.startswith(f"{layer}.") for layer in layers):
            raise UnsupportedFormat(
                f"{where} holds {name}, which {type(model).__name__} has not: its weights are quantised or changed in "
                "a way that is not read; give the float base it was made from"
            )
    for name in shapes:
        if name not in found and not (name == head and head_is_tied):
            raise UnsupportedFormat(f"{where} lacks tensor {name}; it is for another model, or incomplete")
    if left_over:
        raise UnsupportedFormat(
            f"{where} holds {left_over[0]}, which {type(model).__name__} has not; it is for another model"
        )
    return found


def _spellings(name: str, family: Family) -> Iterator[str]:
    yield name
    if name == f"{family.embedding}.weight":  # some checkpoints keep only a copy
        yield from (f"{copy}.weight" for copy in family.embedding_copies)
    yield name.removeprefix("model.")  # saved from the body without its head


def _check(name: str, stored: str, shape: tuple[int, ...], checkpoint: Checkpoint, where: str) -> set[str]:
    """Refuse a tensor that is not what the model wants; returns the names beside it that belong to it."""
    found, dtype = checkpoint.describe(stored)
    stem = stored.removesuffix("weight")
    scale, layout = f"{stem}SCB", f"{stem}weight_format"
    beside = {scale, layout} & checkpoint.names()
    is_int8 = dtype == "I8" and len(shape) == 2 and scale in beside
    if not is_int8 and (dtype not in FLOATS or beside):
        raise UnsupportedFormat(
            f"{where}, tensor {stored}: stored as {dtype}{' without ' + scale if dtype == 'I8' else ''}; read are "
            "floats of 16 to 64 bits and bitsandbytes' int8 rows; give the float base it was made from"
        )
    if found != shape:
        raise UnsupportedFormat(f"{where}, tensor {name}: expected shape {shape} from config.json, received {found}")
    if is_int8 and checkpoint.describe(scale) not in [(shape[:1], float_type) for float_type in FLOATS]:
        raise UnsupportedFormat(
            f"{where}, tensor {scale}: expected {shape[0]} floats, received {checkpoint.describe(scale)}"
        )
    if layout in beside and bool(checkpoint.read(layout).any()):
        raise UnsupportedFormat(
            f"{where}, tensor {layout}: expected 0, plain rows; load and save it with a newer bitsandbytes"
        )
    return beside
