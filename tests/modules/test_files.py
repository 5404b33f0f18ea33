"""PEFT folders of today and of 2023 are read; everything that cannot be composed exactly is refused by name."""

import json
import math
import os
import pickle
import re
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorahub_edge.errors import UnsupportedFormat
from lorahub_edge.modules import ModuleFolder, read_module
from tests import tiny

# adapter_config.json as the modules of 2023 carry it
CONFIG_2023 = {
    "base_model_name_or_path": "google/flan-t5-large", "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
    "init_lora_weights": True, "layers_pattern": None, "layers_to_transform": None, "lora_alpha": 8,
    "lora_dropout": 0.1, "modules_to_save": None, "peft_type": "LORA", "r": 4, "revision": None,
    "target_modules": ["q", "v"], "task_type": "SEQ_2_SEQ_LM",
}  # fmt: skip


@pytest.fixture
def folder(module_folders, tmp_path) -> Path:
    """A copy of one module, free to be broken."""
    return Path(shutil.copytree(module_folders["t5"] / "m0", tmp_path / "m0"))


def edit_config(folder: Path, **values) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def edit_tensors(folder: Path, edit) -> None:
    path = folder / "adapter_model.safetensors"
    save_file(edit(load_file(path)), path)


def test_factors_and_scaling_are_those_of_peft(folder, bases):
    """Each target's delta equals the one that PEFT computes for its own file."""
    from peft import PeftModel
    from transformers import AutoModelForSeq2SeqLM

    module = read_module(folder)
    peft = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(bases["t5"]), folder)
    assert len(module.factors) == 12  # q and v of 2 encoder, 2 decoder and 2 cross attentions
    for target, factors in module.factors.items():
        expected = peft.get_submodule(f"base_model.model.{target}").get_delta_weight("default")
        torch.testing.assert_close(factors.delta(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "config",
    [
        {"use_rslora": True, "r": 9, "lora_alpha": 6},
        {"rank_pattern": {"SelfAttention.q": 2, "block.1.layer.0.SelfAttention.v": 3}, "r": 8},
        {"alpha_pattern": {"EncDecAttention.v": 32}, "lora_alpha": 4},
        {"rank_pattern": {r"^encoder\.block\.0\.layer\.0\.SelfAttention\.q": 5}},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.3},
    ],
)
def test_every_setting_that_changes_the_scaling_is_honoured(bases, tmp_path, config):
    from peft import PeftModel
    from transformers import AutoModelForSeq2SeqLM

    made = tiny.save_module(bases["t5"], tmp_path / "made", "t5", seed=1, **config)
    peft = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(bases["t5"]), made)
    for target, factors in read_module(made).factors.items():
        expected = peft.get_submodule(f"base_model.model.{target}").get_delta_weight("default")
        torch.testing.assert_close(factors.delta(), expected, rtol=1e-5, atol=1e-7)


def test_a_module_of_2023_reads_the_same(folder):
    expected = read_module(folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG_2023))
    module = read_module(folder)
    assert set(module.factors) == set(expected.factors)
    for target, factors in module.factors.items():
        assert torch.equal(factors.A, expected.factors[target].A)
        assert factors.scaling == expected.factors[target].scaling == 2.0


