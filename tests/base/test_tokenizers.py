"""Tokenizers as they come: a sentencepiece model alone, or no file at all."""

import io
import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer, ByT5Tokenizer

import lorahub_edge
from lorahub_edge.base import open_base
from lorahub_edge.errors import UnsupportedFormat
from tests import tiny

TEXTS = ["is red a dog ?", "Grüße  {a<b}", "one\ntwo", "  three four ", "<extra_id_0> not </s> yes"]


def without_tokenizer(source: Path, folder: Path) -> Path:
    ignored = shutil.ignore_patterns("tokenizer*", "special_tokens_map.json")
    return Path(shutil.copytree(source, folder, ignore=ignored))


def test_a_sentencepiece_model_alone_is_a_tokenizer(bases, tmp_path):
    """As in google/mt5-*: its ids are those of sentencepiece itself, and T5's end."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(row) for row in tiny.ROWS] * 20), model_writer=model, vocab_size=60,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    folder = without_tokenizer(bases["t5"], tmp_path / "base")
    (folder / "spiece.model").write_bytes(model.getvalue())
    tokenizer = open_base(str(folder), precision="int8", device="cpu").tokenizer
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    for text, target in tiny.ROWS:
        assert tokenizer(text).input_ids == [*processor.encode(text), 1]
        assert tokenizer.decode(tokenizer(target).input_ids, skip_special_tokens=True) == target


def test_flan_t5s_sentencepiece_model_gives_the_ids_of_its_tokenizer_json(shared_data, bases, tmp_path):
    source = shared_data / "tokenizers" / "flan-t5-small"
    folder = without_tokenizer(bases["t5"], tmp_path / "base")
    shutil.copyfile(source / "spiece.model", folder / "spiece.model")
    ours = open_base(str(folder), precision="int8", device="cpu").tokenizer
    whole = AutoTokenizer.from_pretrained(source)
    for text in TEXTS:
        assert ours(text).input_ids == whole(text).input_ids


def test_byt5_needs_no_file_and_is_not_exported(bases, tmp_path):
    model = tiny.make_model("t5")
    model.resize_token_embeddings(384, mean_resizing=False)
    folder = without_tokenizer(tiny.save_model(model, tmp_path / "source", "t5"), tmp_path / "base")
    ByT5Tokenizer().save_pretrained(folder)
    assert not (folder / "tokenizer.json").exists()
    tokenizer = open_base(str(folder), precision="int8", device="cpu").tokenizer
    assert tokenizer("é").input_ids == [0xC3 + 3, 0xA9 + 3, 1]
    with pytest.raises(UnsupportedFormat, match=r"tokenizer\.json cannot hold a ByT5Tokenizer"):
        lorahub_edge.export(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_code_that_comes_with_a_tokenizer_is_not_run(bases, tmp_path):
    folder = Path(shutil.copytree(bases["t5"], tmp_path / "base"))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')\nclass T: pass\n")
    for name, key in (("config.json", "AutoConfig"), ("tokenizer_config.json", "AutoTokenizer")):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, "tokenizer_class": "T", "auto_map": {key: "evil.T"}}))
    assert open_base(str(folder), precision="int8", device="cpu").tokenizer("is red").input_ids
    assert not (tmp_path / "was-run").exists()
