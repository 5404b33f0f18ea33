"""The shapes are FLAN-T5's, and one evaluation is measured on each that is asked for."""

import pytest
from accelerate import init_empty_weights
from transformers import AutoModelForSeq2SeqLM

from bench import adapt
from bench.records import read
from bench.t5_large import SHAPES
from bench.workers import Workplace


@pytest.mark.parametrize(
    ("shape", "n_parameters"), [("small", 76_961_152), ("base", 247_577_856), ("large", 783_150_080)]
)
def test_a_shape_has_as_many_parameters_as_the_published_model(shape, n_parameters):
    with init_empty_weights():
        model = AutoModelForSeq2SeqLM.from_config(SHAPES[shape]())
    tensors = {name: tensor for name, tensor in model.state_dict().items() if "embed_tokens" not in name}
    tensors["lm_head.weight"] = tensors["shared.weight"]
    assert sum(tensor.numel() for tensor in tensors.values()) == n_parameters


def test_one_evaluation_of_every_contender_on_every_shape(tmp_path, monkeypatch):
    def worker(_, contender, base, modules, task, *, n_candidates, n_repeats=3):
        assert modules.name == f"{base.name}-20"
        return {"per_candidate_s": [1.0 * n_candidates], "VmHWM_bytes": 5, "losses": [0.0]}

    models = {shape: (tmp_path / shape, tmp_path / f"{shape}-20") for shape in ("small", "base")}
    monkeypatch.setattr(Workplace, "model", lambda _, shape, n: models[shape])
    monkeypatch.setattr(Workplace, "worker", worker)
    out = tmp_path / "records.jsonl"
    arguments = ["--parts", "evaluation", "--shapes", "small", "base", "--rounds", "1", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["adapt", str(tmp_path), *arguments])
    adapt.main()
    found = {(r["setup"]["shape"], r["setup"]["contender"]): r["metrics"]["median_s"] for r in read(out)}
    names = [name for name in adapt.CONTENDERS if name != "ctranslate2"]  # without --peer-python
    n_candidates = {"ours": 12.0, "lorahub": 2.0}
    assert found == {(s, n): n_candidates.get(n, 4.0) for s in ("small", "base") for n in names}


def test_on_a_gpu_what_runs_there_is_measured_there(tmp_path, monkeypatch, capsys):
    def worker(place, contender, *_, n_candidates, n_repeats=3):
        assert place.device == "cuda"
        return {"per_candidate_s": [1.0], "VmHWM_bytes": 5, "losses": [0.0], "gpu_busy_s": 0.25}

    monkeypatch.setattr(Workplace, "model", lambda *_: (tmp_path / "large", tmp_path / "modules"))
    monkeypatch.setattr(Workplace, "worker", worker)
    out = tmp_path / "records.jsonl"
    arguments = ["adapt", str(tmp_path), "--device", "cuda", "--rounds", "1", "--shapes", "large", "--out", str(out)]
    monkeypatch.setattr("sys.argv", [*arguments, "--parts", "evaluation"])
    adapt.main()
    records = read(out)
    assert {(r["setup"]["contender"], r["setup"]["device"]) for r in records} == {(c, "cuda") for c in adapt.ON_A_GPU}
    assert records[0]["metrics"]["rounds"][0]["gpu_busy_s"] == 0.25
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit):
        adapt.main()
    assert "only --parts evaluation" in capsys.readouterr().err


def test_each_shape_has_a_converted_folder_of_its_own(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(adapt, "convert", lambda contender, model, work, bin_folder: made.append((model.name, work)))
    for shape in ("small", "large"):
        adapt._converted(tmp_path, tmp_path / shape, tmp_path / "bin" / "python")
    assert made == [("small", tmp_path / "small-peers"), ("large", tmp_path)]
    assert (tmp_path / "small-peers").is_dir()
