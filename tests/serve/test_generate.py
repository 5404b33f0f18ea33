"""generate: greedy, sampling, beams, stop texts and batches, with onnxruntime alone."""

import dataclasses
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import lorahub_edge
from lorahub_edge.errors import InvalidInput, UnsupportedFormat
from lorahub_edge.serve import GenerationSettings, OnnxModel, generate, open_folder, stream
from lorahub_edge.serve import model as serve_model
from lorahub_edge.serve.beam import Beams
from tests import tiny
from tests.resealed import reseal

TEXTS = [text for text, _ in tiny.ROWS]


def test_serving_imports_neither_torch_nor_transformers(folders):
    """In a fresh process; the answers come all the same."""
    program = (
        "import sys\n"
        "from lorahub_edge.serve import OnnxModel, generate\n"
        "import lorahub_edge.serve.server\n"
        f"print(generate(OnnxModel({str(folders['t5'])!r}), ['is red a dog ?'])[0].finish_reason)\n"
        "print([m for m in ('torch', 'transformers', 'onnxscript') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[1:] == ["[]"], done.stderr


def test_a_batch_answers_as_each_text_alone(model):
    settings = GenerationSettings(max_new_tokens=12)
    assert generate(model, TEXTS, settings) == [generate(model, [text], settings)[0] for text in TEXTS]


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_beam_search_is_that_of_transformers(bases, folders, kind):
    """The torch model's own beam search, in int8, finds the same answers where they are not tied."""
    base = lorahub_edge.load_base(str(bases[kind]), device="cpu")
    model = OnnxModel(folders[kind])
    for text in TEXTS:
        ids = model.files.encode(text)
        expected = base.model.generate(
            input_ids=torch.tensor([ids]), max_new_tokens=8, num_beams=3, do_sample=False, length_penalty=1.0,
            early_stopping=False, eos_token_id=list(model.files.end_ids), pad_token_id=0,
        )[0].tolist()  # fmt: skip
        expected = expected[1:] if kind == "t5" else expected[len(ids) :]
        found = generate(model, [text], GenerationSettings(max_new_tokens=8, n_beams=3))[0]
        # transformers pads the answer, and the pad token may also be an answer's last word
        assert "".join(map(chr, found.token_ids)).rstrip("\0") == "".join(map(chr, expected)).rstrip("\0"), text


def test_an_end_less_likely_than_all_beams_is_not_set_aside(folders):
    """As in transformers: only the n_beams likeliest continuations may end, though 2 * n_beams are looked at."""
    first, flat = [0.2, 0.4, 0.3, 0.1], [0.01, 0.33, 0.33, 0.33]
    files = dataclasses.replace(open_folder(folders["t5"]), end_ids=(0,))
    beams = Beams(0, files, [1], GenerationSettings(max_new_tokens=2, n_beams=2, length_penalty=0.0))
    assert beams.advance(np.log([first]).astype(np.float32)) == [0, 0]
    assert beams.advance(np.log([flat, flat]).astype(np.float32)) == []
    assert beams.news().completion.token_ids[0] != 0


def test_sampling_repeats_from_its_seed_whatever_is_in_the_batch(model):
    settings = [GenerationSettings(max_new_tokens=8, temperature=1.5, seed=seed) for seed in range(len(TEXTS))]
    together = generate(model, TEXTS, settings)
    assert together == generate(model, TEXTS, settings)
    assert generate(model, TEXTS[2:3], settings[2]) == together[2:3]
    assert len({c.token_ids for c in generate(model, TEXTS[:1] * 6, settings)}) > 1


def test_top_k_one_and_a_tiny_top_p_are_greedy(model):
    greedy = generate(model, TEXTS, GenerationSettings(max_new_tokens=8))
    for options in ({"top_k": 1}, {"top_p": 1e-6}):
        assert generate(model, TEXTS, GenerationSettings(max_new_tokens=8, temperature=5.0, **options)) == greedy


def test_sampling_follows_the_probabilities():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    chooser = GenerationSettings(temperature=1.0, top_p=0.9, seed=1).chooser()
    counts = np.bincount([chooser.choose(logits) for _ in range(4000)], minlength=4) / 4000
    expected = np.array([0.5, 0.3, 0.15, 0]) / 0.95
    assert np.abs(counts - expected).max() < 0.03


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-40, 1e-5])
def test_tiny_temperatures_are_greedy(model, temperature):
    greedy = generate(model, TEXTS, GenerationSettings(max_new_tokens=8))
    assert generate(model, TEXTS, GenerationSettings(max_new_tokens=8, temperature=temperature)) == greedy


