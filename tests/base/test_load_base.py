"""A base loaded by us computes what transformers computes, for every family, precision and file format."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from lorahub_edge.base import Int8Linear, Int8Weight, load_base, save_base
from lorahub_edge.errors import InvalidInput, OutputExists, UnsupportedFormat

KINDS = ["t5", "t5-tied", "llama", "llama-tied", "gemma2", "gemma3"]
IDS = torch.tensor([[6, 11, 4, 9, 1], [12, 5, 8, 7, 1]])
LABELS = torch.tensor([[14, 1], [15, 1]])


def logits(model, is_seq2seq):
    inputs = {"input_ids": IDS, "labels": LABELS} if is_seq2seq else {"input_ids": IDS}
    with torch.inference_mode():
        return model(**inputs).logits


def reference(folder: Path, is_seq2seq: bool):
    auto = AutoModelForSeq2SeqLM if is_seq2seq else AutoModelForCausalLM
    # gemma2's cap is in no other; up to transformers 5.20 it is not the default
    chosen = {"attn_implementation": "eager"} if folder.name == "gemma2" else {}
    return auto.from_pretrained(folder, **chosen).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_fp32_logits_equal_transformers(bases, kind):
    is_seq2seq = kind.startswith("t5")
    expected = logits(reference(bases[kind], is_seq2seq), is_seq2seq)
    torch.testing.assert_close(
        logits(load_base(str(bases[kind]), precision="fp32", device="cpu").model, is_seq2seq), expected
    )


@pytest.mark.parametrize("kind", KINDS)
def test_int8_is_the_float_model_with_rounded_matrices(bases, kind):
    """With float inputs everywhere, the only difference to transformers is the rounding of the weights themselves."""
    is_seq2seq = kind.startswith("t5")
    base = load_base(str(bases[kind]), device="cpu")
    model = reference(bases[kind], is_seq2seq)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "relative_attention_bias" not in name:
            parameter.data = Int8Weight.from_float(parameter.data).to_float()
    assert tied == ("tied" in kind or kind.startswith("gemma"))
    for module in base.model.modules():
        if isinstance(module, Int8Linear):
            module.engine = "dequantize"
    torch.testing.assert_close(logits(base.model, is_seq2seq), logits(model, is_seq2seq), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_int8_holds_no_float_matrix_and_shares_a_tied_head(bases, kind):
    base = load_base(str(bases[kind]), device="cpu")
    float_matrices = [n for n, p in base.model.named_parameters() if p.ndim == 2 and "relative_attention_bias" not in n]
    assert float_matrices == []
    head, embedding = (base.model.get_submodule(p) for p in (base.family.head, base.family.embedding))
    shares = head.codes.data_ptr() == embedding.codes.data_ptr()
    assert shares == ("tied" in kind or kind.startswith("gemma"))
    assert not any(p.is_meta for p in [*base.model.parameters(), *base.model.buffers()])


@pytest.mark.parametrize("precision", ["int8", "bf16", "fp32"])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_again_gives_the_same_logits(bases, kind, precision, tmp_path):
    is_seq2seq = kind.startswith("t5")
    base = load_base(str(bases[kind]), precision=precision, device="cpu")
    again = load_base(str(save_base(base, tmp_path / "saved")), precision=precision, device="cpu")
    assert torch.equal(logits(base.model, is_seq2seq), logits(again.model, is_seq2seq))


def test_saved_float_base_gives_the_same_loss_in_transformers(bases, tmp_path):
    """The untied FLAN-T5 trap: a config that claims a tied head makes transformers scale the logits."""
    base = load_base(str(bases["t5"]), precision="fp32", device="cpu")
    folder = save_base(base, tmp_path / "saved")
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    torch.testing.assert_close(logits(reference(folder, True), True), logits(base.model, True))


def test_untied_t5_is_not_scaled_even_if_its_config_says_tied(bases, tmp_path):
    """What transformers 5 writes for an untied T5 loads with the loss of the tensors, not of the config's claim."""
    folder = tmp_path / "claims-tied"
    shutil.copytree(bases["t5"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    honest = load_base(str(bases["t5"]), precision="fp32", device="cpu")
    claimed = load_base(str(folder), precision="fp32", device="cpu")
    assert torch.equal(logits(claimed.model, True), logits(honest.model, True))
    # and the trap is real: transformers itself is led astray by this folder
    assert not torch.allclose(logits(reference(folder, True), True), logits(honest.model, True), atol=0.1)


@pytest.mark.parametrize("kind", ["t5", "t5-tied", "llama", "llama-tied"])
def test_a_full_state_dict_is_read_like_transformers_does(bases, tmp_path, kind):
    """It repeats a tied embedding as the head; that must not pass for a head of its own."""
    is_seq2seq = kind.startswith("t5")
    model = reference(bases[kind], is_seq2seq)
    folder = tmp_path / "bin"
    shutil.copytree(bases[kind], folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    ours = load_base(str(folder), precision="fp32", device="cpu")
    torch.testing.assert_close(logits(ours.model, is_seq2seq), logits(model, is_seq2seq))


def test_an_untied_llama_without_its_head_is_incomplete(bases, tmp_path):
    from safetensors.torch import load_file, save_file

    def edit(folder):
        tensors = load_file(folder / "model.safetensors")
        del tensors["lm_head.weight"]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(UnsupportedFormat, match=r"lacks tensor lm_head\.weight"):
        load_base(str(broken(tmp_path, bases["llama"], edit)), device="cpu")


def test_a_t5_config_without_a_start_token_starts_with_the_pad_token(bases, tmp_path):
    def edit(folder):
        config = json.loads((folder / "config.json").read_text())
        del config["decoder_start_token_id"]
        (folder / "config.json").write_text(json.dumps(config))

    assert load_base(str(broken(tmp_path, bases["t5"], edit)), device="cpu").model.config.decoder_start_token_id == 0


def test_bin_and_sharded_checkpoints_equal_safetensors(bases, tmp_path):
    model = reference(bases["llama"], False)
    expected = logits(load_base(str(bases["llama"]), device="cpu").model, False)
    as_bin, sharded = tmp_path / "bin", tmp_path / "sharded"
    shutil.copytree(bases["llama"], as_bin)
    torch.save(model.state_dict(), as_bin / "pytorch_model.bin")
    (as_bin / "model.safetensors").unlink()
    shutil.copytree(bases["llama"], sharded)
    (sharded / "model.safetensors").unlink()
    model.save_pretrained(sharded, max_shard_size="20KB")
    assert (sharded / "model.safetensors.index.json").exists()
    for folder in (as_bin, sharded):
        assert torch.equal(logits(load_base(str(folder), device="cpu").model, False), expected)


def test_absmax_gives_the_row_scale_back_bit_for_bit():
    """Both directions round; together they must not move a scale, or a base would drift with every save."""
    generator = torch.Generator().manual_seed(0)
    absmax = torch.rand(1_000_000, generator=generator) * 10.0 ** torch.randint(
        -30, 30, (1_000_000,), generator=generator
    )
    codes = torch.zeros(len(absmax), 1, dtype=torch.int8)
    weight = Int8Weight.from_absmax(codes, absmax)
    assert torch.equal(Int8Weight.from_absmax(codes, weight.absmax()).row_scale, weight.row_scale)
    zero = Int8Weight.from_absmax(codes[:1], torch.zeros(1))
    assert zero.row_scale.item() == 1.0


def test_saved_int8_linears_are_read_by_bitsandbytes(bases, tmp_path):
    """Codes and absmax under bitsandbytes' names; its own dequantisation gives our values."""
    functional = pytest.importorskip("bitsandbytes").functional
    from safetensors.torch import load_file

    base = load_base(str(bases["t5"]), device="cpu")
    tensors = load_file(save_base(base, tmp_path / "saved") / "model.safetensors")
    name = "encoder.block.0.layer.0.SelfAttention.q"
    values = functional.int8_vectorwise_dequant(tensors[f"{name}.weight"], tensors[f"{name}.SCB"])
    torch.testing.assert_close(values, base.model.get_submodule(name).int8_weight.to_float(), rtol=1e-6, atol=0)


def broken(tmp_path, source, edit) -> Path:
    folder = tmp_path / "broken"
    shutil.copytree(source, folder)
    edit(folder)
    return folder


def change_config(**values):
    def edit(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return edit


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (truncate, "not a whole safetensors file"),
        (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
        (change_config(num_layers=3, num_decoder_layers=3), "lacks tensor"),
        (change_config(d_ff=48), "expected shape"),
        (change_config(model_type="bert"), "model type 'bert' is not supported"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json: not readable as JSON"),
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer"),
    ],
)
def test_broken_bases_are_refused_with_the_reason(bases, tmp_path, edit, message):
    with pytest.raises(UnsupportedFormat, match=message):
        load_base(str(broken(tmp_path, bases["t5"], edit)), device="cpu")


def test_nan_in_a_checkpoint_is_refused(bases, tmp_path):
    from safetensors.torch import load_file, save_file

    def edit(folder):
        tensors = load_file(folder / "model.safetensors")
        tensors["encoder.block.0.layer.0.SelfAttention.q.weight"][3, 4] = torch.nan
        save_file(tensors, folder / "model.safetensors")

    with pytest.raises(UnsupportedFormat, match=r"SelfAttention\.q\.weight.*row 3"):
        load_base(str(broken(tmp_path, bases["t5"], edit)), device="cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spec": "no/such/folder/here"}, "was not found"),
        ({"spec": "pocket", "precision": "int4"}, "precision"),
        ({"spec": "pocket", "device": "tpu"}, "device"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        load_base(**arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_an_error_not_a_fallback(bases):
    with pytest.raises(InvalidInput, match="no CUDA device"):
        load_base(str(bases["t5"]), device="cuda")


def test_save_base_does_not_touch_an_existing_folder(bases, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("keep")
    base = load_base(str(bases["t5"]), device="cpu")
    with pytest.raises(OutputExists):
        save_base(base, tmp_path / "mine")
    assert (tmp_path / "mine" / "file").read_text() == "keep"


def test_loading_never_holds_the_float_model(tmp_path):
    """Peak of a fresh process: the finished int8 base and one float tensor, straight from the file."""
    import subprocess
    import sys

    from transformers import AutoConfig, LlamaConfig

    folder = tmp_path / "big"
    config = LlamaConfig(
        vocab_size=8192, hidden_size=1024, intermediate_size=2816, num_hidden_layers=12, num_attention_heads=16,
        max_position_embeddings=512, pad_token_id=0, eos_token_id=1, bos_token_id=3,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    float_bytes = sum(p.numel() * 4 for p in model.parameters())
    model.save_pretrained(folder)
    from tests import tiny

    tiny.save_tokenizer(folder, is_seq2seq=False)
    del model
    script = (
        "import sys\nfrom lorahub_edge.base import load_base\nfrom lorahub_edge.measure import peak_memory\n"
        "before = peak_memory()['VmHWM_bytes']\nbase = load_base(sys.argv[1], device='cpu')\n"
        "after = peak_memory()\nprint(before, after['VmHWM_bytes'], after['RssAnon_bytes'], base.weight_bytes())"
    )
    result = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    before, peak, _, weight_bytes = map(int, result.stdout.split())
    assert AutoConfig.from_pretrained(folder).num_hidden_layers == 12
    assert weight_bytes < 0.3 * float_bytes
    largest_tensor = 8192 * 1024 * 4
    # slack for code loaded on the way and holes in the heap: 30 to 80 MB seen; holding all tensors takes 400 MB more
    assert peak - before < weight_bytes + largest_tensor + 120e6


@pytest.mark.parametrize("name", ["v_head.summary.weight", "encoder.position_ids", "encoder.rotary_emb.cos_cached"])
def test_tensors_that_change_no_answer_are_left_out(bases, tmp_path, name):
    folder = Path(shutil.copytree(bases["t5"], tmp_path / "base"))
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: torch.zeros(1, 4)}, folder / "model.safetensors")
    base = load_base(str(folder), precision="fp32", device="cpu")
    assert torch.equal(base.model.shared.weight, tensors["shared.weight"])
