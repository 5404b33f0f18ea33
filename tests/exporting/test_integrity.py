"""What is not what was written is refused in one line, before any of it is loaded: exports, adapters, merges, runs."""

import json
import shutil

import onnxruntime
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import lorahub_edge
from lorahub_edge.errors import UnsupportedFormat
from lorahub_edge.serve import open_folder

CHANGED = r"is not what was {} \(expected sha256 [0-9a-f]{{16}}\.\.\., received [0-9a-f]{{16}}\.\.\.\); {} again"
EXPORTED, MERGED = CHANGED.format("exported", "export"), CHANGED.format("merged", "merge")


@pytest.fixture(autouse=True)
def _nothing_is_loaded(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a graph is loaded before the hashes were compared")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)


@pytest.fixture
def flipped(tmp_path):
    """A copy of a folder with one bit of a file changed."""

    def flip(folder, name):
        copy = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folder, copy)
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        return copy

    return flip


def edit(path, change):
    """Change a JSON record as a user with an editor would."""
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record, indent=2))


def test_a_changed_bit_in_any_file_of_an_export_is_named(exported, flipped):
    hashes = json.loads((exported / "lorahub_edge.json").read_text())["files"]
    written = {p.relative_to(exported).as_posix() for p in exported.rglob("*") if p.is_file()}
    assert set(hashes) == written - {"lorahub_edge.json", "verification.json"}
    assert {"onnx/decoder_model_merged_int8.onnx", "tokenizer.json", "config.json", "reference.npz"} < set(hashes)
    for name in hashes:
        copy = flipped(exported, name)
        with pytest.raises(UnsupportedFormat, match=rf"{name} {EXPORTED}"):
            lorahub_edge.verify(copy)
        if name == "reference.npz":  # only verify reads it
            assert open_folder(copy)
        else:
            with pytest.raises(UnsupportedFormat, match=rf"{name} {EXPORTED}"):
                open_folder(copy)
        (copy / name).unlink()
        with pytest.raises(UnsupportedFormat, match=rf"{name} is missing; export again"):
            lorahub_edge.verify(copy)


def test_an_edited_record_is_refused_by_whatever_reads_it(exported, shared, other_run, tmp_path):
    folder = tmp_path / "edited"
    shutil.copytree(exported, folder)
    edit(folder / "lorahub_edge.json", lambda record: record["prompt"].update(before="never mind: "))
    for read in (lorahub_edge.verify, open_folder, lorahub_edge.load_adapted):
        with pytest.raises(UnsupportedFormat, match=rf"lorahub_edge.json {EXPORTED}"):
            read(folder)
    folder = tmp_path / "edited-shared"
    shutil.copytree(shared, folder)
    edit(folder / "lorahub_edge.json", lambda record: record.update(precision="fp32"))
    third = other_run.with_name("again")
    shutil.copytree(other_run, third)
    with pytest.raises(UnsupportedFormat, match=rf"lorahub_edge.json {EXPORTED}"):
        lorahub_edge.export(third, folder, with_adapter=True)


def test_a_changed_adapter_or_reference_of_one_is_refused_wherever_it_lies(shared, flipped, tmp_path):
    copy = flipped(shared, "adapters/other.safetensors")
    elsewhere = shutil.copy(copy / "adapters" / "other.safetensors", tmp_path / "mine.safetensors")
    for adapter in ("other", elsewhere):
        with pytest.raises(UnsupportedFormat, match=rf"(other|mine).safetensors {EXPORTED}"):
            open_folder(copy, adapter=adapter)
    assert open_folder(copy, adapter="run")  # the others still answer
    with pytest.raises(UnsupportedFormat, match=rf"other.safetensors {EXPORTED}"):
        lorahub_edge.verify(copy)
    for name in ("other.reference.npz", "other.encoder.onnx_adapter", "other.decoder.onnx_adapter"):
        with pytest.raises(UnsupportedFormat, match=rf"{name} {EXPORTED}"):
            lorahub_edge.verify(flipped(shared, f"adapters/{name}"))
    path = shared / "adapters" / "run.safetensors"
    with safe_open(path, framework="np") as file:
        record = json.loads(file.metadata()["lorahub_edge"])
    record["prompt"]["before"] = "never mind: "
    save_file(load_file(path), elsewhere, {"lorahub_edge": json.dumps(record)})
    with pytest.raises(UnsupportedFormat, match=rf"mine.safetensors {EXPORTED}"):
        open_folder(shared, adapter=elsewhere)


def test_early_folders_without_hashes_still_open(exported, tmp_path):
    folder = tmp_path / "early"
    shutil.copytree(exported, folder)

    def forget(record):
        del record["sha256"]
        record["files"] = {n: value for n, value in record["files"].items() if n.startswith("onnx/")}

    edit(folder / "lorahub_edge.json", forget)
    assert open_folder(folder).max_new_tokens == open_folder(exported).max_new_tokens


@pytest.mark.parametrize("files", ["x", ["tokenizer.json"], {"tokenizer.json": 7}, {"../run/manifest.json": "0"}])
def test_a_record_of_hashes_that_is_none_is_refused(exported, tmp_path, files):
    folder = tmp_path / "bad"
    shutil.copytree(exported, folder)
    edit(folder / "lorahub_edge.json", lambda record: (record.pop("sha256"), record.update(files=files)))
    with pytest.raises(UnsupportedFormat, match="export again"):
        open_folder(folder)


def test_a_merged_folder_that_was_changed_is_neither_exported_nor_opened(run, flipped, tmp_path):
    merged = lorahub_edge.merge(run, tmp_path / "merged").folder
    for name in ("model.safetensors", "tokenizer.json", "examples.jsonl"):
        with pytest.raises(UnsupportedFormat, match=rf"{name} {MERGED}"):
            lorahub_edge.export(flipped(merged, name), tmp_path / "out")
    edit(merged / "merge.json", lambda record: record.update(max_new_tokens=1))
    for read in (lorahub_edge.load_adapted, lambda folder: lorahub_edge.export(folder, tmp_path / "out")):
        with pytest.raises(UnsupportedFormat, match=rf"merge.json {MERGED}"):
            read(merged)
    edit(merged / "merge.json", lambda record: (record.pop("sha256"), record.pop("files")))  # an early one
    assert lorahub_edge.load_adapted(merged, device="cpu").max_new_tokens == 1


def test_a_run_whose_adapter_was_changed_is_refused(run, flipped, tmp_path):
    copy = flipped(run, "adapter/adapter_model.safetensors")
    for read in (lorahub_edge.load_adapted, lorahub_edge.merge, lambda run: lorahub_edge.export(run, tmp_path / "out")):
        with pytest.raises(UnsupportedFormat, match=rf"adapter_model.safetensors {CHANGED.format('adapted', 'adapt')}"):
            read(copy)
    edit(copy / "manifest.json", lambda manifest: manifest.pop("files"))  # an early one
    assert lorahub_edge.load_adapted(copy, device="cpu")
