"""Tokenizers of the two kinds in use, and tiny bases that have them."""

import dataclasses
import functools

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lorahub_edge.base import open_base
from tests import tiny

TURNS = (
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>",
    "<end_of_turn>", "<|User|>", "<|Assistant|>",
)  # fmt: skip
SPECIAL = ["<pad>", "<s>", "</s>", *TURNS]


@functools.cache
def _trained(kind: str) -> str:
    spiece = kind == "spiece"
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>" if spiece else None))
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="always")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([metaspace, digits]) if spiece else bytes_
    tokenizer.decoder = decoders.Metaspace() if spiece else decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL + ["<unk>"] * spiece,
        initial_alphabet=[] if spiece else pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"{i} {t}" for i, t in tiny.ROWS] + ["0123456789 abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    tokenizer.train_from_iterator([*texts, "[INST] [/INST] {}/<>|_.,!?\n\t&\"'\\%éβ"], trainer)
    return tokenizer.to_str()


def make_tokenizer(kind="bytes", *, chat=None, marks="<s> $A"):
    """A "bytes" (GPT-2, Llama 3, Qwen) or "spiece" (Llama 2, single digits) tokenizer that puts marks around a text."""
    tokenizer = Tokenizer.from_str(_trained(kind))
    tokenizer.post_processor = processors.TemplateProcessing(single=marks, special_tokens=[("<s>", 1), ("</s>", 2)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>" if kind == "spiece" else None, additional_special_tokens=list(TURNS),
    )  # fmt: skip
    made.chat_template = chat
    return made


@pytest.fixture
def base_with(bases):
    """Makes a base, its weights unread, with a tokenizer of `make_tokenizer`."""

    def make(kind="bytes", *, base="llama", **options):
        opened = open_base(str(bases[base]), precision="fp32", device="cpu")
        opened.model.config.vocab_size = 512
        return dataclasses.replace(opened, tokenizer=make_tokenizer(kind, **options))

    return make
