"""Bases that are broken, hostile or packed in ways that are not read: one line of ours, at once, and no memory."""

import json
import pickle
import resource
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorahub_edge.base import load_base, open_base, save_base
from lorahub_edge.base.contents import match_tensors
from lorahub_edge.errors import UnsupportedFormat
from tests import gguf_files

WEIGHT = "model.layers.0.self_attn.q_proj.weight"
HUGE = 10**20


@pytest.fixture(autouse=True)
def _little_memory():
    """No file here may make more than 2 GB of room."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else None
    if pages is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (2 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def config(**values):
    def edit(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return edit


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def tensors(**changes):
    """None leaves a tensor out; a function makes it from what is there. Names have __ for their dots."""

    def edit(folder):
        path = folder / "model.safetensors"
        found = load_file(path)
        for key, value in changes.items():
            name = key.replace("__", ".")
            found[name] = value(found) if callable(value) else value
        save_file({k: v.contiguous() for k, v in found.items() if v is not None}, path, metadata={"format": "pt"})

    return edit


Q = WEIGHT.replace(".", "__")


def binary(make):
    """Weights in a torch file instead."""

    def edit(folder):
        found = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(make(found), folder / "pytorch_model.bin")

    return edit


def compressed(folder):
    binary(lambda found: found)(folder)
    path = folder / "pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


class Runs:
    def __reduce__(self):
        return exec, ("raise SystemExit('was run')",)


def pickled(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({WEIGHT: Runs()}))


def header(content):
    """A safetensors file with this header and no data."""
    raw = json.dumps(content).encode()
    return lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw)


def index(*names):
    def edit(folder):
        (folder / "model.safetensors").unlink()
        content = {"weight_map": dict(zip("abc", names, strict=False))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return edit


def doubling_normalizer(n):
    """Each step writes two letters for one: n of them take n powers of two of memory, as the tokenizer is loaded."""

    def edit(folder):
        path = folder / "tokenizer.json"
        step = {"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}
        tokenizer = json.loads(path.read_text())
        path.write_text(json.dumps({**tokenizer, "normalizer": {"type": "Sequence", "normalizers": [step] * n}}))

    return edit


CASES = {
    "config: not JSON": (text("config.json", "{"), "not readable as JSON"),
    "config: a list": (text("config.json", "[]"), "expected a JSON object"),
    "config: nested": (text("config.json", "[" * 200_000), "not readable as JSON"),
    "config: not text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "not readable as JSON"),
    "config: no type": (config(model_type=None), "model type 'None' is not supported"),
    "config: a list as type": (config(model_type=["llama"]), "is not supported"),
    "config: 10^20 layers": (config(num_hidden_layers=HUGE), "num_hidden_layers = 1000"),
    "config: no layers": (config(num_hidden_layers=0), "num_hidden_layers = 0"),
    "config: negative": (config(hidden_size=-32), "hidden_size = -32"),
    "config: wide heads": (config(head_dim=10**9), "head_dim = 1000"),
    "config: many labels": (config(num_labels=10**9), "num_labels = 1000"),
    "config: half a size": (config(intermediate_size=6.5), "intermediate_size = 6.5"),
    "config: a size in words": (config(vocab_size="many"), "vocab_size = many"),
    "config: 400 digits": (config(rope_theta=10**400), "float32 does not hold"),
    "config: infinite": (config(rms_norm_eps=float("inf")), "number inf"),
    "config: text for a number": (config(rms_norm_eps="small"), "config cannot be used .*rms_norm_eps"),
    "config: unknown activation": (config(hidden_act="foo"), "config cannot be used"),
    "config: unknown rope": (config(rope_parameters={"rope_type": "zzz", "rope_theta": 1.0}), "config cannot be used"),
    "config: fp8": (config(quantization_config={"quant_method": "fp8"}), r"quantised \(quantization_config: fp8\)"),
    "config: gptq": (config(quantization_config={"quant_method": "gptq", "bits": 4}), "quantised .*gptq"),
    "config: awq": (config(quantization_config={"quant_method": "awq"}), "quantised .*awq"),
    "config: text": (config(quantization_config="fp8"), "quantised .*fp8"),
    "config: 4 bits": (
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}),
        "quantised .*bitsandbytes",
    ),
    "config: compressed": (config(compression_config={"format": "int-quantized"}), "quantised .*compression_config"),
    "tensors: fp8": (tensors(**{Q: lambda t: t[WEIGHT].to(torch.float8_e4m3fn)}), "stored as F8_E4M3"),
    "tensors: bytes": (tensors(**{Q: torch.zeros(512, 1, dtype=torch.uint8)}), "stored as U8"),
    "tensors: int8 alone": (tensors(**{Q: torch.zeros(32, 32, dtype=torch.int8)}), "stored as I8 without .*SCB"),
    "tensors: scale": (tensors(**{f"{Q}_scale_inv": torch.ones(1, 1)}), "weight_scale_inv, which LlamaForC"),
    "tensors: gptq": (
        tensors(**{Q: None, Q.replace("weight", "qweight"): torch.zeros(4, 32, dtype=torch.int32)}),
        "qweight, which LlamaForCausalLM has not",
    ),
    "tensors: bias": (tensors(**{Q.replace("weight", "bias"): torch.ones(32)}), "q_proj.bias, which LlamaForC"),
    "tensors: a layer more": (tensors(model__layers__2__x=torch.ones(1)), "layers.2.x, which LlamaForCausalLM has not"),
    "tensors: flat": (tensors(**{Q: lambda t: t[WEIGHT].flatten()}), "expected shape"),
    "safetensors: 2^63": (
        header({WEIGHT: {"dtype": "F32", "shape": [2**63, 2], "data_offsets": [0, 0]}}),
        "not a whole safetensors",
    ),
    "safetensors: cut": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 7), "not a whole safetensors"),
    "safetensors: no shape": (header({WEIGHT: {"dtype": "F32"}}), "not a whole safetensors"),
    "index: outside": (index("../other/model.safetensors"), "names ../other/model.safetensors, which is not in"),
    "index: missing": (index("model-00001-of-00001.safetensors"), "which is not in the folder"),
    "index: numbers": (index(5, 6), "expected an object with 'weight_map'"),
    "bin: code": (pickled, "nothing in it was executed"),
    "bin: a list": (binary(lambda t: [1]), "expected a dictionary of tensors"),
    "bin: a number": (binary(lambda t: {**t, WEIGHT: 3}), "is none"),
    "bin: a number for a name": (binary(lambda t: {**t, 5: t[WEIGHT]}), "'5' is none"),
    "bin: sparse": (binary(lambda t: {**t, WEIGHT: t[WEIGHT].to_sparse()}), "is none"),
    "bin: meta": (binary(lambda t: {**t, WEIGHT: t[WEIGHT].to("meta")}), "is none"),
    "bin: one for billions": (binary(lambda t: {**t, WEIGHT: torch.ones(1).expand(10**5, 10**5)}), "is none"),
    "bin: complex": (binary(lambda t: {**t, WEIGHT: t[WEIGHT].to(torch.complex64)}), "stored as torch.complex64"),
    "bin: compressed": (compressed, "it is compressed"),
    "bin: cut": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "not a plain file of tensors"),
    "tokenizer: not JSON": (text("tokenizer.json", "{"), "tokenizer cannot be read"),
    "tokenizer: nothing in it": (text("tokenizer.json", "{}"), "tokenizer cannot be read"),
    "tokenizer: doubles": (doubling_normalizer(22), r"its normalizer could make a text 4\.19e\+06 times longer"),
    "tokenizer: config": (text("tokenizer_config.json", "[]"), "tokenizer cannot be read"),
    "tokenizer: a length": (text("tokenizer_config.json", '{"model_max_length": "8"}'), "tokenizer cannot be read"),
    "tokenizer: class": (text("tokenizer_config.json", '{"tokenizer_class": 5}'), "tokenizer cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_strangers_base_is_refused_in_one_line(bases, tmp_path, case):
    edit, message = CASES[case]
    folder = Path(shutil.copytree(bases["llama"], tmp_path / "base"))
    edit(folder)
    with pytest.raises(UnsupportedFormat, match=message) as caught:
        open_base(str(folder), precision="int8", device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_a_config_that_cannot_compute_is_found_when_the_base_is_loaded(bases, tmp_path, precision):
    """The buckets' formula divides by log(max_distance / 8): 0 here."""
    folder = Path(shutil.copytree(bases["t5"], tmp_path / "base"))
    config(relative_attention_num_buckets=32, relative_attention_max_distance=8)(folder)
    with pytest.raises(UnsupportedFormat, match="the model that its config describes cannot compute"):
        load_base(str(folder), precision=precision, device="cpu")


