"""gated_activation: the kernel against float64 and its NumPy twin."""

import numpy as np
import pytest
import torch

from lorahub_edge import _native
from lorahub_edge.kernels import ops, reference
from tests import tolerances
from tests.kernels.helpers import SIZES, assert_same_bytes, assert_within, run_with_isa

ACTIVATIONS = ("silu", "gelu_tanh")
DTYPES = (torch.float32, torch.bfloat16)


def pair_of(n: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Gates of all sizes and both signs, far into where exp under- and overflows, and zero; factors like them."""
    rng = np.random.default_rng(0)
    gate = rng.standard_normal(n) * 10.0 ** rng.uniform(-6, 3, n)
    gate[::7] = 0
    up = rng.standard_normal(n) * 10.0 ** rng.uniform(-3, 3, n)
    return torch.from_numpy(gate).to(dtype), torch.from_numpy(up).to(dtype)


def z_of(gate: torch.Tensor, activation: str) -> np.ndarray:
    x = gate.double().numpy()
    return x if activation == "silu" else 2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)


def exact_of(gate: torch.Tensor, up: torch.Tensor, activation: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        return gate.double().numpy() / (1 + np.exp(-z_of(gate, activation))) * up.double().numpy()


def bound_of(gate: torch.Tensor, up: torch.Tensor, activation: str) -> np.ndarray:
    exact, z = exact_of(gate, up, activation), z_of(gate, activation)
    return tolerances.gated_activation_error(gate.double().numpy(), up.double().numpy(), exact, z=z)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("n", [*SIZES, 4096])
def test_is_the_exact_value_to_within_rounding(n, activation):
    gate, up = pair_of(n)
    bound = bound_of(gate, up, activation)
    assert_within(ops.gated_activation(gate, up, activation=activation).numpy(), exact_of(gate, up, activation), bound)
    twin = reference.gated_activation(gate.numpy(), up.numpy(), activation=activation)
    assert_within(twin, exact_of(gate, up, activation), bound)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_has_no_steps_where_the_series_are_joined(activation):
    """Every 2^n of exp: a hundred thousand points, closer together than the reductions of the argument are."""
    gate = torch.linspace(-90, 90, 100_003)
    up = torch.ones_like(gate)
    got = ops.gated_activation(gate, up, activation=activation).numpy()
    assert_within(got, exact_of(gate, up, activation), bound_of(gate, up, activation))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_is_torchs_own_activation(activation):
    """The formula itself, from elsewhere; torch's tanh form cancels, so absolutely and for moderate gates."""
    gate, up = torch.linspace(-12, 12, 4001), torch.ones(4001)
    act = (
        torch.nn.functional.silu if activation == "silu" else lambda x: torch.nn.functional.gelu(x, approximate="tanh")
    )
    torch.testing.assert_close(ops.gated_activation(gate, up, activation=activation), act(gate), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bfloat16_is_rounded_once(activation):
    gate, up = pair_of(257, torch.bfloat16)
    in_float32 = ops.gated_activation(gate.float(), up.float(), activation=activation)
    assert_same_bytes(ops.gated_activation(gate, up, activation=activation), in_float32.bfloat16())


@pytest.mark.parametrize("isa", _native.runnable_isas())
def test_every_instruction_set(isa):
    run_with_isa(
        isa,
        "from tests.kernels import test_gated_activation as t\n"
        "for activation in t.ACTIVATIONS:\n"
        "    for n in t.SIZES:\n"
        "        t.test_is_the_exact_value_to_within_rounding(n, activation)\n"
        "    t.test_has_no_steps_where_the_series_are_joined(activation)\n"
        "    t.test_bfloat16_is_rounded_once(activation)\n"
        "    for dtype in t.DTYPES:\n"
        "        t.test_not_finite_shows(activation, dtype)\n",
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_not_finite_shows(activation, dtype):
    gate = torch.tensor([torch.nan, torch.inf, 1.0, 1.0], dtype=dtype)
    up = torch.tensor([1.0, 1.0, torch.nan, torch.inf], dtype=dtype)
    assert not ops.gated_activation(gate, up, activation=activation).isfinite().any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_writes_where_it_is_told(dtype):
    gate, up = pair_of(257, dtype)
    expected = ops.gated_activation(gate, up, activation="silu")
    other = torch.empty_like(gate)
    assert ops.gated_activation(gate, up, activation="silu", out=other) is other
    assert_same_bytes(other, expected)
    assert_same_bytes(ops.gated_activation(gate, up.clone(), activation="silu", out=gate), expected)


def test_threads_do_not_change_the_result():
    gate, up = pair_of(1 << 18)
    alone = ops.gated_activation(gate, up, activation="gelu_tanh", n_threads=1)
    assert_same_bytes(ops.gated_activation(gate, up, activation="gelu_tanh", n_threads=3), alone)


def test_reference_route(monkeypatch):
    gate, up = pair_of(33, torch.bfloat16)
    native = ops.gated_activation(gate, up, activation="silu")
    monkeypatch.setenv("LORAHUB_EDGE_KERNELS", "reference")
    twin = ops.gated_activation(gate, up, activation="silu")
    torch.testing.assert_close(twin, native, rtol=2 * tolerances.ROUNDOFF_BFLOAT16, atol=1e-30)


def test_refuses_what_does_not_fit():
    gate, up = pair_of(12)
    with pytest.raises(ValueError, match="activation 'silu' or 'gelu_tanh', received 'relu'"):
        ops.gated_activation(gate, up, activation="relu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"up of shape \(12\), received \(11,\)"):
        ops.gated_activation(gate, up[:11], activation="silu")
    with pytest.raises(TypeError, match="up of dtype float32, received bfloat16"):
        ops.gated_activation(gate, up.bfloat16(), activation="silu")
    with pytest.raises(TypeError, match="gate of dtype float32 or bfloat16, received float16"):
        ops.gated_activation(gate.half(), up.half(), activation="silu")
    with pytest.raises(ValueError, match="C-contiguous gate"):
        ops.gated_activation(gate.view(3, 4).t(), up.view(4, 3), activation="silu")
    with pytest.raises(ValueError, match=r"out of shape \(12\), received \(13,\)"):
        ops.gated_activation(gate, up, activation="silu", out=torch.empty(13))
    with pytest.raises(ValueError, match="n_threads of at least 1"):
        ops.gated_activation(gate, up, activation="silu", n_threads=0)
