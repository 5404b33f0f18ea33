"""Clients that no one here wrote load the exported folder and give the tokens that torch gives.

`make clients` installs them; without it these tests are skipped, each with its reason.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import lorahub_edge
from lorahub_edge.exporting.reference import relative_errors
from lorahub_edge.exporting.verification import FLOAT_TOLERANCE
from lorahub_edge.serve import OnnxModel, open_folder
from tests import tiny

HERE = Path(__file__).parent
CLIENTS = Path(os.environ.get("LORAHUB_EDGE_CLIENTS", Path(sys.prefix) / "clients"))
TEXTS = [text for text, _ in tiny.ROWS]
N_TOKENS = 12
KINDS = [("t5", "int8"), ("t5-tied", "int8"), ("t5-tied", "fp32"), ("llama", "int8"), ("llama-tied", "fp16")]


@pytest.fixture(scope="module")
def folders(export_base, bases, module_folders, fast_export, tmp_path_factory):
    """Name -> exported folder: some bases, and one with an adapter, of which a client knows nothing."""
    root = tmp_path_factory.mktemp("clients")
    lorahub_edge.adapt(
        str(bases["t5"]), [str(module_folders["t5"])], list(tiny.ROWS), n_examples=4, budget=6, device="cpu",
        null_control=False, out=root / "run",
    )  # fmt: skip
    found = {f"{kind} {precision}": export_base(kind, precision).folder for kind, precision in KINDS}
    return {**found, "t5 with adapter": fast_export(root / "run", root / "shared", with_adapter=True).folder}


def command_of(client):
    if client == "optimum":
        return [own_environment("python", "optimum-onnx"), HERE / "answer.py"]
    node, modules = shutil.which("node"), CLIENTS / "node"
    if node is None or not (CLIENTS / ".node").is_file():
        pytest.skip(f"needs node, and @huggingface/transformers in {modules}; run make clients")
    return [node, HERE / "answer.mjs", modules]


@pytest.fixture(scope="module", params=["optimum", "transformers.js"])
def answers(request, folders):
    """Name -> token ids of the client's answers, all from one process: it takes seconds to start."""
    command = command_of(request.param)
    requests = [
        {"folder": str(f), "is_seq2seq": name.startswith("t5"), "max_new_tokens": N_TOKENS, "texts": TEXTS}
        for name, f in folders.items()
    ]
    return dict(zip(folders, ask(command, requests), strict=True))


def ask(command, request):
    """What a client's process answers."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, input=json.dumps(request), capture_output=True, text=True, check=False, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def own_environment(name, package):
    """The Python of a client's environment."""
    if not (CLIENTS / f".{name}").is_file():  # make's mark that all of it is there
        pytest.skip(f"needs {package} in an environment of its own, {CLIENTS / name}; run make clients")
    return CLIENTS / name / "bin" / "python"


def torch_answers(spec, precision, files):
    base = lorahub_edge.load_base(str(spec), precision="int8" if precision == "int8" else "fp32", device="cpu")
    for text in TEXTS:
        ids = torch.tensor([files.encode(text)])
        output = base.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=N_TOKENS, do_sample=False,
            eos_token_id=list(files.end_ids), pad_token_id=files.pad_id,
        )[0].tolist()  # fmt: skip
        yield output[1 if files.is_seq2seq else ids.shape[1] :]


@pytest.mark.parametrize(("kind", "precision"), [*KINDS, ("t5", "with adapter")])
def test_a_client_gives_torchs_tokens(answers, folders, bases, kind, precision):
    name = f"{kind} {precision}"
    files = open_folder(folders[name], adapter="none")
    expected = list(torch_answers(bases[kind], "int8" if precision == "with adapter" else precision, files))
    assert answers[name] == expected


def test_openvino_computes_the_same_from_every_export_and_loads_the_runs_adapter(folders):
    """A graph that takes an adapter is the base there: its zeros are constants to OpenVINO."""
    command = [own_environment("openvino", "OpenVINO"), HERE / "answer_openvino.py"]
    opened = [open_folder(folder, adapter="none") for folder in folders.values()]
    requests = [
        {"graphs": {n: str(p) for n, p in f.graphs.items()}, "prompt": f.encode(TEXTS[0]), "start_id": f.start_id}
        for f in opened
    ]
    adapter = folders["t5 with adapter"].parent / "run" / "adapter" / "adapter_model.safetensors"
    found = ask(command, {"requests": requests, "adapter": str(adapter)})
    assert found["is_adapter"]
    for files, request, logits in zip(opened, requests, found["logits"], strict=True):
        expected = OnnxModel(files).begin([request["prompt"]])[1][0, -1]
        assert relative_errors(np.float32(logits), expected) < FLOAT_TOLERANCE, files
