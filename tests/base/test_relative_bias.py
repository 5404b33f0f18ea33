"""T5's position bias: the values that transformers computes, in the order that attention reads."""

import pytest
import torch
from transformers import T5Config, UMT5Config
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.models.umt5.modeling_umt5 import UMT5Attention

from lorahub_edge.base import load_base
from lorahub_edge.base.relative_bias import HeadMajorEmbedding, lay_out_relative_biases

SIZES = {"d_model": 16, "d_kv": 4, "num_heads": 4}


@pytest.mark.parametrize(("kind", "config"), [(T5Attention, T5Config), (UMT5Attention, UMT5Config)])
@pytest.mark.parametrize("is_decoder", [False, True])
def test_the_bias_is_the_same_and_contiguous(kind, config, is_decoder):
    attention = kind(config(**SIZES, is_decoder=is_decoder), has_relative_attention_bias=True, layer_idx=0)
    attention.requires_grad_(False)
    attention.relative_attention_bias.weight.normal_()
    expected = attention.compute_bias(5, 300)
    assert not expected.is_contiguous()
    lay_out_relative_biases(attention)
    got = attention.compute_bias(5, 300)
    assert got.is_contiguous()
    assert torch.equal(got, expected)


def test_tables_of_an_int8_base_keep_their_names_and_those_of_a_float_one_their_class(bases):
    int8, exact = (load_base(str(bases["t5"]), precision=p, device="cpu").model for p in ("int8", "fp32"))
    names = [path for path, _ in exact.named_modules() if path.endswith("relative_attention_bias")]
    assert len(names) == 2  # of the encoder's and the decoder's first layer
    assert all(type(int8.get_submodule(path)) is HeadMajorEmbedding for path in names)
    assert not any(isinstance(module, HeadMajorEmbedding) for module in exact.modules())
    for path in names:
        assert torch.equal(int8.get_submodule(path).weight, exact.get_submodule(path).weight)
