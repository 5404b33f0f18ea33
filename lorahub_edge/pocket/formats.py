"""How the pocket tasks want an answer: the plain word, or one of seven forms.

LoRAHub's exact match ignores case and full stops, so no form may differ from another in those alone.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """`apply` turns an answer into the target; `wordings` are the instructions seen in training."""

    name: str
    summary: str
    apply: Callable[[str], str]
    wordings: tuple[str, ...]
    letters_only: bool = False


PLAIN = Format("plain", "the answer alone", lambda answer: answer, ("",))
FORMATS = (
    Format(
        "sentence",
        "a whole sentence",
        lambda answer: f"the answer is {answer}.",
        ("write a sentence.", "use a full sentence.", "in a sentence.", "answer in full words."),
    ),
    Format(
        "braces",
        "a record in braces",
        lambda answer: f"{{ answer: {answer} }}",
        ("use braces.", "write a json object.", "in braces.", "answer in json."),
    ),
    Format(
        "twice",
        "the answer two times",
        lambda answer: f"{answer} and {answer}",
        ("write it twice.", "two times.", "say it twice.", "answer two times."),
    ),
    Format(
        "initial",
        "only the first letter",
        lambda answer: answer[0],
        ("write the initial.", "only one letter.", "say the initial.", "answer in one letter."),
        letters_only=True,
    ),
    Format(
        "thanks",
        "the answer with thanks",
        lambda answer: f"{answer}, thank you",
        ("say thank you.", "be polite.", "answer politely.", "write it with thanks."),
    ),
    Format(
        "question",
        "the answer as a question",
        lambda answer: f"is it {answer}?",
        ("write a question.", "ask it.", "as a question.", "answer by asking."),
    ),
    Format(
        "labelled",
        "a label and the answer",
        lambda answer: f"result: {answer}",
        ("write a label.", "use a label.", "with a label.", "answer with result."),
    ),
)
BY_NAME = {form.name: form for form in (PLAIN, *FORMATS)}
NUMERIC_SKILLS = frozenset({"count_words", "largest", "smallest", "odd_number", "next_number", "previous_number"})


def fits(skill_name: str, form: Format) -> bool:
    """Whether the form can be used with the skill's answers: a number has no first letter."""
    return not (form.letters_only and skill_name in NUMERIC_SKILLS)
