"""Tasks: examples from files, how they become tokens, and how answers are scored."""

from lorahub_edge.tasks.examples import Example, draw_examples, examples_text, load_examples
from lorahub_edge.tasks.lost import InputsWereCut, TextWasLost
from lorahub_edge.tasks.metrics import exact_match
from lorahub_edge.tasks.prompt import EncodedExample, PromptFormat

__all__ = [
    "EncodedExample",
    "Example",
    "InputsWereCut",
    "PromptFormat",
    "TextWasLost",
    "draw_examples",
    "exact_match",
    "examples_text",
    "load_examples",
]
