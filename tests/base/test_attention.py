"""Attention of int8 bases: what torch's computes, by our kernel where that is taken."""

import pytest
import torch
from transformers import AttentionInterface

from lorahub_edge.base import Base, attention, load_base
from lorahub_edge.kernels import ops

KINDS = ("t5", "llama", "gemma3")
FASTER = ops.has_wide_floats()


def exact_pair(folder: object) -> tuple[Base, Base]:
    """A float base with our attention, so that no rounding to int8 hides what differs, and one with torch's."""
    ours, torchs = (load_base(str(folder), precision="fp32", device="cpu") for _ in range(2))
    attention.use_own_attention(ours.model)
    return ours, torchs


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Per call of the kernel whether it was causal."""
    seen: list[bool] = []
    kernel = ops.attention

    def counted(*tensors: torch.Tensor, causal: bool, **options: object) -> torch.Tensor:
        seen.append(causal)
        return kernel(*tensors, causal=causal, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(attention.ops, "attention", counted)
    return seen


def inputs_of(base: Base, n_tokens: int = 9) -> dict[str, torch.Tensor]:
    ids = torch.arange(2 * n_tokens).view(2, n_tokens) % 20 + 4
    return {"input_ids": ids, "decoder_input_ids": ids[:, :5]} if base.family.is_seq2seq else {"input_ids": ids}


def logits_of(base: Base, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        return base.model(**inputs, use_cache=False).logits


@pytest.mark.skipif(not FASTER, reason="torch's attention is used on this instruction set")
@pytest.mark.parametrize("kind", KINDS)
def test_computes_what_torchs_computes(bases, calls, kind):
    ours, torchs = exact_pair(bases[kind])
    got = logits_of(ours, inputs_of(ours))
    # T5 has two layers of self-attention in the encoder, and two of self- and cross-attention in the decoder
    assert calls == ([False] * 2 + [True, False] * 2 if kind == "t5" else [True] * len(calls))
    n_calls = len(calls)
    assert n_calls > 0
    torch.testing.assert_close(got, logits_of(torchs, inputs_of(torchs)), rtol=1e-5, atol=1e-5)
    assert len(calls) == n_calls


@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_left_to_torch(bases, calls, kind):
    """The same answer with padding in front or behind as without; the kernel has no masks."""
    base, _ = exact_pair(bases[kind])
    whole = inputs_of(base)
    ids = whole["input_ids"]
    alone = logits_of(base, whole)
    calls.clear()
    if base.family.is_seq2seq:
        padded = {"input_ids": torch.cat([ids, torch.zeros(2, 3, dtype=ids.dtype)], 1)}
        mask = torch.cat([torch.ones_like(ids), torch.zeros(2, 3, dtype=ids.dtype)], 1)
        got = logits_of(base, {**padded, "attention_mask": mask, "decoder_input_ids": whole["decoder_input_ids"]})
    else:
        padded = {"input_ids": torch.cat([torch.zeros(2, 3, dtype=ids.dtype), ids], 1)}
        mask = torch.cat([torch.zeros(2, 3, dtype=ids.dtype), torch.ones_like(ids)], 1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        got = logits_of(base, {**padded, "attention_mask": mask, "position_ids": positions})[:, 3:]
    assert calls == ([True] * 2 if base.family.is_seq2seq and FASTER else [])  # a decoder's own tokens have none
    torch.testing.assert_close(got, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_generation_reads_its_cache(bases, kind):
    ours, torchs = exact_pair(bases[kind])
    ids = inputs_of(ours)["input_ids"]
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False}
    expected = torchs.model.generate(ids, **options)
    for use_cache in (True, False):
        assert torch.equal(ours.model.generate(ids, **options, use_cache=use_cache), expected)


def test_only_int8_bases_whose_attention_is_one_operation(bases):
    assert load_base(str(bases["t5"]), device="cpu").model.config._attn_implementation == attention.NAME
    exact = load_base(str(bases["t5"]), precision="fp32", device="cpu").model
    assert exact.config._attn_implementation == "sdpa"
    assert not any("compute_bias" in vars(module) for module in exact.modules())
    for precision in ("int8", "fp32"):  # gemma2 caps its scores, which torch's operation does not
        gemma = load_base(str(bases["gemma2"]), precision=precision, device="cpu")
        assert gemma.model.config._attn_implementation == "eager"


def test_what_neither_kernel_knows_is_refused():
    query = torch.randn(1, 2, 5, 8)
    with pytest.raises(ValueError, match="softcap"):
        attention.attention(torch.nn.Module(), query, query, query, None, scaling=1.0, softcap=50.0)


def test_more_keys_than_queries_keep_transformers_rule(calls):
    """Where there is no mask, later keys are those of a cache that is not full."""
    layer = torch.nn.Module()
    layer.is_causal = True  # type: ignore[assignment]
    query, key = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 6, 8)
    got, _ = attention.attention(layer, query, key, key, None, scaling=1.0)
    expected, _ = AttentionInterface()["sdpa"](layer, query, key, key, None, scaling=1.0)
    assert not calls
    assert torch.equal(got, expected)


def test_a_replica_has_biases_of_its_own_layers(bases):
    base = load_base(str(bases["t5"]), device="cpu")
    replica = base.replica()
    layers = [m for m in replica.model.modules() if "compute_bias" in vars(m)]
    assert len(layers) == 2
    assert all(layer.compute_bias.__self__ is layer for layer in layers)
    torch.testing.assert_close(logits_of(replica, inputs_of(base)), logits_of(base, inputs_of(base)), rtol=0, atol=0)
