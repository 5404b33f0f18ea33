"""export --with-adapter: one base, several modules beside it, each answering as its run does."""

import contextlib
import functools
import json
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file, save_file

import lorahub_edge
from lorahub_edge.errors import InvalidInput, LorahubEdgeError, OutputExists, UnsupportedFormat
from lorahub_edge.exporting import VerificationFailed, adapters
from lorahub_edge.exporting.source import ExportSource
from lorahub_edge.integrity import sealed
from lorahub_edge.outputs import locked
from lorahub_edge.serve import OnnxModel, generate, open_folder
from lorahub_edge.serve.adapter import read_adapter, tensors_sha256
from tests import tiny
from tests.exporting.conftest import with_other_factors

TEXTS = [text for text, _ in tiny.ROWS]


def answers(folder, adapter=None):
    model = OnnxModel(open_folder(folder, adapter=adapter))
    return [completion.text for completion in generate(model, TEXTS)]


def side_path_answers(run):
    return lorahub_edge.load_adapted(run, device="cpu").predict(TEXTS)


def test_each_adapter_beside_one_base_answers_as_its_run(shared, run, other_run):
    found = {None: answers(shared), "run": answers(shared, "run"), "other": answers(shared, "other")}
    assert found[None] == found["run"] == side_path_answers(run)
    assert found["other"] == side_path_answers(other_run)
    assert found["run"] != found["other"]
    assert len(list((shared / "onnx").iterdir())) == 2
    sizes = [path.stat().st_size for path in shared.glob("adapters/*.safetensors")]
    assert max(sizes) < 25_000 < min(path.stat().st_size for path in (shared / "onnx").iterdir())


@pytest.mark.parametrize(("kind", "precision"), [("t5-tied", "fp32"), ("llama", "int8"), ("llama-tied", "fp32")])
def test_every_family_takes_an_adapter(make_run, kind, precision, tmp_path):
    """In fp32 the merged model is the same model, to rounding; so are its tokens."""
    run = make_run(kind, f"{kind}-{precision}")
    folder = lorahub_edge.export(run, tmp_path / "out", precision=precision, with_adapter=True).folder
    if precision == "int8":
        assert answers(folder) == side_path_answers(run)
    else:  # the run itself was int8
        merged = lorahub_edge.export(run, tmp_path / "merged", precision=precision).folder
        assert answers(folder) == answers(merged)
        assert answers(folder) != answers(folder, "none")


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_sum_of_deltas_is_served_from_a_graph_and_beside_one(make_run, kind, tmp_path):
    """Its rank is that of four modules together; the graphs take any."""
    run = make_run(kind, f"{kind}-deltas", preset="paper", composition="deltas")
    folder = lorahub_edge.export(run, tmp_path / "beside", with_adapter=True).folder
    adapter = load_file(folder / "adapters" / f"{run.name}.safetensors")
    assert max(min(tensor.shape) for tensor in adapter.values()) > 4
    assert answers(folder) == side_path_answers(run) != answers(folder, "none")
    assert lorahub_edge.export(run, tmp_path / "merged").report["passed"]


def test_without_an_adapter_the_graphs_are_the_base(shared, run, bases, tmp_path):
    plain = lorahub_edge.export(str(bases["t5"]), tmp_path / "plain").folder
    prompts = [[6, 11, 4, 9, 1], [12, 5, 1]]
    expected = OnnxModel(plain).begin(prompts)[1]
    assert np.array_equal(OnnxModel(open_folder(shared, adapter="none")).begin(prompts)[1], expected)
    assert not np.allclose(OnnxModel(shared).begin(prompts)[1], expected, atol=1e-2)


def test_plain_onnxruntime_takes_the_file_as_it_is(shared):
    """What docs/serving.md shows: a graph's inputs are the file's tensors by name."""
    encoder = onnxruntime.InferenceSession(shared / "onnx" / "encoder_model_int8.onnx")
    adapter = load_file(shared / "adapters" / "run.safetensors")
    taken = {i.name for i in encoder.get_overridable_initializers()} & set(adapter)
    feeds = {"input_ids": np.array([[6, 11, 4, 1]]), "attention_mask": np.ones((1, 4), np.int64)}
    assert [i.name for i in encoder.get_inputs()] == list(feeds)
    with_adapter = encoder.run(None, feeds | {name: adapter[name] for name in taken})[0]
    without = encoder.run(None, feeds)[0]
    assert len(taken) == 2 * 2 * 2
    assert np.abs(with_adapter - without).max() > 0.01


