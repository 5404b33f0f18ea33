"""How the pocket tasks want an answer: the plain word, or one of six forms.

Some forms are wrappings, two need a decision (which option, yes or no), and one writes only the first letter. LoRAHub's
exact match ignores case and full stops, so no form may differ from another in those alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lorahub_edge.pocket import lexicon
from lorahub_edge.pocket.skills import Problem, sample


@dataclass(frozen=True)
class Format:
    """`apply` gives (text to append to the content, target)."""

    name: str
    summary: str
    apply: Callable[[Problem, np.random.Generator], tuple[str, str]]
    wordings: tuple[str, ...]
    letters_only: bool = False


def choice(problem: Problem, rng: np.random.Generator) -> tuple[str, str]:
    """2 to 4 options in random order; the target is the right one's name."""
    wrong = sample(rng, problem.wrong, min(int(rng.integers(1, 4)), len(problem.wrong)))
    options = sample(rng, [problem.answer, *wrong], len(wrong) + 1)
    listed = " ".join(f"{name} {option}" for name, option in zip(lexicon.OPTION_NAMES, options, strict=False))
    return f" options: {listed}.", lexicon.OPTION_NAMES[options.index(problem.answer)]


def verdict(problem: Problem, rng: np.random.Generator) -> tuple[str, str]:
    """A claim that is right half the time; the target is yes or no."""
    right = bool(rng.integers(2))
    claim = problem.answer if right else sample(rng, problem.wrong, 1)[0]
    return f" claim: {claim}.", "yes" if right else "no"


PLAIN = Format("plain", "the answer alone", lambda problem, _: ("", problem.answer), ("",))
FORMATS = (
    Format(
        "sentence",
        "a whole sentence",
        lambda problem, _: ("", f"the answer is {problem.answer}."),
        ("write a sentence.", "use a full sentence.", "in a sentence.", "answer in full words."),
    ),
    Format(
        "braces",
        "a record in braces",
        lambda problem, _: ("", f"{{ answer: {problem.answer} }}"),
        ("use braces.", "write a json object.", "in braces.", "answer in json."),
    ),
    Format(
        "twice",
        "the answer two times",
        lambda problem, _: ("", f"{problem.answer} and {problem.answer}"),
        ("write it twice.", "two times.", "say it twice.", "answer two times."),
    ),
    Format(
        "initial",
        "only the first letter",
        lambda problem, _: ("", problem.answer[0]),
        ("write the initial.", "only one letter.", "say the initial.", "answer in one letter."),
        letters_only=True,
    ),
    Format(
        "choice",
        "the name of the right option",
        choice,
        ("write the option.", "which option is right?", "say the option.", "answer the option."),
    ),
    Format(
        "verdict",
        "yes or no to a claim",
        verdict,
        ("is the claim right?", "yes or no?", "say yes or no.", "answer yes or no."),
    ),
)
BY_NAME = {form.name: form for form in (PLAIN, *FORMATS)}
NUMERIC_SKILLS = frozenset({"count_words", "largest", "smallest", "odd_number", "next_number"})


def fits(skill_name: str, form: Format) -> bool:
    """Whether the form can be used with the skill's answers: a number has no first letter."""
    return not (form.letters_only and skill_name in NUMERIC_SKILLS)
