"""Which engine each int8 layer computes with, chosen when a base is loaded by the error that it makes.

One int8 scale per row of inputs is fine until a few channels are far above the rest, as before T5's `wo` and in most
decoder-only models: the rest is then rounded to nothing. Scales per block of features confine that to the blocks where
it happens, at an eighth to a fifth more time. Two parts, the rows and what rounding left of them, keep 15 bits at twice
the cost. A float product keeps everything, at four to five times the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from lorahub_edge.base.families import Family
from lorahub_edge.base.int8 import BLOCK_FEATURES, ONE_PART_ENGINES, Int8Linear, QuantizedInputs, int8_matmul_available

# Largest relative error of a row of outputs that int8 inputs of one part may make. Inputs without outliers, normal
# numbers, give 0.01.
MOST_ONE_PART_ERROR = 0.02

_PROBE_TOKENS = 64
_PROBE_TARGET_TOKENS = 8


def choose_engines(model: nn.Module, family: Family, device: torch.device) -> dict[str, str]:
    """The engine of every Int8Linear of a model, by name.

    The model reads a fixed sequence of tokens from all over its vocabulary with float products; each layer gets the
    cheapest engine, "int8" or "int8-blocks" (on a CPU), whose output is within MOST_ONE_PART_ERROR of the float one in
    every row, others get "int8-split". Where int8 products are slow all get "dequantize".

    Raises:
        Exception: whatever a model raises that cannot compute, also one without such layers.

    Cost: one forward of 64 tokens with every weight expanded, tile by tile.
    """
    layers = _int8_linears(model)
    set_engines(model, dict.fromkeys(layers, "dequantize"))
    if not layers or not int8_matmul_available(device):
        _read_probe(model, family, device)
        return layer_engines(model)
    errors = one_part_errors(layers, lambda: _read_probe(model, family, device))
    return {name: cheapest_engine(errors.get(name, {})) for name in layers}


def set_engines(model: nn.Module, engines: Mapping[str, str]) -> None:
    """Give every Int8Linear its engine, and let them share their quantised inputs."""
    inputs = QuantizedInputs()
    for name, layer in _int8_linears(model).items():
        layer.inputs = inputs
        layer.engine = engines[name]


def layer_engines(model: nn.Module) -> dict[str, str]:
    """The engine that each Int8Linear has, by name."""
    return {name: layer.engine for name, layer in _int8_linears(model).items()}


def _int8_linears(model: nn.Module) -> dict[str, Int8Linear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, Int8Linear)}


def cheapest_engine(errors: Mapping[str, float]) -> str:
    """The first engine whose error is within MOST_ONE_PART_ERROR, or "int8-split"; see `one_part_errors`."""
    within = (engine for engine in ONE_PART_ENGINES if errors.get(engine, torch.inf) <= MOST_ONE_PART_ERROR)
    return next(within, "int8-split")


def one_part_errors(layers: dict[str, Int8Linear], run: Callable[[], object]) -> dict[str, dict[str, float]]:
    """The largest relative error of a row of outputs by each engine of one part, for each layer that `run` reaches.

    Args:
        layers: name -> layer, all with engine "dequantize".
        run: a forward through them.

    Returns:
        name -> engine -> max over rows of norm(engine's - float) / norm(float); rows of zeros do not count. Engines
        that a layer cannot have are missing.
    """
    errors: dict[str, dict[str, float]] = {}
    with _hooks(layers, errors), torch.inference_mode():
        run()
    return errors


def _one_part_engines(layer: Int8Linear) -> tuple[str, ...]:
    has_blocks = layer.codes.device.type == "cpu" and layer.in_features % BLOCK_FEATURES == 0
    return ONE_PART_ENGINES if has_blocks else ONE_PART_ENGINES[:1]


@contextmanager
def _hooks(layers: dict[str, Int8Linear], errors: dict[str, dict[str, float]]) -> Iterator[None]:
    def hook_for(name: str) -> Callable[[Int8Linear, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def hook(layer: Int8Linear, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            exact = output.reshape(-1, layer.out_features).float()
            norm = exact.norm(dim=1)
            most = errors.setdefault(name, {})
            for engine in _one_part_engines(layer):
                error = (layer.int8_product(inputs[0], engine).float() - exact).norm(dim=1)
                relative = torch.where(norm == 0, 0.0, error / norm)
                most[engine] = max(most.get(engine, 0.0), float(relative.max()))

        return hook

    handles = [layer.register_forward_hook(hook_for(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers.values():
            layer.inputs.forget()


@torch.inference_mode()
def _read_probe(model: nn.Module, family: Family, device: torch.device) -> None:
    embedding = model.get_submodule(family.embedding)
    n_words: int = embedding.num_embeddings  # type: ignore[assignment]
    # a large prime step visits the whole vocabulary, whatever its size, without a random generator
    tokens = (torch.arange(_PROBE_TOKENS, device=device) * 7919 + 11) % n_words
    if family.is_seq2seq:
        model(input_ids=tokens[None], decoder_input_ids=tokens[None, :_PROBE_TARGET_TOKENS], use_cache=False)
    else:
        model(input_ids=tokens[None], use_cache=False)