def run_options(path):
    """Of a run with the adapter of a file, as docs/serving.md has it; the adapter must outlive the options."""
    adapter, options = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
    adapter.Load(str(path))
    options.add_active_adapter(adapter)
    return adapter, options


IDS = np.array([[6, 11, 4, 1]])
ENCODED = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}


def session_of(folder, graph):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(folder / open_folder(folder).record["graphs"][graph], options)


def test_onnxruntimes_lora_adapter_feeds_a_decoder_only_graph(beside_llama):
    session = session_of(beside_llama, "model")
    empty = {i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in session.get_inputs()[3:]}
    feeds = {**ENCODED, "position_ids": np.arange(IDS.shape[1])[None], **empty}
    _adapter, options = run_options(beside_llama / "adapters" / "llama.onnx_adapter")
    served = OnnxModel(beside_llama).begin(IDS.tolist())[1]
    assert np.array_equal(session.run(["logits"], feeds, options)[0][:, -1:], served)
    assert np.abs(session.run(["logits"], feeds)[0][:, -1:] - served).max() > 0.1


@pytest.mark.parametrize("name", ["run", "other"])
def test_onnxruntimes_lora_adapter_feeds_encoder_and_decoder(shared, name):
    """Each graph has a file of its own: it refuses names that are no inputs of it."""
    encoder, decoder = session_of(shared, "encoder"), session_of(shared, "decoder")
    states = (i for i in decoder.get_inputs() if i.name.startswith("past_key_values."))
    empty = {i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in states}
    start = np.array([[open_folder(shared).start_id]])
    (_a, of_encoder), (_b, of_decoder) = (
        run_options(shared / "adapters" / f"{name}.{graph}.onnx_adapter") for graph in ("encoder", "decoder")
    )

    def logits(*options):
        hidden = encoder.run(None, ENCODED, *options[:1])[0]
        feeds = {"input_ids": start, "encoder_hidden_states": hidden, "encoder_attention_mask": np.ones_like(IDS)}
        return decoder.run(["logits"], {**feeds, **empty, "use_cache_branch": np.array([False])}, *options[1:])[0]

    served = OnnxModel(open_folder(shared, adapter=name)).begin(IDS.tolist())[1]
    assert np.array_equal(logits(of_encoder, of_decoder), served)
    assert np.abs(logits() - served).max() > 0.1
    with pytest.raises(Exception, match=r"Invalid input name: decoder\."):
        encoder.run(None, ENCODED, of_decoder)


def test_a_folder_of_before_has_no_file_for_onnxruntime(shared, run, tmp_path):
    folder = shutil.copytree(shared, tmp_path / "early")
    for path in folder.glob("adapters/*.onnx_adapter"):
        path.unlink()
    with pytest.raises(UnsupportedFormat, match=r"other.(en|de)coder.onnx_adapter is missing"):
        lorahub_edge.verify(folder)
    for name in ("run", "other"):
        path = folder / "adapters" / f"{name}.safetensors"
        change(path, of_record=lambda r: {k: value for k, value in r.items() if k != "onnx_adapters_sha256"})
    assert lorahub_edge.verify(folder)["passed"]
    third = shutil.copytree(run, tmp_path / "third")
    lorahub_edge.export(third, folder, with_adapter=True)
    assert sorted(path.name for path in folder.glob("adapters/*.onnx_adapter")) == [
        "third.decoder.onnx_adapter", "third.encoder.onnx_adapter"
    ]  # fmt: skip
    change(path, of_record=lambda r: {**r, "onnx_adapters_sha256": "none"})
    with pytest.raises(UnsupportedFormat, match="onnx_adapters_sha256 is no table of hashes; export it again"):
        lorahub_edge.verify(folder)