def test_a_start_token_that_is_none_is_refused(bases, tmp_path):
    folder = Path(shutil.copytree(bases["t5"], tmp_path / "base"))
    config(decoder_start_token_id=10**6)(folder)
    with pytest.raises(UnsupportedFormat, match="decoder_start_token_id 1000000 is no token"):
        open_base(str(folder), precision="int8", device="cpu")


def patched(*changes):
    """A whole GGUF file with other bytes at some offsets."""

    def edit(path):
        content = bytearray(path.read_bytes())
        for offset, new in changes:
            content[offset : offset + len(new)] = new
        path.write_bytes(content)

    return edit


def nested(path):
    """A list in a list in a list, 100,000 deep."""
    key = b"x"
    value = struct.pack("<IQ", 9, 1) * 100_000
    path.write_bytes(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, len(key)) + key + struct.pack("<I", 9) + value)


def long_list(path):
    path.write_bytes(
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"x" + struct.pack("<IIQ", 9, 0, 2**22) + bytes(2**22)
    )


GGUF_CASES = {
    "empty": (lambda p: p.write_bytes(b""), "not a whole GGUF"),
    "cut in the header": (lambda p: p.write_bytes(p.read_bytes()[:300]), "not a whole GGUF"),
    "cut in the tensors": (lambda p: p.write_bytes(p.read_bytes()[:-100]), r"ends at byte \d+ of \d+"),
    "version 9": (patched((4, struct.pack("<I", 9))), "version 9"),
    "2^60 tensors": (patched((8, struct.pack("<Q", 2**60))), f"claims {2**60} tensors"),
    "2^63 values": (patched((16, struct.pack("<Q", 2**63))), f"claims {2**63} metadata values"),
    "a key of 2^63 bytes": (patched((24, struct.pack("<Q", 2**63))), f"claims {2**63} bytes of text"),
    "deep": (nested, "a value of unknown type 9"),
    "long": (long_list, "claims 4194304 array elements"),
}


