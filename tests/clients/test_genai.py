"""onnxruntime-genai runs a decoder-only export as it is: its own loop gives the tokens that our service gives.

`make clients` installs it; without it these tests are skipped.
"""

import json
import shutil

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import lorahub_edge
from lorahub_edge.base.families import FAMILIES
from lorahub_edge.serve import GenerationSettings, OnnxModel, generate, open_folder
from tests import tiny
from tests.clients.test_clients import HERE, N_TOKENS, TEXTS, ask, own_environment

TYPES = [kind for family in FAMILIES if not family.is_seq2seq for kind in family.model_types]


@pytest.fixture(scope="module")
def answers():
    """Asks onnxruntime-genai; one process for all requests."""
    command = [own_environment("genai", "onnxruntime-genai"), HERE / "answer_genai.py"]
    empty = {"adapter": None, "max_new_tokens": N_TOKENS, "texts": [], "prompts": []}
    return lambda requests: ask(command, [empty | request for request in requests])


def with_byte_pairs(folder):
    """Give a tiny base a tokenizer of the kind that decoder-only models have, and the rows for its tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=tiny.SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    names = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    model = tiny.make_model("qwen3")
    model.resize_token_embeddings(tokenizer.get_vocab_size())
    tiny.save_model(model, folder, "qwen3")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


def served(folder, adapter):
    """Token ids of prompts and answers by our own service."""
    model = OnnxModel(open_folder(folder, adapter=adapter))
    prompts = [model.files.encode(text) for text in TEXTS]
    completions = generate(model, TEXTS, GenerationSettings(max_new_tokens=N_TOKENS))
    return [[*prompt, *completion.token_ids] for prompt, completion in zip(prompts, completions, strict=True)]


def test_its_greedy_tokens_are_those_of_our_service(answers, export_base, bases, module_folders, fast_export, tmp_path):
    """Llama with and without an adapter, Gemma, and a Qwen whose texts its own tokenizer encodes."""
    lorahub_edge.adapt(
        str(bases["llama"]), [str(module_folders["llama"])], list(tiny.ROWS), n_examples=4, budget=6, device="cpu",
        null_control=False, out=tmp_path / "run",
    )  # fmt: skip
    llama = fast_export(tmp_path / "run", tmp_path / "llama", with_adapter=True).folder
    qwen = fast_export(with_byte_pairs(tmp_path / "base"), tmp_path / "qwen", precision="fp16").folder
    cases = [(llama, "none"), (llama, "run"), (export_base("gemma3", "int8").folder, None), (qwen, None)]
    requests = [
        {"folder": str(folder), "prompts": [open_folder(folder).encode(text) for text in TEXTS]} for folder, _ in cases
    ]
    requests[1]["adapter"] = str(llama / "adapters" / "run.onnx_adapter")
    found = answers([*requests, {"folder": str(qwen), "texts": TEXTS}])
    expected = [served(*case) for case in cases]
    assert found == [*expected, expected[3]]
    assert found[0] != found[1]


def test_it_knows_every_type_of_model_that_we_export(answers, export_base, tmp_path):
    """A type that it does not know fails when the folder is loaded."""
    folder = shutil.copytree(export_base("llama", "int8").folder, tmp_path / "any")
    config = json.loads((folder / "genai_config.json").read_text())
    requests = []
    for kind in TYPES:
        requests.append({"folder": str(shutil.copytree(folder, tmp_path / kind)), "prompts": [[5, 6, 7]]})
        (tmp_path / kind / "genai_config.json").write_text(
            json.dumps({**config, "model": {**config["model"], "type": kind}})
        )
    assert len(answers(requests)) == len(TYPES)