def test_a_full_disk_is_one_line(shared, run, tmp_path, monkeypatch):
    folder, third = shutil.copytree(shared, tmp_path / "full"), shutil.copytree(run, tmp_path / "third")
    before = files(folder)
    write_to_full_disk = functools.partial(adapters._write_onnx_adapter, "/dev/full")
    monkeypatch.setattr(adapters, "_write_onnx_adapter", lambda _, tensors: write_to_full_disk(tensors))
    with pytest.raises(LorahubEdgeError, match=r"third.*onnx_adapter: cannot be written \(Failed to write .*/dev/full"):
        lorahub_edge.export(third, folder, with_adapter=True)
    assert files(folder) == before


def test_an_adapter_from_elsewhere_is_a_file(shared, tmp_path):
    elsewhere = tmp_path / "mine.safetensors"
    shutil.copy(shared / "adapters" / "other.safetensors", elsewhere)
    assert answers(shared, elsewhere) == answers(shared, "other")
    assert open_folder(shared, adapter=elsewhere).adapter.name == "mine"


def test_verify_checks_every_adapter(shared, tmp_path):
    report = lorahub_edge.verify(shared)
    assert [model["adapter"] for model in report["models"]] == [None, "other", "run"]
    assert {c["adapter"] for c in report["cases"]} == {None, "other", "run"}
    folder = tmp_path / "copy"
    shutil.copytree(shared, folder)
    path = folder / "adapters" / "other.safetensors"
    change(path, lambda name, tensor: tensor * 1.5 if name.endswith("lora_B") else tensor)
    with pytest.raises(VerificationFailed):
        lorahub_edge.verify(folder)
    (folder / "adapters" / "other.reference.npz").unlink()
    with pytest.raises(UnsupportedFormat, match=r"other.reference.npz is missing"):
        lorahub_edge.verify(folder)