def test_a_file_from_before_torch_1_6_is_read(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin", _use_new_zipfile_serialization=False)
    assert len(read_module(folder).factors) == 12


def test_half_precision_factors_become_float32(folder):
    edit_tensors(folder, lambda t: {k: v.half() for k, v in t.items()})
    factors = next(iter(read_module(folder).factors.values()))
    assert factors.A.dtype == factors.B.dtype == torch.float32


def test_real_modules_of_other_tools_are_read(shared_data):
    large = read_module(shared_data / "adapters" / "t5-large-bias-r16-peft0.18")
    assert len(large.factors) == 144
    assert {f.scaling for f in large.factors.values()} == {2.0}
    assert read_module(shared_data / "adapters" / "t5-small-cnndm-r8-peft0.15").factors


class Malicious:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("kind", ["torch zip", "plain pickle"])
def test_a_malicious_pickle_is_refused_and_does_not_run(folder, tmp_path, kind):
    (folder / "adapter_model.safetensors").unlink()
    proof = tmp_path / "executed"
    payload = {"base_model.model.x.lora_A.weight": Malicious(proof)}
    if kind == "torch zip":
        torch.save(payload, folder / "adapter_model.bin")
    else:
        (folder / "adapter_model.bin").write_bytes(pickle.dumps(payload))
    with pytest.raises(UnsupportedFormat, match="nothing in it was executed"):
        read_module(folder)
    assert not proof.exists()
    pickle.loads(pickle.dumps(Malicious(proof)))  # the payload is a real one
    assert proof.exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"peft_type": "PROMPT_TUNING"}, "peft_type is 'PROMPT_TUNING'"),
        ({"peft_type": None}, "peft_type is None"),
        ({"use_dora": True}, "use_dora is True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base itself"),
        ({"r": "16"}, "r is '16'"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"rank_pattern": ["q"]}, "rank_pattern is"),
        ({"rank_pattern": {"(": 3}}, r"rank_pattern has '\(', which is no pattern"),
        ({"rank_pattern": {"(?=q)": 3}}, r"which is no pattern \('\(\?=q\)' is not read\)"),
        ({"rank_pattern": {"((x{1000}){1000}){1000}": 3}}, "needs more than 200000 states"),
        ({"r": int("9" * 400)}, "r is 9{30}.*9; expected a number"),
        ({"alpha_pattern": {"q": int("-" + "9" * 400)}}, r"alpha_pattern\['q'\] is -9{30}.*; expected a number"),
        ({"lora_alpha": 1e39}, "lora_alpha is 1e\\+39; expected a number"),
        ({"lora_alpha": float("-inf")}, "lora_alpha is -inf"),
        ({"peft_type": "x" * 10**5}, "peft_type is 'x{30}[^ ]{0,60}'; only"),
        ({"alpha_pattern": {"q": "abc"}}, r"alpha_pattern\['q'\] is 'abc'; expected a number"),
        ({"alpha_pattern": {"q": float("nan")}}, r"alpha_pattern\['q'\] is nan"),
        ({"use_rslora": "false"}, "use_rslora is 'false'"),
        ({"r": 8}, "has rank 4, adapter_config.json says 8"),
    ],
)
def test_what_cannot_be_composed_exactly_is_refused_by_name(folder, values, message):
    edit_config(folder, **values)
    with pytest.raises(UnsupportedFormat, match=message) as caught:
        read_module(folder)
    assert str(folder) in str(caught.value)


def drop_one(tensors):
    return {k: v for k, v in tensors.items() if "block.0.layer.0.SelfAttention.q.lora_B" not in k}


def poison(tensors):
    tensors["base_model.model.encoder.block.1.layer.0.SelfAttention.v.lora_B.weight"][3, 1] = float("nan")
    return tensors


def add(name, shape):
    return lambda tensors: {**tensors, name: torch.ones(shape)}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (poison, "encoder.block.1.layer.0.SelfAttention.v.lora_B.weight has NaN"),
        (drop_one, "has lora_A only"),
        (lambda t: {}, "holds no LoRA factors"),
        (add("base_model.model.lm_head.weight", (4, 4)), "lm_head.weight .* is not a LoRA factor"),
        (add("base_model.model.shared.lora_embedding_A", (4, 4)), "lora_embedding_A .* is not a LoRA factor"),
        (add("base_model.model.x.lora_magnitude_vector", (4,)), "lora_magnitude_vector .* is not a LoRA factor"),
    ],
)
def test_tensors_that_are_no_plain_factors_are_refused(folder, edit, message):
    edit_tensors(folder, edit)
    with pytest.raises(UnsupportedFormat, match=message):
        read_module(folder)


Q = "encoder.block.0.layer.0.SelfAttention.q"


@pytest.mark.parametrize("adapter", ["default", "other-task"])
def test_one_adapter_may_have_a_name(folder, adapter):
    expected = read_module(folder)
    edit_tensors(folder, lambda t: {k.replace(".weight", f".{adapter}.weight"): v for k, v in t.items()})
    assert set(read_module(folder).factors) == set(expected.factors)


