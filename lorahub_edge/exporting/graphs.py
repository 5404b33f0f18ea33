"""Graphs to trace: encoder, decoder with a cache, decoder-only model with a cache; with their names and axes.

Names and axes are those that Optimum and transformers.js read; the batch axis must be called `batch_size`.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.export import Dim
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_causal_mask

from lorahub_edge.exporting.symbols import cross_attention, later

OPSET = 21

Axes = tuple[str | int, ...]
# Name -> axes and default.
Optional = dict[str, tuple[Axes, NDArray[Any]]]


@dataclass(frozen=True)
class Traced:
    """A graph with symbols in it.

    Attributes:
        model: the ONNX model.
        inputs, outputs: name -> axes, in the graph's order; a string is a free axis.
        optional: further inputs, which a client may leave out.
    """

    model: Any
    inputs: dict[str, Axes]
    outputs: dict[str, Axes]
    optional: Optional


@dataclass(frozen=True)
class CacheShape:
    """Sizes of a model's key and value caches."""

    n_layers: int
    n_heads: int
    head_width: int


def cache_shape(config: Any) -> CacheShape:
    """The cache's sizes from a config."""
    if config.is_encoder_decoder:
        return CacheShape(config.num_decoder_layers, config.num_heads, config.d_kv)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return CacheShape(config.num_hidden_layers, config.num_key_value_heads, width)


class EncoderGraph(nn.Module):
    """input_ids, attention_mask -> last_hidden_state."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.model.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


class DecoderGraph(nn.Module):
    """One step of a seq2seq decoder: logits, and the caches that the next step takes."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        n_layers = model.config.num_decoder_layers
        self.targets = [f"decoder.block.{i}.layer.1.EncDecAttention.{kind}" for i in range(n_layers) for kind in "kv"]

    def forward(
        self,
        encoder_attention_mask: torch.Tensor,
        input_ids: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        past: list[tuple[torch.Tensor, ...]],
        use_cache_branch: torch.Tensor,
        decoder_attention_mask: torch.Tensor,
    ) -> tuple[Any, list[torch.Tensor]]:
        n_tokens = encoder_attention_mask.shape[1]
        taken = cross_attention(use_cache_branch, encoder_hidden_states, past, self.targets, n_tokens)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        for layer in range(len(past)):
            keys, values, cross_keys, cross_values = taken[4 * layer : 4 * layer + 4]
            cache.self_attention_cache.update(keys, values, layer)
            cache.cross_attention_cache.update(cross_keys, cross_values, layer)
            cache.is_updated[layer] = True
        output = self.model(
            encoder_outputs=(encoder_hidden_states,),
            attention_mask=encoder_attention_mask,
            decoder_input_ids=input_ids,
            decoder_attention_mask=self._self_mask(input_ids, decoder_attention_mask, cache.self_attention_cache),
            past_key_values=cache,
            use_cache=True,
        )
        present = []
        for layer, state in enumerate(output.past_key_values.self_attention_cache.layers):
            present += [state.keys, state.values, *taken[4 * layer + 2 : 4 * layer + 4]]
        return output.logits, present

    def _self_mask(self, input_ids: torch.Tensor, padding: torch.Tensor, past: DynamicCache) -> torch.Tensor:
        """What self-attention adds: transformers' own mask, and its value for "unseen" wherever `padding` is 0.

        transformers would look `padding` up by row and key, so that it had to have them all; here it broadcasts.
        """
        embeds = input_ids[..., None].float()  # only its shape and dtype are read
        causal: Any = create_causal_mask(self.model.decoder.config, embeds, None, past)
        return torch.where(padding[:, None, None, :] > 0, causal, torch.finfo(causal.dtype).min)


