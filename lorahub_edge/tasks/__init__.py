"""Tasks: examples from files, how they become tokens, and how answers are scored."""

from lorahub_edge.tasks.examples import (
    Example,
    Row,
    draw_examples,
    examples_text,
    has_own_split,
    load_examples,
    to_examples,
)
from lorahub_edge.tasks.files import is_row_file, task_name
from lorahub_edge.tasks.lost import InputsWereCut, TextWasLost
from lorahub_edge.tasks.metrics import AnswerScore, constant_answer, exact_match, score_answers
from lorahub_edge.tasks.named import Examples, as_examples, origin_record, read_examples, read_test
from lorahub_edge.tasks.prompt import EncodedExample, PromptFormat
from lorahub_edge.tasks.score import Score

__all__ = [
    "AnswerScore",
    "EncodedExample",
    "Example",
    "Examples",
    "InputsWereCut",
    "PromptFormat",
    "Row",
    "Score",
    "TextWasLost",
    "as_examples",
    "constant_answer",
    "draw_examples",
    "exact_match",
    "examples_text",
    "has_own_split",
    "is_row_file",
    "load_examples",
    "origin_record",
    "read_examples",
    "read_test",
    "score_answers",
    "task_name",
    "to_examples",
]
