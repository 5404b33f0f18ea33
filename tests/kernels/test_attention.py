"""attention: the kernel against float64, its NumPy twin and torch's own."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lorahub_edge import _native
from lorahub_edge.kernels import ops, reference
from tests import tolerances
from tests.kernels.helpers import assert_same_bytes, assert_within, run_with_isa

BIASES = ("none", "by pair", "by distance")

# batch, n_queries, n_keys, n_heads, n_key_heads, head_features: around the rows, vectors and panels of the kernel
SHAPES = (
    (1, 1, 1, 1, 1, 1),
    (2, 6, 64, 2, 2, 64),
    (1, 7, 65, 4, 2, 63),
    (3, 13, 5, 2, 1, 80),
    (2, 5, 81, 3, 1, 16),
    (1, 70, 130, 2, 2, 130),
    (1, 20, 20, 6, 3, 33),
)


@dataclass(frozen=True)
class Case:
    """Arguments of one call."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    options: dict[str, Any]

    def run(self, **more: Any) -> torch.Tensor:
        return ops.attention(self.query, self.key, self.value, **self.options, **more)

    def twin(self) -> NDArray[np.float32]:
        bias = self.options["bias"]
        options = {**self.options, "bias": None if bias is None else bias.numpy()}
        return reference.attention(self.query.numpy(), self.key.numpy(), self.value.numpy(), **options)

    def seen(self) -> NDArray[np.bool_]:
        """(n_queries, n_keys)."""
        n_queries, n_keys = self.query.shape[1], self.key.shape[1]
        every = np.ones((n_queries, n_keys), bool)
        return np.tril(every, n_keys - n_queries) if self.options["causal"] else every

    def every_bias(self) -> NDArray[np.float64]:
        """(n_heads, n_queries, n_keys)."""
        n_queries, n_keys, n_heads = self.query.shape[1], self.key.shape[1], self.query.shape[2]
        bias = self.options["bias"]
        if bias is None:
            return np.zeros((n_heads, n_queries, n_keys))
        if bias.dim() == 3:
            return bias.double().numpy()
        rows = [bias[:, n_queries - 1 - i : n_queries - 1 - i + n_keys] for i in range(n_queries)]
        return torch.stack(rows, 1).double().numpy()

    def exact_and_bound(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        n_each = self.query.shape[2] // self.key.shape[2]
        q = self.query.double().transpose(1, 2).numpy()
        k, v = (t.double().repeat_interleave(n_each, 2).transpose(1, 2).numpy() for t in (self.key, self.value))
        scaling = float(np.float32(self.options["scaling"]))
        seen, bias = self.seen(), self.every_bias()
        scores = np.where(seen, scaling * (q @ k.swapaxes(2, 3)) + bias, -np.inf)
        weights = np.where(seen, np.exp(np.maximum(scores - scores.max(3, keepdims=True), -87)), 0)
        weights /= weights.sum(3, keepdims=True)
        magnitude = abs(scaling) * (np.abs(q) @ np.abs(k).swapaxes(2, 3)) + np.abs(bias)
        off = np.where(seen, tolerances.dot_error(magnitude, q.shape[3] + 2), 0).max(3, keepdims=True)
        bound = tolerances.attention_error(off, weights @ np.abs(v), k.shape[2])
        return (weights @ v).swapaxes(1, 2), bound.swapaxes(1, 2)


def case_of(shape: tuple[int, ...], *, bias: str = "none", causal: bool = False, seed: int = 0) -> Case:
    """Queries over three orders of magnitude, so that some see all keys alike and some a single one; hard values."""
    rng = np.random.default_rng(seed)
    batch, n_queries, n_keys, n_heads, n_key_heads, n_features = shape

    def numbers(*sizes: int, exponents: tuple[float, float], per: tuple[int, ...]) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(sizes) * 10.0 ** rng.uniform(*exponents, per)).float()

    query = numbers(batch, n_queries, n_heads, n_features, exponents=(-2, 1), per=(batch, n_queries, n_heads, 1))
    key = numbers(batch, n_keys, n_key_heads, n_features, exponents=(-1, 0.5), per=(batch, n_keys, n_key_heads, 1))
    value = numbers(batch, n_keys, n_key_heads, n_features, exponents=(-3, 3), per=(batch, n_keys, n_key_heads, 1))
    sizes = {"by pair": (n_queries, n_keys), "by distance": (n_queries + n_keys - 1,)}
    table = None if bias == "none" else torch.from_numpy(3 * rng.standard_normal((n_heads, *sizes[bias]))).float()
    return Case(query, key, value, {"scaling": 0.37, "bias": table, "causal": causal})


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_is_the_exact_value_to_within_rounding(shape, bias, causal):
    if causal and shape[1] > shape[2]:
        pytest.skip("every query needs a key")
    case = case_of(shape, bias=bias, causal=causal)
    exact, bound = case.exact_and_bound()
    assert_within(case.run().numpy(), exact, bound)
    assert_within(case.twin(), exact, bound)


def test_weights_stop_falling_at_exp_of_minus_87():
    """A query that meets one key far better than the others, whose values are large enough to show."""
    query, key = torch.tensor([1.0]).view(1, 1, 1, 1), torch.tensor([0.0, -86.0, -500.0]).view(1, 3, 1, 1)
    value = torch.tensor([0.0, 0.0, 1e38]).view(1, 3, 1, 1)
    got = ops.attention(query, key, value, scaling=1.0).item()
    assert got == pytest.approx(1e38 * np.exp(-87.0), rel=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_is_torchs_own_attention(causal):
    """The formula itself, from elsewhere; within what float32 leaves of scores that reach 10."""
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 33, 6, 32), torch.randn(2, 33, 3, 32), torch.randn(2, 33, 3, 32)
    got = ops.attention(query, key, value, scaling=0.4, causal=causal)
    turned = [t.transpose(1, 2) for t in (query, key, value)]
    options = {"scale": 0.4, "is_causal": causal, "enable_gqa": True}
    expected = torch.nn.functional.scaled_dot_product_attention(*turned, **options).transpose(1, 2)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("isa", _native.runnable_isas())
