"""The reference: what our torch model answers, kept in the folder so that it can be verified anywhere, without torch.

A case is a batch of prompts with a few tokens of their answers: what the logits must be, how far torch itself is from
them when it rounds layers' inputs as the graph does, and what the greedy answers are. Prompts are the run's examples,
alone and together, and random tokens of various lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lorahub_edge.base import Base, Int8Linear
from lorahub_edge.exporting.forms import LayerForm
from lorahub_edge.exporting.symbols import weight_path
from lorahub_edge.tasks import EncodedExample, PromptFormat
from lorahub_edge.tasks.batches import greedy_tokens, prompt_batch

# Lengths that catch bugs: 1, around a power of two, and a batch of unequal ones, which is padded.
RANDOM_LENGTHS = ((1,), (9,), (33,), (1, 8, 17))
N_PREFIX = 3
MAX_PREFIX = 15  # logits of a large vocabulary take 0.1 MB a position
MAX_GREEDY_TOKENS = 32
MAX_EXAMPLES = 8
_SEED = 0
# The engine of Int8Linear that rounds inputs as a form does.
_ENGINES = {"int8_rows": "int8", "int8_split": "int8-split"}


@torch.inference_mode()
def reference_arrays(
    base: Base,
    examples: Sequence[EncodedExample],
    prompt: PromptFormat,
    max_new_tokens: int,
    forms: Mapping[str, LayerForm],
) -> dict[str, NDArray[Any]]:
    """Every case's inputs and torch's answers.

    Args:
        base: what answers; with its composed module active, if that is not merged.
        examples: of the run; may be none.
        prompt: says where answers end.
        max_new_tokens: where greedy answers are cut, if not before.
        forms: of the exported layers, by path of the weight.

    Returns:
        For case k: "k.kind" (text), "k.prompts" int64 (b, s) padded with -1, "k.prefix" int64 (b, p), "k.logits"
        float32 (b, p + 1, vocabulary): what the stored weights mean, no input of a layer rounded; "k.noise" float64
        (b, p + 1): relative error of torch's logits with inputs rounded as in `forms`, 0 for float weights; "k.greedy"
        int64 (b, n) padded with -1: torch's answers with inputs rounded so too.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for number, (kind, prompts) in enumerate(_prompts(base, examples)):
        with as_in_graph(base, forms):
            greedy = greedy_tokens(base, prompts, prompt, min(max_new_tokens, MAX_GREEDY_TOKENS))
        if kind == "random":
            prefix = _random_ids(base, [N_PREFIX] * len(prompts), seed=_SEED + 100 + number)
        else:  # the beginnings of the answers themselves, as long as the shortest
            n = min(min(map(len, greedy)), MAX_PREFIX + 1) - 1
            prefix = [row[:n] for row in greedy]
        arrays[f"{number}.kind"] = np.array(kind)
        arrays[f"{number}.prompts"] = _padded(prompts)
        arrays[f"{number}.prefix"] = np.array(prefix, np.int64).reshape(len(prompts), -1)
        with _engines(base, lambda _: "dequantize"):
            logits = _logits(base, prompts, prefix, prompt)
        with as_in_graph(base, forms):
            noise = relative_errors(_logits(base, prompts, prefix, prompt), logits)
        arrays[f"{number}.logits"], arrays[f"{number}.noise"] = logits, noise
        arrays[f"{number}.greedy"] = _padded(greedy)
    return arrays


def relative_errors(found: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float64]:
    """norm(found - expected) / norm(expected - its mean) over the last axis; NaN counts as infinite."""
    off = np.linalg.norm((found - expected).astype(np.float64), axis=-1)
    scale = np.linalg.norm((expected - expected.mean(-1, keepdims=True)).astype(np.float64), axis=-1)
    errors: NDArray[np.float64] = np.nan_to_num(off / np.maximum(scale, 1e-30), nan=np.inf, posinf=np.inf)
    return errors


@contextmanager
def as_in_graph(base: Base, forms: Mapping[str, LayerForm]) -> Iterator[None]:
    """Let a base's int8 layers round their inputs as in an exported graph, inside a with block."""
    with _engines(base, lambda path: _ENGINES[forms[weight_path(base, path)].form]):
        yield


@contextmanager
def _engines(base: Base, engine_of: Callable[[str], str]) -> Iterator[None]:
    layers = {path: m for path, m in base.model.named_modules() if isinstance(m, Int8Linear)}
    before = {path: layer.engine for path, layer in layers.items()}
    try:
        for path, layer in layers.items():
            layer.engine = engine_of(path)
        yield
    finally:
        for path, layer in layers.items():
            layer.engine = before[path]


def write_reference(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """One .npz file."""
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def _prompts(base: Base, examples: Sequence[EncodedExample]) -> Iterable[tuple[str, list[list[int]]]]:
    rows = [list(e.input_ids) for e in examples[:MAX_EXAMPLES]]
    for row in rows:
        yield "example", [row]
    if len(rows) > 1:
        yield "examples in one batch", rows
    for number, lengths in enumerate(RANDOM_LENGTHS):
        yield "random", _random_ids(base, lengths, seed=_SEED + number)


def _random_ids(base: Base, lengths: Sequence[int], *, seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    special = set(base.tokenizer.all_special_ids)
    vocabulary = np.array(
        [i for i in range(min(len(base.tokenizer), base.model.config.vocab_size)) if i not in special]
    )
    return [rng.choice(vocabulary, n).tolist() for n in lengths]


def _logits(
    base: Base, prompts: Sequence[Sequence[int]], prefix: Sequence[Sequence[int]], prompt: PromptFormat
) -> NDArray[np.float32]:
    ids, mask = prompt_batch(prompts, prompt).values()
    answer = torch.tensor(prefix, dtype=torch.long).reshape(len(prompts), -1)
    if prompt.start_id is not None:
        start = torch.full((len(prompts), 1), prompt.start_id)
        decoder_ids = torch.cat([start, answer], 1)
        logits = base.model(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids).logits
    else:
        mask = torch.cat([mask, torch.ones_like(answer)], 1)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        whole = torch.cat([ids, answer], 1)
        logits = base.model(input_ids=whole, attention_mask=mask, position_ids=positions).logits[:, ids.shape[1] - 1 :]
    result: NDArray[np.float32] = logits.float().numpy()
    return result


def _padded(rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    result = np.full((len(rows), max(map(len, rows))), -1, np.int64)
    for number, row in enumerate(rows):
        result[number, : len(row)] = row
    return result
