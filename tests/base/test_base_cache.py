"""A base from the cache is the base from the checkpoint, bit for bit, engines included."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorahub_edge.base import load_base
from lorahub_edge.base.model import head_is_tied
from lorahub_edge.cache import Cache, CacheWarning


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", min_bytes=0)


def entries(cache):
    return sorted((cache.folder / "entries").glob("base-*"))


def logits(base):
    ids = torch.arange(4, 12)[None]
    inputs = {"input_ids": ids, "decoder_input_ids": ids[:, :3]} if base.family.is_seq2seq else {"input_ids": ids}
    with torch.inference_mode():
        return base.model(**inputs).logits


@pytest.mark.parametrize("kind", ["t5", "t5-tied", "llama", "llama-tied", "gemma3"])
def test_the_second_start_gives_the_same_base_without_the_checkpoint(kind, bases, cache, monkeypatch):
    first = load_base(str(bases[kind]), device="cpu", cache=cache)
    assert len(entries(cache)) == 1
    monkeypatch.setattr("lorahub_edge.base.load.choose_engines", lambda *_: pytest.fail("chosen again"))
    monkeypatch.setattr("lorahub_edge.base.int8.ops.quantize_rows", lambda *_: pytest.fail("quantised again"))
    second = load_base(str(bases[kind]), device="cpu", cache=cache)
    assert torch.equal(logits(first), logits(second))
    assert first.layer_engines == second.layer_engines
    assert first.weight_bytes() == second.weight_bytes()
    assert head_is_tied(first.model, first.family) == head_is_tied(second.model, second.family)


def test_another_content_config_or_precision_is_another_entry(bases, tmp_path, cache):
    folder = tmp_path / "base"
    folder.mkdir()
    for path in bases["t5"].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    load_base(str(folder), device="cpu", cache=cache)
    tensors = load_file(folder / "model.safetensors")
    tensors["shared.weight"][0] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    changed = load_base(str(folder), device="cpu", cache=cache)
    assert torch.equal(logits(changed), logits(load_base(str(folder), device="cpu")))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_epsilon": 0.5}))
    load_base(str(folder), device="cpu", cache=cache)
    assert len(entries(cache)) == 3
    load_base(str(folder), precision="fp32", device="cpu", cache=cache)
    assert len(entries(cache)) == 3, "float bases are read from where they are"


def test_a_corrupt_entry_is_made_again(bases, cache):
    expected = logits(load_base(str(bases["t5"]), device="cpu", cache=cache))
    file = entries(cache)[0] / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.warns(CacheWarning, match=r"model\.safetensors is not what was written"):
        again = load_base(str(bases["t5"]), device="cpu", cache=cache)
    assert torch.equal(logits(again), expected)
    assert len(entries(cache)) == 1
