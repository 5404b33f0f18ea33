"""Int8 rows in the bitsandbytes layout, and the two layers that compute with them.

A weight (out_features, in_features) is stored as int8 codes and one float32 scale per row:
value = code * row_scale, row_scale = absmax / 127. bitsandbytes stores the absmax itself (its `SCB`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lorahub_edge.base.side import Side
from lorahub_edge.kernels import ops

# Features that share a scale in engine "int8-blocks".
BLOCK_FEATURES = 64

# Engines whose inputs are one int8 matrix, so that one kernel makes their outputs; cheapest first.
ONE_PART_ENGINES = ("int8", "int8-blocks")

# Rows of a weight that are expanded to float at a time: bounds the temporary to a few MB.
_TILE_ROWS = 2048


@dataclass(frozen=True)
class Int8Weight:
    """A quantised matrix.

    Attributes:
        codes: int8 (out_features, in_features).
        row_scale: float32 (out_features,); multiply a code by it to get the value.
    """

    codes: torch.Tensor
    row_scale: torch.Tensor

    @classmethod
    def from_float(cls, weight: torch.Tensor) -> Int8Weight:
        """Quantise a float matrix row by row; see `kernels.ops.quantize_rows`."""
        return cls(*ops.quantize_rows(weight))

    @classmethod
    def from_absmax(cls, codes: torch.Tensor, absmax: torch.Tensor) -> Int8Weight:
        """Take over a bitsandbytes tensor pair: codes and the absmax of each row. A row of zeros gets scale 1."""
        row_scale = absmax.to(torch.float32) / 127.0
        return cls(codes.contiguous(), torch.where(row_scale == 0, torch.ones_like(row_scale), row_scale))

    def absmax(self) -> torch.Tensor:
        """float32 (out_features,): the bitsandbytes scale; `from_absmax` gives this row_scale back exactly."""
        return self.row_scale * 127.0

    def to_float(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The values as a float matrix (out_features, in_features)."""
        return ops.dequantize_rows(self.codes, self.row_scale, dtype=dtype)

    def to(self, device: torch.device) -> Int8Weight:
        """The same weight on another device."""
        return Int8Weight(self.codes.to(device), self.row_scale.to(device))

    def __repr__(self) -> str:
        return f"Int8Weight({self.codes.shape[0]} x {self.codes.shape[1]})"


def int8_matmul_available(device: torch.device) -> bool:
    """Whether int8 products are faster than float ones here: always on CUDA, on a CPU see `ops.has_fast_int8`."""
    return device.type == "cuda" or ops.has_fast_int8()


class Int8Layer(nn.Module):
    """A layer that holds one int8 matrix: what the linear layer and the embedding have in common."""

    codes: torch.Tensor
    row_scale: torch.Tensor

    def __init__(self, weight: Int8Weight) -> None:
        super().__init__()
        self.register_buffer("codes", weight.codes)
        self.register_buffer("row_scale", weight.row_scale)

    @property
    def weight(self) -> torch.Tensor:
        """The int8 codes, under the name that transformers asks for dtype and device."""
        return self.codes

    @property
    def int8_weight(self) -> Int8Weight:
        """Codes and scales as one value."""
        return Int8Weight(self.codes, self.row_scale)


class QuantizedInputs:
    """The int8 parts of the layer inputs seen last, so that layers which read one tensor quantise it once.

    One is shared by all layers of a base: q, k and v read the same tensor, as do the two halves of a gated layer and
    the cross-attention keys and values of all decoder blocks. A tensor is known by identity, and kept alive here, so
    nothing else can take its place. Under inference_mode tensors do not count their changes: a model that changes one
    in place between two of its layers would break this; those of our families do not.
    """

    _N_KEPT = 2  # a decoder block reads its own state and the encoder's in turns

    def __init__(self) -> None:
        self._seen: list[_SeenInput] = []

    def parts(self, x: torch.Tensor, n_parts: int, n_blocks: int = 1) -> list[Int8Rows]:
        """x (..., in_features) as a sum of n_parts int8 matrices: each quantises what those before left over.

        Args:
            x: float.
            n_parts: at least 1.
            n_blocks: of features that have a scale of their own; divides in_features.

        Returns:
            Per part: codes int8 (rows, in_features) and scales float32 (rows, n_blocks).
        """
        version = 0 if x.is_inference() else x._version
        seen = next((s for s in self._seen if s.x is x and (s.version, s.n_blocks) == (version, n_blocks)), None)
        if seen is None:
            seen = _SeenInput(x, version, n_blocks, [])
            self._seen = [seen, *self._seen[: self._N_KEPT - 1]]
        while len(seen.parts) < n_parts:
            seen.parts.append(_quantize(_rest(x, seen.parts), n_blocks))
        return seen.parts[:n_parts]

    def forget(self) -> None:
        """Give the memory back."""
        self._seen = []


Int8Rows = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class _SeenInput:
    x: torch.Tensor
    version: int
    n_blocks: int
    parts: list[Int8Rows]


