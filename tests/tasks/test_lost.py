"""What the tokenizer loses of inputs and answers is said once for each set, and counted in the manifest."""

import warnings

import pytest

import lorahub_edge
from lorahub_edge.base import load_base
from lorahub_edge.commands import quiet_libraries
from lorahub_edge.errors import LorahubEdgeWarning
from lorahub_edge.tasks import Example, InputsWereCut, PromptFormat, TextWasLost
from lorahub_edge.tasks.lost import warn_of_unknown, warn_of_unreachable
from tests import tiny

ROWS = [*tiny.ROWS[:3], ("is\nred red", "yes\nno"), ("{ a cat }", "{ cat }"), ("the dog", "  Yes.no ")]


@pytest.fixture(params=["t5", "llama"])
def prompt(request, bases):
    return PromptFormat.for_base(load_base(str(bases[request.param]), device="cpu"))


def test_answers_that_no_output_can_equal_are_counted_and_one_is_shown(prompt):
    answers = ["yes", " No ", "YES", "yes\nno", "{ cat }", "the  dog", "red"]
    # the tokenizer knows words in lower case only
    with pytest.warns(TextWasLost, match="5 of 7 answers of rows can never be matched.* ' No ', which becomes ''"):
        assert warn_of_unreachable(prompt, answers, "rows") == 5
    assert warn_of_unreachable(prompt, [" yes ", "yes", "red"], "rows") == 0


def test_inputs_with_unknown_words_are_counted(prompt):
    texts = ["is red", "is { red", "purple\x1b[31m"]
    prompts = [prompt.encode_input(text)[0] for text in texts]
    with pytest.warns(TextWasLost, match=r"2 of 3 inputs.*reads as <unk>, such as 'is \{ red"):
        assert warn_of_unknown(prompt, prompts, texts, "inputs") == 2
    assert warn_of_unknown(prompt, prompts[:1], texts[:1], "inputs") == 0


def test_an_unknown_token_that_also_ends_texts_says_nothing(prompt):
    prompt.tokenizer.eos_token = "<unk>"
    assert warn_of_unknown(prompt, [[2]], ["a"], "inputs") == 0


def test_adapt_says_it_once_for_each_set_and_counts_it(bases, module_folders):
    examples, test = [Example(*row) for row in ROWS[:5]], [Example(*row) for row in ROWS[3:]]
    with pytest.warns(TextWasLost) as caught:
        run = lorahub_edge.adapt(
            str(bases["t5"]), module_folders["t5"], examples, test=[*test, Example("a fish", "fish\tcat")], budget=4,
            null_control=False, device="cpu",
        )  # fmt: skip
    assert sorted(str(w.message).partition(",")[0].partition(" can")[0] for w in caught) == [
        "1 of 5 examples", "2 of 2 answers of the test", "2 of 5 answers of examples",
    ]  # fmt: skip
    counts = {name: run.manifest[name] for name in ("n_cut", "n_unknown", "n_unreachable", "n_test_unreachable")}
    assert counts == {"n_cut": 0, "n_unknown": 1, "n_unreachable": 2, "n_test_unreachable": 2}


def test_every_warning_of_ours_is_a_line_on_the_terminal(capsys):
    with quiet_libraries():
        for kind in (InputsWereCut, TextWasLost, type("New", (LorahubEdgeWarning,), {})):
            warnings.warn(f"{kind.__name__} happened", kind, stacklevel=1)
        warnings.warn("another library's", UserWarning, stacklevel=1)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"warning: {name} happened" for name in ("InputsWereCut", "TextWasLost", "New")]
