"""llama.cpp with a base GGUF file and our LoRA file gives the logits and the tokens that torch gives.

`make clients` installs it; without it these tests are skipped.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

import lorahub_edge
from lorahub_edge.adaptation import SidePath, open_run
from lorahub_edge.modules import ModuleStack
from tests import gguf_files, tiny
from tests.gguf_runs import make_run

HERE = Path(__file__).parent
CLIENTS = Path(os.environ.get("LORAHUB_EDGE_CLIENTS", Path(sys.prefix) / "clients"))
PROMPTS = [[6, 11, 4, 9], [20, 4, 12, 7, 5, 19, 8], [10, 3]]
N_TOKENS = 8
# llama.cpp has no window in Llama, and knows one scale of Gemma's attention, by the usual width of a head.
VALUES = {"mistral": {"sliding_window": 512}, "gemma2": {"head_dim": 256}, "gemma3": {"head_dim": 256}}
# It leaves out the factor d_model ** -0.5 of these, which changes no order of tokens.
UNSCALED = {"t5-first": 32**0.5, "umt5": 32**0.5}
# It keeps keys and values in float16, and looks GELU up in a table of float16.
TOLERANCE = 0.03


@pytest.fixture(scope="module")
def llama():
    """Calls llama.cpp with requests; returns its answers and what it says."""
    if not (CLIENTS / ".llama").is_file():  # make's mark that all of it is there
        pytest.skip(f"needs xllamacpp in an environment of its own, {CLIENTS / 'llama'}; run make clients")

    def call(*requests):
        done = subprocess.run(
            [CLIENTS / "llama" / "bin" / "python", HERE / "answer_llama.py"], input=json.dumps(requests),
            capture_output=True, text=True, check=False, timeout=600,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout), done.stderr

    return call


def request(base, adapter, prompts=PROMPTS):
    return {"base": str(base), "adapter": adapter and str(adapter), "prompts": prompts, "n_tokens": N_TOKENS,
            "n_vocabulary": len(tiny.WORDS)}  # fmt: skip


def logits_of(run, answers):
    """torch's logits before each token of llama.cpp's answers, with the run's module."""
    base = run.load_base()
    path = SidePath(base, ModuleStack.build([run.module], base))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        before = answer["ids"][:-1]
        given = (
            {"input_ids": [prompt], "decoder_input_ids": [[0, *before]]}
            if base.family.is_seq2seq
            else {"input_ids": [[*prompt, *before]]}
        )
        with torch.inference_mode(), path.active(path.prepare(torch.ones(1, 1))):
            logits = base.model(**{name: torch.tensor(ids) for name, ids in given.items()}).logits
        yield logits[0, -N_TOKENS:].numpy()


def largest_error(run, kind, answers):
    found = np.array([answer["logits"] for answer in answers])
    return float(np.abs(found - UNSCALED.get(kind, 1.0) * np.array(list(logits_of(run, answers)))).max())


@pytest.mark.parametrize("kind", gguf_files.KINDS)
def test_llama_cpp_gives_torchs_logits(llama, kind, tmp_path):
    """So its tokens are torch's too, but for ties. Without the file, or with rows in another order, it does not."""
    values = VALUES.get(kind, {})
    has_own_head = kind in ("llama", "mistral", "qwen3", "t5", "umt5")
    base, folder = make_run(tmp_path / "run", kind, head=has_own_head, **values)
    run, adapter = open_run(folder), lorahub_edge.export_gguf_adapter(folder, tmp_path / "a.gguf").path
    wrong = with_rows_swapped(adapter, tmp_path / "wrong.gguf")
    (with_adapter, alone, swapped), _ = llama(*(request(base, path) for path in (adapter, None, wrong)))
    assert largest_error(run, kind, with_adapter) < TOLERANCE
    assert largest_error(run, kind, alone) > 10 * TOLERANCE
    assert largest_error(run, kind, swapped) > 10 * TOLERANCE


def with_rows_swapped(source, target):
    """A copy whose rows of q are in the order that only the other kind of rotation wants."""

    def swapped(name, values):
        is_q = name.split(".")[-3] == "attn_q" and name.endswith("lora_b")
        return values.reshape(4, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape) if is_q else values

    return rewritten(source, target, lambda name, values: (name, swapped(name, values)))


def rewritten(source, target, change):
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key in ("general.type", "adapter.type"):
        writer.add_string(key, reader.fields[key].contents())
    for tensor in reader.tensors:
        name, values = change(tensor.name, np.array(tensor.data))
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_llama_cpp_takes_no_pair_for_a_tensor_that_the_base_lacks(llama, tmp_path):
    """As for the output layer where it is the embedding, which is why that is refused by name."""
    base, folder = make_run(tmp_path / "run", "qwen2")
    adapter = lorahub_edge.export_gguf_adapter(folder, tmp_path / "a.gguf").path
    renamed = rewritten(
        adapter, tmp_path / "head.gguf", lambda name, values: (name.replace("blk.0.attn_q", "output"), values)
    )
    (taken, refused), said = llama(request(base, adapter, []), request(base, renamed, []))
    assert (taken, refused) == ([], None)
    assert "'output.weight' does not exist in base model" in said