@pytest.mark.parametrize(
    ("again", "message"),
    [
        (f"base_model.model.{Q}.lora_A.other.weight", r"holds 2 adapters \(one without a name, other\)"),
        (f"{Q}.lora_A.weight", f"{Q}.lora_A.weight and {Q}.lora_A.weight are the same factor"),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_factor_that_is_there_twice_is_refused(folder, suffix, again, message):
    """Two adapters in one file, or two spellings of one key: the last one must not win."""
    edit_tensors(folder, lambda t: {**t, again: t[f"base_model.model.{Q}.lora_A.weight"].clone()})
    if suffix == "bin":
        torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
        (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UnsupportedFormat, match=message.replace(f"{Q}.lora_A.weight and", ".* and")):
        read_module(folder)


def test_a_setting_that_is_there_twice_is_refused(folder):
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().replace('"r": 4', '"r": 4, "lora_alpha": 4000'))
    with pytest.raises(UnsupportedFormat, match="it has the key 'lora_alpha' twice"):
        read_module(folder)


def headers_only(folder: Path, shapes: dict[str, list[int]]) -> None:
    """A safetensors file of so many zeros as a hole: terabytes on a disk that has none of them."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with open(folder / "adapter_model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([2_000_000, 32], [32, 2_000_000], "has rank 2000000 between 32 and 32 features"),
        ([2**62, 0], [0, 2**62], "expected (rank, in_features) and (out_features, rank)"),
        ([4, 32], [2**50, 0], "expected (rank, in_features) and (out_features, rank)"),
    ],
)
def test_shapes_no_module_has_are_refused_before_memory_is_taken(folder, a, b, message):
    headers_only(folder, {f"{Q}.lora_A.weight": a, f"{Q}.lora_B.weight": b})
    edit_config(folder, r=a[0])
    for read in (read_module, lambda folder: ModuleFolder("m", folder).outline()):
        with pytest.raises(UnsupportedFormat, match=re.escape(message)):
            read(folder)


def quantised(values):
    return torch.quantize_per_tensor(values, 0.1, 0, torch.qint8)


def repeated(values):
    return values[:, :1].expand(-1, 2**40)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (torch.Tensor.to_sparse, "expected plain tensors"),
        (torch.Tensor.to_sparse_csr, "expected plain tensors"),
        (quantised, "expected plain tensors"),
        (lambda values: values.to("meta"), "expected plain tensors"),
        (repeated, "expected plain tensors"),
        (lambda values: values.to(torch.complex64), "of torch.complex64 is not a LoRA factor"),
        (lambda values: values.to(torch.int64), "of torch.int64 is not a LoRA factor"),
        (lambda values: values.to(torch.float8_e4m3fn), "float8_e4m3fn is not a LoRA factor|not a plain file"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch warns that it may change what these are
@pytest.mark.parametrize("is_zip", [True, False])
def test_unusual_tensors_in_a_bin_file_are_refused(folder, change, message, is_zip):
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    key = f"base_model.model.{Q}.lora_A.weight"
    tensors[key] = change(tensors[key])
    torch.save(tensors, folder / "adapter_model.bin", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(UnsupportedFormat, match=message):
        read_module(folder)


def test_tensors_that_share_values_are_refused(folder):
    """A file of megabytes must not become terabytes: many factors may be views of one."""
    (folder / "adapter_model.safetensors").unlink()
    shared = torch.ones(64, 64)
    torch.save({f"{k}.lora_{f}.weight": shared for k in range(9) for f in "AB"}, folder / "adapter_model.bin")
    with pytest.raises(UnsupportedFormat, match="larger than the file"):
        read_module(folder)


def test_a_compressed_bin_file_is_refused(folder):
    """A megabyte may unpack to gigabytes."""
    plain, packed = folder / "plain.bin", folder / "adapter_model.bin"
    torch.save(load_file(folder / "adapter_model.safetensors"), plain)
    (folder / "adapter_model.safetensors").unlink()
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(UnsupportedFormat, match="is compressed"):
        read_module(folder)


def test_names_that_are_no_text_are_refused(folder):
    (folder / "adapter_model.safetensors").unlink()
    torch.save({7: torch.ones(2, 2)}, folder / "adapter_model.bin")
    with pytest.raises(UnsupportedFormat, match="expected plain tensors by name, but '7'"):
        read_module(folder)


def test_a_key_with_control_characters_is_one_line(folder):
    edit_tensors(folder, lambda t: {**t, f"{Q}\n\x1b[2J.lora_A.weight": torch.ones(4, 32)})
    with pytest.raises(UnsupportedFormat, match=r"q\\n\\x1b\[2J.lora_A.weight .* is not a LoRA factor"):
        read_module(folder)


@pytest.mark.parametrize(
    "make", [os.mkfifo, Path.mkdir, lambda p: p.symlink_to(p), lambda p: p.symlink_to("/dev/zero")]
)
def test_a_config_that_is_no_file_is_refused(folder, make):
    (folder / "adapter_config.json").unlink()
    make(folder / "adapter_config.json")
    with pytest.raises(UnsupportedFormat, match=r"no adapter_config\.json that is a file"):
        read_module(folder)


def test_a_huge_config_is_refused(folder):
    os.truncate(folder / "adapter_config.json", 2 << 30)
    with pytest.raises(UnsupportedFormat, match="expected at most 1048576 bytes of JSON"):
        read_module(folder)


def test_a_truncated_file_is_refused(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UnsupportedFormat, match="not a whole safetensors file"):
        read_module(folder)


@pytest.mark.parametrize("content", ["", "[" * 100_000, "[1, 2]", '{"peft_type": "LORA"'])
def test_a_config_that_is_no_json_object_is_refused(folder, content):
    (folder / "adapter_config.json").write_text(content)
    with pytest.raises(UnsupportedFormat, match=r"adapter_config\.json"):
        read_module(folder)


def test_a_folder_without_weights_or_config_is_refused(folder):
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UnsupportedFormat, match="found neither"):
        read_module(folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(UnsupportedFormat, match=r"no adapter_config\.json"):
        read_module(folder)