class CausalGraph(nn.Module):
    """One step of a decoder-only model: logits, and the cache that the next step takes."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[tuple[torch.Tensor, ...]],
        logits_from: torch.Tensor,
    ) -> tuple[Any, list[torch.Tensor]]:
        # without a config: every layer keeps all positions, and a sliding window is the mask's matter
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(past):
            cache.update(keys, values, layer)
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=later(torch.arange(input_ids.shape[1]), logits_from),
        )
        present = [tensor for state in output.past_key_values.layers for tensor in (state.keys, state.values)]
        return output.logits, present


def trace_encoder(model: Any) -> Traced:
    """The encoder of a skeleton."""
    axes: Axes = ("batch_size", "encoder_sequence_length")
    inputs = {"input_ids": axes, "attention_mask": axes}
    outputs = {"last_hidden_state": (*axes, model.config.d_model)}
    return _trace(EncoderGraph(model), (_ones(2, 5), _ones(2, 5)), inputs, outputs)


def trace_decoder(model: Any) -> Traced:
    """The decoder of a skeleton, with and without past in one graph."""
    shape = cache_shape(model.config)
    axes: Axes = ("batch_size", "encoder_sequence_length")
    inputs: dict[str, Axes] = {
        "encoder_attention_mask": axes,
        "input_ids": ("batch_size", "decoder_sequence_length"),
        "encoder_hidden_states": (*axes, model.config.d_model),
    }
    outputs: dict[str, Axes] = {"logits": ("batch_size", "decoder_sequence_length", model.config.vocab_size)}
    lengths = {"decoder": "past_decoder_sequence_length", "encoder": "encoder_sequence_length_out"}
    for layer in range(shape.n_layers):
        for part, length in lengths.items():
            for kind in ("key", "value"):
                name = f"{layer}.{part}.{kind}"
                inputs[f"past_key_values.{name}"] = ("batch_size", shape.n_heads, length, shape.head_width)
                new = length if part == "encoder" else "past_decoder_sequence_length + decoder_sequence_length"
                outputs[f"present.{name}"] = ("batch_size", shape.n_heads, new, shape.head_width)
    inputs["use_cache_branch"] = (1,)
    optional: Optional = {"decoder_attention_mask": (("mask_batch", "mask_length"), np.ones((1, 1), np.int64))}
    past = [_empty(shape, (3, 3, 7, 7)) for _ in range(shape.n_layers)]
    hidden = torch.zeros(2, 5, model.config.d_model)
    arguments = (_ones(2, 5), _ones(2, 4), hidden, past, torch.tensor([True]), _ones(2, 7))
    return _trace(DecoderGraph(model), arguments, inputs, outputs, optional)


def trace_causal(model: Any) -> Traced:
    """A decoder-only skeleton."""
    shape = cache_shape(model.config)
    new: Axes = ("batch_size", "sequence_length")
    total = "past_sequence_length + sequence_length"
    inputs: dict[str, Axes] = {"input_ids": new, "attention_mask": ("batch_size", total), "position_ids": new}
    outputs: dict[str, Axes] = {"logits": (*new, model.config.vocab_size)}
    for layer in range(shape.n_layers):
        for kind in ("key", "value"):
            head = ("batch_size", shape.n_heads)
            inputs[f"past_key_values.{layer}.{kind}"] = (*head, "past_sequence_length", shape.head_width)
            outputs[f"present.{layer}.{kind}"] = (*head, total, shape.head_width)
    past = [_empty(shape, (3, 3)) for _ in range(shape.n_layers)]
    # some clients read axes by name, so the logits' is not renamed for those that ask for fewer
    optional: Optional = {"logits_from": ((1,), np.zeros(1, np.int64))}
    arguments = (_ones(2, 4), _ones(2, 7), torch.arange(3, 7).expand(2, -1).contiguous(), past, _ones(1))
    return _trace(CausalGraph(model), arguments, inputs, outputs, optional)


def _ones(*shape: int) -> torch.Tensor:
    """Token ids or a mask; every argument must be a tensor of its own, or the tracer takes two for one input."""
    return torch.ones(shape, dtype=torch.long)


def _empty(shape: CacheShape, lengths: Sequence[int]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.zeros(2, shape.n_heads, n, shape.head_width) for n in lengths)


def _trace(
    graph: nn.Module,
    arguments: tuple[Any, ...],
    inputs: dict[str, Axes],
    outputs: dict[str, Axes],
    optional: Optional | None = None,
) -> Traced:
    optional = optional or {}
    axes_of = inputs | {name: axes for name, (axes, _) in optional.items()}

    def free(value: Any, names: Iterator[str]) -> Any:
        if isinstance(value, torch.Tensor):
            axes = axes_of[next(names)]
            return {k: Dim.DYNAMIC for k, axis in enumerate(axes) if isinstance(axis, str)}
        return type(value)(free(v, names) for v in value)

    with torch.no_grad(), _quiet_exporter():
        program = torch.onnx.export(
            graph.eval(),
            arguments,
            dynamo=True,
            input_names=list(axes_of),
            output_names=list(outputs),
            dynamic_shapes=free(arguments, iter(axes_of)),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    return Traced(program.model_proto, inputs, outputs, optional)


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter's remarks are about its own insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