def test_every_instruction_set(isa):
    run_with_isa(
        isa,
        "from tests.kernels import test_attention as t\n"
        "for shape in t.SHAPES:\n"
        "    for bias in t.BIASES:\n"
        "        t.test_is_the_exact_value_to_within_rounding(shape, bias, False)\n"
        "        if shape[1] <= shape[2]:\n"
        "            t.test_is_the_exact_value_to_within_rounding(shape, bias, True)\n"
        "t.test_weights_stop_falling_at_exp_of_minus_87()\n"
        "t.test_a_query_depends_on_no_other()\n"
        "t.test_later_keys_are_not_seen()\n"
        "for argument in ('query', 'key', 'value'):\n"
        "    t.test_not_finite_shows(argument)\n",
    )


def test_a_query_depends_on_no_other():
    """Whichever queries and examples are beside it: the same bits."""
    case = case_of((3, 20, 41, 4, 2, 48))
    together = case.run()
    for first, last in ((0, 1), (3, 10), (13, 20)):
        some = ops.attention(case.query[1:2, first:last].contiguous(), case.key[1:2], case.value[1:2], scaling=0.37)
        assert_same_bytes(some, together[1:2, first:last])


def test_later_keys_are_not_seen():
    case = case_of((1, 20, 41, 2, 1, 24), bias="by distance", causal=True)
    expected = case.run()
    case.key[:, 30:] = 1e6
    case.value[:, 30:] = 1e30
    got, n_before = case.run(), 30 - (41 - 20)
    assert_same_bytes(got[:, :n_before], expected[:, :n_before])
    assert (got[:, n_before:] != expected[:, n_before:]).all()


@pytest.mark.parametrize("argument", ["query", "key", "value"])
def test_not_finite_shows(argument):
    """A NaN among the features of one query spoils that query; of one key or value, all that see it."""
    case = case_of((1, 9, 19, 1, 1, 20))
    getattr(case, argument)[0, 4, 0, 3] = torch.nan
    is_nan = case.run()[0, :, 0].isnan()
    if argument == "query":
        assert is_nan[4].all()
        assert not is_nan[torch.arange(9) != 4].any()
    elif argument == "key":
        assert is_nan.all()
    else:
        assert is_nan[:, 3].all()
        assert not is_nan[:, torch.arange(20) != 3].any()


def test_threads_do_not_change_the_result():
    case = case_of((3, 64, 64, 8, 4, 64), bias="by pair", causal=True)
    assert_same_bytes(case.run(n_threads=3), case.run(n_threads=1))


@pytest.mark.parametrize("shape", [(0, 3, 4, 2, 1, 8), (2, 0, 4, 2, 1, 8)])
def test_nothing_to_do(shape):
    case = case_of(shape, bias="by distance")
    assert case.run().shape == case.query.shape


def test_reference_route(monkeypatch):
    case = case_of((2, 5, 7, 4, 2, 8), bias="by distance", causal=True)
    exact, bound = case.exact_and_bound()
    monkeypatch.setenv("LORAHUB_EDGE_KERNELS", "reference")
    assert_within(case.run().numpy(), exact, bound)
    np.testing.assert_array_equal(case.run().numpy(), case.twin())


def test_refuses_what_does_not_fit():
    query, key = torch.zeros(2, 3, 4, 8), torch.zeros(2, 5, 2, 8)
    with pytest.raises(TypeError, match="query of dtype float32, received bfloat16"):
        ops.attention(query.bfloat16(), key, key, scaling=1.0)
    with pytest.raises(ValueError, match="C-contiguous query"):
        ops.attention(query.transpose(1, 2), key, key, scaling=1.0)
    with pytest.raises(ValueError, match=r"key of shape \(2, n_keys, n_key_heads, 8\), received \(1, 5, 2, 8\)"):
        ops.attention(query, key[:1], key[:1], scaling=1.0)
    with pytest.raises(ValueError, match=r"value of shape \(2, 5, 2, 8\), received \(2, 4, 2, 8\)"):
        ops.attention(query, key, key[:, :4].contiguous(), scaling=1.0)
    three = torch.zeros(2, 5, 3, 8)
    with pytest.raises(ValueError, match="a number of key heads that divides 4, received 3"):
        ops.attention(query, three, three, scaling=1.0)
    with pytest.raises(ValueError, match="at least 3 keys, received 2"):
        ops.attention(query, key[:, :2].contiguous(), key[:, :2].contiguous(), scaling=1.0, causal=True)
    with pytest.raises(ValueError, match="at least 1 keys, received 0"):
        ops.attention(query, key[:, :0], key[:, :0], scaling=1.0)
    with pytest.raises(ValueError, match=r"bias of shape \(4, 7\), received \(4, 8\)"):
        ops.attention(query, key, key, scaling=1.0, bias=torch.zeros(4, 8))
    with pytest.raises(ValueError, match=r"bias of shape \(4, 3, 5\), received \(2, 3, 5\)"):
        ops.attention(query, key, key, scaling=1.0, bias=torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match="n_threads of at least 1"):
        ops.attention(query, key, key, scaling=1.0, n_threads=0)