@pytest.mark.parametrize("options", [{}, {"top_p": 5e-324}, {"top_p": 1 - 2**-53}, {"top_k": 10**30}])
def test_tokens_that_cannot_be_are_never_chosen(options):
    """Whatever the temperature, and from float32's largest logits too."""
    logits = np.array([-np.inf, -3e38, 3e38, 3e38, -np.inf], np.float32)
    for temperature in (5e-324, 1e-5, 1.0, 100.0):
        chooser = GenerationSettings(temperature=temperature, seed=1, **options).chooser()
        assert {chooser.choose(logits) for _ in range(50)} <= {2, 3}


@pytest.mark.parametrize("bad", [[0, np.nan], [np.inf, 0], [-np.inf, -np.inf]])
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"n_beams": 2}])
def test_logits_that_are_not_finite_are_no_answer(folders, bad, settings):
    model = OnnxModel(folders["t5"], n_threads=1)
    model.begin = lambda prompts, mixes: (model.empty(1), np.array([[bad]], np.float32))
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        generate(model, TEXTS[:1], GenerationSettings(**settings))


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(model):
    for text in TEXTS:
        whole = generate(model, [text], GenerationSettings(max_new_tokens=12))[0]
        words = whole.text.split(" ")
        if len(words) < 3:
            continue
        stop = f" {words[1]}"
        cut = generate(model, [text], GenerationSettings(max_new_tokens=12, stop=(stop,)))[0]
        assert cut.text == whole.text[: whole.text.index(stop)]
        assert cut.finish_reason == "stop"
        pieces = list(stream(model, [text], GenerationSettings(max_new_tokens=12, stop=(stop,))))
        assert "".join(piece.text for piece in pieces) == cut.text


def test_a_stream_is_the_answer_in_pieces(model):
    settings = GenerationSettings(max_new_tokens=12)
    pieces = list(stream(model, TEXTS, settings))
    for row, completion in enumerate(generate(model, TEXTS, settings)):
        assert "".join(piece.text for piece in pieces if piece.row == row) == completion.text
        assert [p.completion for p in pieces if p.row == row][-1] == completion


def test_a_row_that_nobody_wants_leaves_the_batch(model):
    pieces = list(stream(model, TEXTS[:2], GenerationSettings(max_new_tokens=12), is_wanted=lambda row: row == 1))
    assert {piece.row for piece in pieces if piece.completion} == {1}


class Counting(OnnxModel):
    """Counts its calls, and forgets its end tokens."""

    def __init__(self, folder):
        super().__init__(folder, n_threads=1)
        self.files = dataclasses.replace(self.files, end_ids=())
        self.n_calls = 0

    def read(self, *arguments, **how):
        self.n_calls += 1
        return super().read(*arguments, **how)


def test_a_beam_search_that_nobody_wants_ends_at_the_next_step(folders):
    """And the row beside it is answered."""
    model = Counting(folders["t5"])
    settings = [GenerationSettings(max_new_tokens=50, n_beams=2), GenerationSettings(max_new_tokens=2, n_beams=2)]
    pieces = list(stream(model, TEXTS[:2], settings, is_wanted=lambda row: row == 1 or model.n_calls < 3))
    assert [piece.row for piece in pieces] == [1]
    assert model.n_calls == 3


