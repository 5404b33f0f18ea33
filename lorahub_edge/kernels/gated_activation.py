"""gated_activation: arguments checked, then handed to the route that computes (see routes.py)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from lorahub_edge.kernels import reference
from lorahub_edge.kernels.checks import expect, expect_tensor, expect_threads
from lorahub_edge.kernels.routes import native_for

_OP = "gated_activation"
_DTYPES = (torch.float32, torch.bfloat16)

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True)
class Gate:
    """What an output is multiplied with: activation(values); see `gated_activation`.

    Attributes:
        values: of the output's shape and dtype, C-contiguous. The output takes their place.
        activation: "silu" or "gelu_tanh".
    """

    values: torch.Tensor
    activation: Activation


def gated_activation(
    gate: torch.Tensor,
    up: torch.Tensor,
    *,
    activation: Activation,
    out: torch.Tensor | None = None,
    n_threads: int | None = None,
) -> torch.Tensor:
    """activation(gate) * up, in one pass: what a gated feed-forward layer hands to its last matrix.

    Meaning, per element, in float32, then rounded once:

        out = gate / (1 + exp(-z)) * up         z = gate for "silu",
                                                z = 2 sqrt(2/pi) (gate + 0.044715 gate^3) for "gelu_tanh"

    with z taken within -87 and 87. The second is GELU's tanh form, 0.5 gate (1 + tanh(z/2)).

    Args:
        gate: float32 or bfloat16, any shape, C-contiguous.
        up: like gate.
        activation: "silu" or "gelu_tanh".
        out: where to write, like gate; may be gate or up itself. A new tensor if None.
        n_threads: CPU threads, at least 1; torch.get_num_threads() if None. The result does not depend on it.

    Returns:
        out. Not differentiable.

    Raises:
        ValueError: a shape, layout, device or activation is not as above.
        TypeError: a dtype is not as above.
        KernelUnavailable, InvalidInput: see `route` and `isa`.
    """
    _expect_activation(_OP, activation)
    expect_tensor(_OP, "gate", gate, dtypes=_DTYPES, shape=tuple(gate.shape))
    like_gate = {"dtypes": (gate.dtype,), "shape": tuple(gate.shape), "device": gate.device}
    expect_tensor(_OP, "up", up, **like_gate)  # type: ignore[arg-type]
    gate, up = gate.detach(), up.detach()
    out = torch.empty_like(gate) if out is None else out
    expect_tensor(_OP, "out", out, **like_gate)  # type: ignore[arg-type]
    expect_threads(_OP, n_threads)
    native = native_for(gate.device, n_threads) if gate.device.type == "cpu" else None
    if native is not None:
        native.module.gated_activation(gate, up, out, activation, native.where)
    elif gate.device.type == "cpu":
        values = reference.gated_activation(gate.float().numpy(), up.float().numpy(), activation=activation)
        out.copy_(torch.from_numpy(values))
    else:
        active = functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")
        torch.mul(active, up, out=out)
    return out


def expect_gate(op: str, gate: Gate, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
    """Raise unless a gate fits an output of this shape and dtype."""
    _expect_activation(op, gate.activation)
    expect_tensor(op, "gate.values", gate.values, dtypes=(dtype,), shape=shape, device=device)


def _expect_activation(op: str, activation: str) -> None:
    expect(activation in ("silu", "gelu_tanh"), op, "activation 'silu' or 'gelu_tanh'", repr(activation))
