"""Patterns means what PEFT's regular expressions mean, and never takes long."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorahub_edge.errors import UnsupportedFormat
from lorahub_edge.modules.patterns import Patterns

ATOMS = [
    "a",
    "b",
    "0",
    ".",
    r"\.",
    r"\d",
    r"\w",
    r"\W",
    "[ab]",
    "[^a]",
    "[a-c.]",
    "[]a]",
    "^",
    "$",
    r"\Z",
    "{",
    "}",
    "]",
]
REPEATS = ["*", "+", "?", "{2}", "{1,2}", "{,2}", "{1,}", "*?", "{}", "{,}"]


def combined(inner):
    return st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("|".join),
        inner.map("({})".format),
        inner.map("(?:{}|)".format),
        st.tuples(inner, st.sampled_from(REPEATS)).map("({0[0]}){0[1]}".format),
        st.tuples(st.sampled_from(ATOMS), st.sampled_from(REPEATS)).map("".join),
    )


PATTERNS = st.recursive(st.sampled_from(ATOMS), combined, max_leaves=8)


@settings(max_examples=400)
@given(PATTERNS, st.lists(st.text("ab0.$^", max_size=6), max_size=5))
def test_a_pattern_matches_what_peft_matches(pattern, texts):
    try:
        expected = re.compile(rf"(.*\.)?({pattern})$")
    except re.error:
        with pytest.raises(UnsupportedFormat):
            Patterns({pattern: 1}, "here")
        return
    patterns = Patterns({pattern: 1}, "here")
    for text in texts:
        assert bool(patterns.value(text, 0)) == bool(expected.match(text)), text


@pytest.mark.parametrize(
    "pattern", [r"((\w+\.?)+!)", ".*" * 40 + "Z", "(a|a)" * 60 + "b", "(a?){900}b", "((a*)*)*b", "(a|b)*a(a|b){200}b"]
)
def test_a_pattern_that_hangs_python_takes_no_time(pattern):
    started = time.process_time()
    assert Patterns({pattern: 1}, "here").value("encoder.block." + "a" * 300, 0) == 0
    assert time.process_time() - started < 1


def test_the_first_pattern_that_matches_counts_among_a_thousand():
    """EVA writes one path per layer: hundreds of patterns for hundreds of targets."""
    paths = [f"model.layers.{layer}.mlp.{name}_proj" for layer in range(126) for name in ("gate", "up", "down")]
    patterns = Patterns({path: k for k, path in enumerate([*paths, "up_proj", "down_proj"])}, "here")
    assert [patterns.value(path, None) for path in paths] == list(range(len(paths)))
    assert patterns.value("model.layers.126.mlp.up_proj", None) == len(paths)
    assert patterns.value("model.layers.126.mlp.gate_proj", "default") == "default"


@pytest.mark.parametrize(
    "pattern", [r"(a)\1", "(?i)a", "a(?!b)", r"\bq", "a*+", "a{2}+", "[[a]]", "[a--b]", "q)|(v", "(" * 99]
)
def test_what_is_beyond_the_language_is_refused_by_name(pattern):
    with pytest.raises(UnsupportedFormat, match=r"here has .*, which is no pattern"):
        Patterns({pattern: 1}, "here")


def test_patterns_that_would_take_long_are_refused(monkeypatch):
    monkeypatch.setattr("lorahub_edge.modules.patterns.MAX_STEPS", 20_000)
    patterns = Patterns({".*" * 40 + f"Z{k}": k for k in range(50)}, "here")
    with pytest.raises(UnsupportedFormat, match="takes more than 20000 steps"):
        patterns.value("".join(map(str, range(1000))), 0)