@pytest.mark.parametrize("case", GGUF_CASES)
def test_a_broken_gguf_file_is_refused_in_one_line(case, tmp_path):
    edit, message = GGUF_CASES[case]
    path = gguf_files.write(tmp_path, "llama")
    edit(path)
    with pytest.raises(UnsupportedFormat, match=message) as caught:
        open_base(str(path), precision="int8", device="cpu")
    assert "\n" not in str(caught.value)


def test_sizes_in_gguf_metadata_are_bounded_too(tmp_path):
    path = gguf_files.write(tmp_path, "llama", metadata={"llama.block_count": 2**32 - 1})
    with pytest.raises(UnsupportedFormat, match=r"num_hidden_layers = 4294967295, but the weights allow"):
        open_base(str(path), precision="int8", device="cpu")


@pytest.mark.parametrize("kind", ["t5", "t5-tied", "llama-tied", "gemma3"])
def test_what_transformers_and_we_write_passes(bases, tmp_path, kind):
    """int8 rows too, with their scales beside them; every parameter is matched but a tied head."""
    saved = save_base(load_base(str(bases[kind]), device="cpu"), tmp_path / "int8")
    opened = open_base(str(saved), precision="int8", device="cpu")
    unmatched = {n for n, _ in opened.model.named_parameters()} - set(
        match_tensors(opened.model, opened.family, opened.checkpoint)
    )
    assert unmatched <= {"lm_head.weight", *(f"{copy}.weight" for copy in opened.family.embedding_copies)}