def _rest(x: torch.Tensor, parts: list[Int8Rows]) -> torch.Tensor:
    """What the parts, of one block each, leave of x, as rows."""
    rest = x.reshape(-1, x.shape[-1])
    for codes, x_scale in parts:
        rest = torch.addcmul(rest.float(), codes.float(), x_scale, value=-1)
    return rest


def _quantize(rows: torch.Tensor, n_blocks: int) -> Int8Rows:
    codes, x_scale = ops.quantize_activations(rows.reshape(len(rows) * n_blocks, rows.shape[1] // n_blocks))
    return codes.view(rows.shape), x_scale.view(len(rows), n_blocks)


class Int8Linear(Int8Layer):
    """y = x @ (codes * row_scale).T + bias, without ever holding the float weight.

    While `side` is set, each candidate's low-rank path is added: y += side.inner(x) @ B.T.

    Engines (attribute `engine`, recorded in the manifest; chosen in engines.py):
        "int8": x is quantised row by row too, the product is int8 x int8 -> int32. Every row of x is treated
            alone, so a result does not depend on what else is in the batch.
        "int8-blocks": the same with a scale for every BLOCK_FEATURES features of a row, for inputs whose largest values
            are far above the rest but not in all blocks.
        "int8-split": int8 for x and for what rounding left of it: 15 bits of x, for inputs with outliers, at twice the
            cost.
        "dequantize": the weight is expanded tile by tile and multiplied in the input's dtype; for CPUs without a fast
            int8 product.
    """

    bias: torch.Tensor | None

    def __init__(self, weight: Int8Weight, bias: torch.Tensor | None = None, *, engine: str = "int8") -> None:
        super().__init__(weight)
        self.register_buffer("bias", bias)
        self.engine = engine
        self.out_features, self.in_features = weight.codes.shape
        self.inputs = QuantizedInputs()
        self.side: Side | None = None

    def set_side(self, side: Side | None) -> None:
        """Add this low-rank path from now on, or none."""
        self.side = side
        self.inputs.forget()

    def forward(self, x: torch.Tensor, gate: ops.Gate | None = None) -> torch.Tensor:
        """The output (..., out_features); with a gate of that shape activation(gate) * output, in the gate's place.

        Gates are for ONE_PART_ENGINES.
        """
        if gate is not None:
            gate = ops.Gate(gate.values.view(-1, self.out_features), gate.activation)
        y = self._dequantize(x) if self.engine == "dequantize" else self.int8_product(x, self.engine, gate)
        return y.view(*x.shape[:-1], self.out_features)

    def int8_product(self, x: torch.Tensor, engine: str, gate: ops.Gate | None = None) -> torch.Tensor:
        """The layer's output (rows, out_features) by one of the engines with int8 inputs."""
        n_blocks = self.in_features // BLOCK_FEATURES if engine == "int8-blocks" else 1
        first, *others = self.inputs.parts(x, 2 if engine == "int8-split" else 1, n_blocks)
        side = None
        if self.side is not None:
            side = ops.SidePath(self.side.inner(x).float().flatten(0, 1), self.side.B)
        bias = None if self.bias is None else self.bias.float()
        dtype = x.dtype if not others else torch.float32
        y = ops.int8_linear(*first, self.codes, self.row_scale, bias=bias, side=side, gate=gate, dtype=dtype)
        for part in others:
            y += ops.int8_linear(*part, self.codes, self.row_scale)
        return y.to(x.dtype)

    def _dequantize(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        y = self.float_product(rows)
        if self.bias is not None:
            y += self.bias
        if self.side is not None:
            by_candidate = y.view(len(self.side.B), -1, self.out_features)
            by_candidate.baddbmm_(self.side.inner(x), self.side.B.mT.to(y.dtype))
        return y

    def float_product(self, rows: torch.Tensor) -> torch.Tensor:
        """rows (n, in_features) times the weight in the rows' dtype, without bias and side path: (n, out_features)."""
        y = rows.new_empty(rows.shape[0], self.out_features)
        for start in range(0, self.out_features, _TILE_ROWS):
            tile = slice(start, start + _TILE_ROWS)
            # scaling the product costs one multiplication per output instead of one per weight
            product = rows @ self.codes[tile].to(rows.dtype).t()
            y[:, tile] = product.mul_(self.row_scale[tile].to(rows.dtype))
        return y

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, engine={self.engine}"


class Int8Embedding(Int8Layer):
    """One int8 row per token; the same tensors can serve as a tied output layer.

    Args:
        embed_scale: factor on every embedding (Gemma multiplies by sqrt(hidden_size)), or None.
        dtype: of the result.
    """

    embed_scale: torch.Tensor | None

    def __init__(self, weight: Int8Weight, *, embed_scale: torch.Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(weight)
        self.register_buffer("embed_scale", embed_scale)
        self.dtype = dtype
        self.num_embeddings, self.embedding_dim = weight.codes.shape

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        row_scale = self.row_scale[token_ids].unsqueeze(-1)
        values = (self.codes[token_ids].to(torch.float32) * row_scale).to(self.dtype)
        return values if self.embed_scale is None else values * self.embed_scale.to(self.dtype)