class TwoTokensToACharacter:
    """A tokenizer as those of bytes are: half a character is a replacement mark."""

    def __init__(self, tokenizer):
        self.encode_batch = tokenizer.encode_batch

    def decode(self, token_ids, skip_special_tokens):
        return "é" * (len(token_ids) // 2) + "\ufffd" * (len(token_ids) % 2)


def test_a_stream_holds_half_characters_back(folders):
    model = OnnxModel(folders["t5"])
    model.files = dataclasses.replace(model.files, end_ids=(), tokenizer=TwoTokensToACharacter(model.files.tokenizer))
    *pieces, last = stream(model, TEXTS[:1], GenerationSettings(max_new_tokens=7))
    assert [piece.text for piece in pieces] == ["é"] * 3
    assert last.text == "\ufffd"
    assert last.completion.text == "ééé\ufffd"


def test_a_stream_holds_back_what_may_become_a_stop_text(model):
    for text in TEXTS:
        words = generate(model, [text], GenerationSettings(max_new_tokens=12))[0].text.split(" ")
        if len(words) < 4:
            continue
        stop = f"{words[1]} {words[2]}"
        pieces = list(stream(model, [text], GenerationSettings(max_new_tokens=12, stop=(stop,))))
        assert words[1] not in "".join(piece.text for piece in pieces)[len(words[0]) :]
        return
    pytest.fail("no answer is long enough")


def test_an_answer_ends_where_the_models_positions_end(folders):
    model = OnnxModel(folders["llama"])
    model.files = dataclasses.replace(model.files, end_ids=())
    n_positions = model.files.record["generation"]["max_positions"]
    text = "dog " * model.files.prompt.max_input_tokens
    answer = generate(model, [text], GenerationSettings(max_new_tokens=n_positions))[0]
    assert answer.n_prompt_tokens + len(answer.token_ids) == n_positions


def test_a_tokenizer_that_cuts_does_not_cut_here(folders, tmp_path):
    folder = tmp_path / "cutting"
    shutil.copytree(folders["t5"], folder)
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(path))
    reseal(folder)
    assert open_folder(folder).encode(TEXTS[0]) == open_folder(folders["t5"]).encode(TEXTS[0])


def test_characters_are_counted_before_a_prompt_is_tokenised(model):
    """32 for each token of the limit: longer texts never reach the tokenizer."""
    limit = model.files.prompt.max_input_tokens
    model.files = dataclasses.replace(model.files, tokenizer=None)
    with pytest.raises(InvalidInput, match=f"expected at most {32 * limit} characters .* received {32 * limit + 1};"):
        generate(model, ["x" * (32 * limit + 1)])


def test_an_empty_prompt_says_so(folders):
    model = OnnxModel(folders["llama"])
    prompt = dataclasses.replace(model.files.prompt, before="", after="", add_special_tokens=False)
    model.files = dataclasses.replace(model.files, prompt=prompt)
    with pytest.raises(InvalidInput, match="expected a text of at least one token, received an empty one"):
        generate(model, [""])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1}, "temperature: expected a number of at least 0"),
        ({"temperature": float("nan")}, "temperature: expected"),
        ({"top_p": 0}, "top_p: expected above 0"),
        ({"max_new_tokens": -1}, "max_new_tokens: expected at least 0"),
        ({"n_logprobs": 21}, "n_logprobs: expected 0 to 20"),
        ({"n_beams": 2, "n_logprobs": 1}, "beam search notes no log-probabilities"),
        ({"scores_prompt": True}, "scores_prompt: expected n_logprobs beside it"),
        ({"n_beams": 99}, "n_beams: expected from 1 to 16"),
        ({"n_beams": 2, "temperature": 1}, "beam search does not sample"),
        ({"stop": ("",)}, "stop: expected"),
        (
            {"stop": ("x" * 1001,)},
            r"stop: expected at most 16 texts of 1 to 1000 characters, in a tuple, received .{,40}$",
        ),
        ({"seed": -1}, "seed: expected at least 0"),
        ({"stop": "###"}, "stop: expected at most 16 texts of 1 to 1000 characters, in a tuple, received '###'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(InvalidInput, match=message):
        GenerationSettings(**settings)


def test_texts_that_are_too_long_and_wrong_folders_are_refused(model, tmp_path, monkeypatch):
    limit = model.files.prompt.max_input_tokens
    with pytest.raises(InvalidInput, match=f"expected 1 to {limit} tokens, received"):
        generate(model, ["dog " * (limit + 1)])
    with pytest.raises(ValueError, match=r"texts\[0\]: has half of a surrogate pair"):
        generate(model, ["a \ud800"])
    with pytest.raises(InvalidInput, match="no text was given"):
        generate(model, [])
    with pytest.raises(TypeError, match=r"texts: expected a list of texts, received one; put it in a list: \[text\]"):
        generate(model, "is red a dog ?")
    with pytest.raises(InvalidInput, match="is not an exported folder"):
        open_folder(tmp_path)
    monkeypatch.setattr(serve_model.onnxruntime, "__version__", "1.9.0")
    with pytest.raises(UnsupportedFormat, match=r"onnxruntime: expected 1\.20 or newer, received 1\.9\.0; upgrade it"):
        OnnxModel(model.files)
