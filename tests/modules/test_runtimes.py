"""What other runtimes are told about a module's rank."""

import pytest
import torch

from lorahub_edge.base import family_of
from lorahub_edge.modules import LoraFactors, LoraModule, rank_note


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ((16, 4), ""),
        ((4, 17), "the adapter has rank 17: vLLM needs --max-lora-rank 32 for it"),
        ((256,), "the adapter has rank 256: vLLM needs --max-lora-rank 256 for it"),
        ((257, 16), "the adapter has rank 257: vLLM needs --max-lora-rank 320 for it"),
        ((513,), "the adapter has rank 513, and vLLM takes at most 512; adapt with --rank 16"),
    ],
)
def test_vllm_is_told_the_next_rank_that_it_takes(ranks, expected):
    factors = {str(k): LoraFactors(torch.zeros(r, 8), torch.zeros(8, r), 1.0) for k, r in enumerate(ranks)}
    module = LoraModule("m", factors)
    assert rank_note(module, family_of("llama", where="here")) == expected
    assert rank_note(module, family_of("t5", where="here")) == ""