def change(path, of_tensor=lambda _name, tensor: tensor, of_record=lambda record: record):
    """Rewrite an adapter file, with hashes that agree."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        record = json.loads(file.metadata()["lorahub_edge"])
    tensors = {name: of_tensor(name, tensor) for name, tensor in load_file(path).items()}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    record["tensors_sha256"] = tensors_sha256(tensors)
    save_file(tensors, path, {"lorahub_edge": json.dumps(sealed(of_record(record)))})


Q = "encoder.block.0.layer.0.SelfAttention.q"


@pytest.mark.parametrize(
    ("of_tensor", "of_record", "error", "message"),
    [
        (None, lambda r: {**r, "base_files": {"model.safetensors": "0" * 64}}, InvalidInput, "for another base"),
        (None, lambda r: {**r, "format": "x/9"}, UnsupportedFormat, "expected format lorahub-edge-adapter/1"),
        (None, lambda r: {"format": r["format"]}, UnsupportedFormat, "expected a file that lorahub-edge export"),
        (None, lambda r: r | {"prompt": r["prompt"] | {"closing_ids": [9999]}}, UnsupportedFormat, "the token 9999 of"),
        (lambda n, t: None if n == f"{Q}.lora_B" else t, None, UnsupportedFormat, f"one factor of '{Q}' is missing"),
        (lambda n, t: t[:, :-1].copy() if n == f"{Q}.lora_A" else t, None, UnsupportedFormat, r"received \(4, 31\)"),
        (lambda n, t: t * np.float32(np.nan) if n == f"{Q}.lora_A" else t, None, UnsupportedFormat, "not finite"),
        (lambda _, t: t.astype(np.float16), None, UnsupportedFormat, "expected float32, received float16"),
    ],
)
def test_adapter_files_that_do_not_fit_are_refused(shared, tmp_path, of_tensor, of_record, error, message):
    path = tmp_path / "bad.safetensors"
    shutil.copy(shared / "adapters" / "run.safetensors", path)
    change(path, of_tensor or (lambda _n, t: t), of_record or (lambda r: r))
    with pytest.raises(error, match=message):
        open_folder(shared, adapter=path)


def test_what_is_no_adapter_is_refused(shared, exported, run, tmp_path):
    with pytest.raises(InvalidInput, match=r"adapter 'gone': no such file.*none, or one of: other, run"):
        open_folder(shared, adapter="gone")
    (tmp_path / "text.safetensors").write_text("no tensors")
    for path in (tmp_path / "text.safetensors", run / "adapter" / "adapter_model.safetensors"):
        with pytest.raises(UnsupportedFormat, match="expected a file that lorahub-edge export --with-adapter wrote"):
            open_folder(shared, adapter=path)
    with pytest.raises(InvalidInput, match="its module is merged, so it takes no adapter"):
        open_folder(exported, adapter="run")
    path = tmp_path / "more.safetensors"
    shutil.copy(shared / "adapters" / "run.safetensors", path)
    tensors = load_file(path)
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    tensors["lm_head.lora_A"] = np.zeros((4, 32), np.float32)
    save_file(tensors, path, metadata)
    change(path)
    with pytest.raises(InvalidInput, match=r"graphs take no 'lm_head\.lora_A'"):
        open_folder(shared, adapter=path)


def test_what_has_no_end_is_refused_before_it_is_read(shared, tmp_path):
    record = open_folder(shared, adapter="none").record
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    with open(tmp_path / "sparse.safetensors", "wb") as file:
        file.truncate(2 << 30)
    for name in ("zero", "sparse"):
        with pytest.raises(UnsupportedFormat, match="expected a file of at most 1 GiB"):
            read_adapter(tmp_path / f"{name}.safetensors", record)


def test_a_folder_whose_record_of_adapters_is_broken_is_refused(shared, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(shared, folder)
    record = json.loads((folder / "lorahub_edge.json").read_text())
    for value in ({"default": "run"}, "run"):
        (folder / "lorahub_edge.json").write_text(json.dumps(sealed({**record, "adapter": value})))
        with pytest.raises(UnsupportedFormat, match=r"lorahub_edge.json: incomplete \(adapter .*export again"):
            open_folder(folder)


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_module_that_cannot_go_beside_a_base_leaves_the_folder_as_it_was(shared, run, make_run, exported, tmp_path):
    before = files(shared)
    with pytest.raises(OutputExists, match=r"run.safetensors exists"):
        lorahub_edge.export(run, shared, with_adapter=True)
    with pytest.raises(InvalidInput, match="its base is not that of run tied"):
        lorahub_edge.export(make_run("t5-tied", "tied"), shared, with_adapter=True)
    with pytest.raises(InvalidInput, match="its base is int8, received --precision fp32"):
        lorahub_edge.export(run, shared, with_adapter=True, precision="fp32")
    assert files(shared) == before
    with pytest.raises(InvalidInput, match="its module is merged"):
        lorahub_edge.export(run, exported, with_adapter=True)
    with pytest.raises(InvalidInput, match="no run folder, so there is no adapter"):
        lorahub_edge.export("pocket", tmp_path / "out", with_adapter=True)
    with pytest.raises(InvalidInput, match="with an adapter nothing is merged"):
        lorahub_edge.export(run, tmp_path / "out", with_adapter=True, in_place_int8=True)


def test_an_adapter_that_does_not_verify_is_taken_out_again(shared, run, monkeypatch):
    third = with_other_factors(run, run.with_name("third"), 0.5)
    before = files(shared)
    monkeypatch.setattr(ExportSource, "module_active", lambda _: contextlib.nullcontext())
    with pytest.raises(VerificationFailed, match="nothing was written but the report"):
        lorahub_edge.export(third, shared, with_adapter=True)
    assert files(shared) == before
    kept = shared.with_name("shared.verification.json")
    assert json.loads(kept.read_text())["passed"] is False
    kept.unlink()


def test_an_adapter_of_another_rank_goes_beside_the_same_base(shared, tmp_path):
    """The same delta in factors of twice the rank."""
    path = tmp_path / "wide.safetensors"
    shutil.copy(shared / "adapters" / "run.safetensors", path)
    change(path, lambda name, t: np.concatenate([t, t]) / 2 if name.endswith("A") else np.concatenate([t, t], 1))
    assert torch.tensor(load_file(path)[f"{Q}.lora_A"]).shape == (8, 32)
    assert answers(shared, path) == answers(shared, "run")


def test_two_exports_do_not_write_into_one_folder(shared, run, tmp_path):
    folder = shutil.copytree(shared, tmp_path / "shared")
    third = shutil.copytree(run, tmp_path / "third")
    with locked(folder), pytest.raises(OutputExists, match="is being written by another process"):
        lorahub_edge.export(third, folder, with_adapter=True)
    assert list((folder / "adapters").glob("third*")) == []
