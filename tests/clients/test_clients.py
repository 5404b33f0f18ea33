"""Clients that no one here wrote load the exported folder and give the tokens that torch gives.

`make clients` installs them; without it these tests are skipped, each with its reason.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lorahub_edge
from lorahub_edge.serve import GenerationSettings, OnnxModel, generate, open_folder
from tests import tiny

HERE = Path(__file__).parent
CLIENTS = Path(os.environ.get("LORAHUB_EDGE_CLIENTS", Path(sys.prefix) / "clients"))
TEXTS = [text for text, _ in tiny.ROWS]
N_TOKENS = 12
KINDS = [("t5", "int8"), ("t5-tied", "int8"), ("t5-tied", "fp32"), ("llama", "int8"), ("llama-tied", "fp16")]


def with_optimum(folder, is_seq2seq):
    python = CLIENTS / "python" / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"needs optimum-onnx in an environment of its own, {python}; run make clients")
    return output_of([python, HERE / "answer.py", folder], is_seq2seq)


def with_transformers_js(folder, is_seq2seq):
    node = shutil.which("node")
    modules = CLIENTS / "node"
    if node is None or not (modules / "node_modules").is_dir():
        pytest.skip(f"needs node and @huggingface/transformers in {modules}; run make clients")
    return output_of([node, HERE / "answer.mjs", modules, folder], is_seq2seq)


def output_of(command, is_seq2seq):
    command = [*map(str, command), str(is_seq2seq).lower(), str(N_TOKENS), *TEXTS]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def expected_tokens(folder, base, is_seq2seq):
    """What torch answers; where it is not what our own serving answers, the two parted at a tie of the noise."""
    import torch

    model = OnnxModel(open_folder(folder, adapter="none"))
    ours = [list(c.token_ids) for c in generate(model, TEXTS, GenerationSettings(max_new_tokens=N_TOKENS))]
    torchs = []
    for text in TEXTS:
        ids = torch.tensor([model.files.encode(text)])
        output = base.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=N_TOKENS, do_sample=False,
            eos_token_id=list(model.files.end_ids), pad_token_id=model.files.pad_id,
        )[0].tolist()  # fmt: skip
        torchs.append(output[1 if is_seq2seq else ids.shape[1] :])
    return ours, torchs


@pytest.mark.parametrize("client", [with_optimum, with_transformers_js], ids=["optimum", "transformers.js"])
@pytest.mark.parametrize(("kind", "precision"), KINDS)
def test_a_client_gives_the_same_tokens(export_base, bases, client, kind, precision):
    is_seq2seq = kind.startswith("t5")
    folder = export_base(kind, precision).folder
    found = client(folder, is_seq2seq)
    base = lorahub_edge.load_base(str(bases[kind]), precision="int8" if precision == "int8" else "fp32", device="cpu")
    ours, torchs = expected_tokens(folder, base, is_seq2seq)
    assert found == ours
    assert found == torchs
