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
from lorahub_edge.tasks.prompt import EncodedExample, PromptFormat

__all__ = [
    "AnswerScore",
    "EncodedExample",
    "Example",
    "InputsWereCut",
    "PromptFormat",
    "Row",
    "TextWasLost",
    "constant_answer",
    "draw_examples",
    "exact_match",
    "examples_text",
    "has_own_split",
    "is_row_file",
    "load_examples",
    "score_answers",
    "task_name",
    "to_examples",
]
