"""T5's position bias by distance: the values that transformers computes for every pair."""

import pytest
import torch
from transformers import T5Config, UMT5Config
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.models.umt5.modeling_umt5 import UMT5Attention

from lorahub_edge.base.relative_bias import every_pair, give_biases_by_distance

SIZES = {"d_model": 16, "d_kv": 4, "num_heads": 4}


@pytest.mark.parametrize(("n_queries", "n_keys", "n_before"), [(5, 300, 0), (7, 7, 0), (1, 9, 8), (4, 12, 8)])
@pytest.mark.parametrize(("kind", "config"), [(T5Attention, T5Config), (UMT5Attention, UMT5Config)])
@pytest.mark.parametrize("is_decoder", [False, True])
def test_is_what_transformers_computes(kind, config, is_decoder, n_queries, n_keys, n_before):
    attention = kind(config(**SIZES, is_decoder=is_decoder), has_relative_attention_bias=True, layer_idx=0)
    attention.requires_grad_(False)
    attention.relative_attention_bias.weight.normal_()
    expected = attention.compute_bias(n_queries, n_keys, past_seen_tokens=n_before)
    give_biases_by_distance(attention)
    got = attention.compute_bias(n_queries, n_keys, past_seen_tokens=n_before)
    assert got.shape == (1, 4, 1, n_queries + n_keys - 1)
    assert got.is_contiguous()
    assert torch.equal(every_pair(got, n_queries, n_keys), expected)
    assert every_pair(expected, n_queries, n_keys) is expected


def test_layers_without_a_table_stay():
    attention = T5Attention(T5Config(**SIZES), layer_idx=1)
    give_biases_by_distance(attention)
    assert "compute_bias" not in vars(attention)
