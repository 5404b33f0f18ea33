"""export --gguf-adapter: what llama.cpp adds to each tensor of the base is what the run adds to its layer."""

import json
import shutil

import gguf
import numpy as np
import pytest
import torch

import lorahub_edge
from lorahub_edge.adaptation import SidePath, open_run
from lorahub_edge.errors import InvalidInput, OutputExists, UnsupportedFormat
from lorahub_edge.modules import ModuleStack
from tests import gguf_files
from tests.gguf_runs import make_run

IDS = torch.tensor([[6, 11, 4, 9, 13, 5]])
KINDS = ("llama", "gemma2", "t5-first")


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Kind -> base and run, made when asked for."""
    root, made = tmp_path_factory.mktemp("gguf-runs"), {}
    return lambda kind: made.get(kind) or made.setdefault(kind, make_run(root / kind, kind))


def contents(path):
    """Metadata and tensors of a file, in the shapes of numpy."""
    reader = gguf.GGUFReader(path)
    said = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return said, {t.name: np.array(t.data) for t in reader.tensors}


def logits(base, module=None):
    given = {"input_ids": IDS, **({"decoder_input_ids": IDS} if base.family.is_seq2seq else {})}
    if module is None:
        return base.model(**given).logits
    path = SidePath(base, ModuleStack.build([module], base))
    with path.active(path.prepare(torch.ones(1, 1))):
        return base.model(**given).logits


@pytest.mark.parametrize("kind", KINDS)
def test_the_products_are_what_the_run_adds_to_the_base(runs, kind, tmp_path):
    """llama.cpp computes (W + B A) x with its own names and order of rows, so such a W is read as the adapted model."""
    path, run = runs(kind)
    exported = lorahub_edge.export_gguf_adapter(run, tmp_path / "a.gguf")
    said, pairs = contents(exported.path)
    assert said == {
        "general.architecture": gguf_files.KINDS[kind][0], "general.type": "adapter", "adapter.type": "lora",
        "adapter.lora.alpha": 0.0, "adapter.lora.task_name": "run",
    }  # fmt: skip
    _, stored = contents(path)
    targets = {name.rpartition(".")[0] for name in pairs}
    module = open_run(run).module
    assert len(targets) == exported.n_targets == len(module.factors)
    assert len(pairs) == 2 * len(targets)
    assert len({pairs[f"{t}.lora_a"].shape[0] for t in targets}) == 2, "ranks may differ by target"
    summed = {t: stored[t] + pairs[f"{t}.lora_b"] @ pairs[f"{t}.lora_a"] for t in targets}
    folder = tmp_path / "summed"
    folder.mkdir()
    gguf_files.write(folder, kind, tensors=summed)
    base, both = (lorahub_edge.load_base(str(f), precision="fp32", device="cpu") for f in (path, folder))
    with torch.inference_mode():
        torch.testing.assert_close(logits(both), logits(base, module), rtol=1e-3, atol=1e-3)
        assert not torch.allclose(logits(base, module), logits(base), atol=0.1)


def test_a_run_on_a_transformers_folder_gives_the_same_file(runs, tmp_path):
    """The base need not be a GGUF file to have its names."""
    path, run = runs("llama")
    folder = tmp_path / "base"
    lorahub_edge.save_base(lorahub_edge.load_base(str(path), precision="fp32", device="cpu"), folder)
    other = tmp_path / "run"
    shutil.copytree(run, other)
    manifest = json.loads((other / "manifest.json").read_text())
    base = lorahub_edge.load_base(str(folder), precision="fp32", device="cpu")
    manifest["base"] |= {"spec": str(folder), "files": open_files(base)}
    (other / "manifest.json").write_text(json.dumps(manifest))
    found = [lorahub_edge.export_gguf_adapter(r, tmp_path / f"{k}.gguf") for k, r in enumerate((run, other))]
    assert found[0].path.read_bytes() == found[1].path.read_bytes()
    assert [f.base for f in found] == [path, None]


def open_files(base):
    from lorahub_edge.cache import content_hashes

    return content_hashes(base.weight_files, None)


def test_a_model_type_that_the_table_lacks_is_refused_by_name(bases, module_folders, tmp_path):
    shutil.copytree(bases["llama"], tmp_path / "base")
    lorahub_edge.adapt(
        str(tmp_path / "base"), [str(module_folders["llama"])], [("one two", "three"), ("two", "one")],
        n_examples=2, budget=2, device="cpu", null_control=False, out=tmp_path / "run",
    )  # fmt: skip
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "model_type": "smollm3"}))
    with pytest.raises(UnsupportedFormat, match=r"GGUF names are known for model types llama, .* not for 'smollm3'"):
        lorahub_edge.export_gguf_adapter(tmp_path / "run", tmp_path / "new" / "a.gguf")
    assert not (tmp_path / "new").exists()


def test_an_output_layer_that_is_the_embedding_is_refused_by_name(tmp_path):
    """llama.cpp finds no output.weight in such a base, and throws; where the layer is its own it takes the pair."""
    _, tied = make_run(tmp_path / "tied", "qwen2", head=True)
    with pytest.raises(UnsupportedFormat, match=r"changes 'lm_head', .* no tensor \(its output layer is its embedding"):
        lorahub_edge.export_gguf_adapter(tied, tmp_path / "new" / "a.gguf")
    assert not (tmp_path / "new").exists()


def test_what_is_there_or_was_changed_is_refused_and_nothing_is_left(runs, tmp_path):
    path, run = runs("llama")
    taken = tmp_path / "taken.gguf"
    taken.write_text("mine")
    with pytest.raises(OutputExists, match=r"taken\.gguf exists"):
        lorahub_edge.export_gguf_adapter(run, taken)
    assert taken.read_text() == "mine"
    with pytest.raises(InvalidInput, match="is not a run folder"):
        lorahub_edge.export_gguf_adapter(path.parent, tmp_path / "a.gguf")
    shutil.copytree(run, tmp_path / "run")
    weights = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(UnsupportedFormat, match=r"adapter_model\.safetensors is not what was adapted"):
        lorahub_edge.export_gguf_adapter(tmp_path / "run", tmp_path / "a.gguf")
    shutil.copy(path, tmp_path / "kept.gguf")
    try:
        path.write_bytes(path.read_bytes() + b"\0")
        with pytest.raises(InvalidInput, match="has changed since the run"):
            lorahub_edge.export_gguf_adapter(run, tmp_path / "a.gguf")
    finally:
        shutil.copy(tmp_path / "kept.gguf", path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept.gguf", "run", "taken.gguf"]
