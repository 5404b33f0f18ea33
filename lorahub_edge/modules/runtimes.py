"""What other runtimes ask for before they take a module in PEFT's layout."""

from __future__ import annotations

from lorahub_edge.base import Family
from lorahub_edge.modules.files import LoraModule

# vLLM's --max-lora-rank takes no other number; the first is its default.
_VLLM_RANKS = (16, 32, 64, 128, 256, 320, 512)


def rank_note(module: LoraModule, family: Family) -> str:
    """One line for whoever serves a module with vLLM, which is told the largest rank; empty where its default will do.

    Args:
        module: as `write_module` writes it.
        family: of its base; vLLM has no encoder-decoder models among ours.
    """
    rank = module.rank
    if family.is_seq2seq or rank <= _VLLM_RANKS[0]:
        return ""
    if rank > _VLLM_RANKS[-1]:
        return f"the adapter has rank {rank}, and vLLM takes at most {_VLLM_RANKS[-1]}; adapt with --rank 16"
    needed = next(limit for limit in _VLLM_RANKS if limit >= rank)
    return f"the adapter has rank {rank}: vLLM needs --max-lora-rank {needed} for it"
