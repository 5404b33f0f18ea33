"""Training rows: the base's mixture and the 27 upstream tasks, one LoRA module each.

An upstream task is a skill in all forms, or a form over all skills. Its rows say the one thing it teaches in filler
words most of the time, so the skill (or form) has to sit in the module and cannot be read off the instruction; the
other thing is said clearly, so the module leaves it alone.
The base sees every skill and form under clear wording, and a small part under fillers.
"""

from collections.abc import Iterator

import numpy as np

from lorahub_edge.pocket import formats, heldout, lexicon, skills
from lorahub_edge.pocket.formats import Format
from lorahub_edge.pocket.skills import Skill, pick

Row = dict[str, str]
BLUR_IN_BASE = 0.15
BLUR_IN_TASK = 0.85
BLUR_OF_THE_OTHER = 0.1
PLAIN_IN_TASK = 0.3
TASK_NAMES = (*(skill.name for skill in skills.SKILLS), *(f"as_{form.name}" for form in formats.FORMATS))
SLOW_SKILLS = frozenset({"first_word", "last_word", "count_words", "largest", "smallest"})
PAIRS = tuple(
    (skill, form)
    for skill in skills.SKILLS
    for form in (formats.PLAIN, *formats.FORMATS)
    if formats.fits(skill.name, form) and (skill.name, form.name) not in heldout.KEPT_BACK
)


def filler_phrase(rng: np.random.Generator) -> str:
    """2 to 5 filler words with a full stop; they say nothing."""
    return " ".join(pick(rng, lexicon.FILLERS) for _ in range(int(rng.integers(2, 6)))) + "."


def wording(rng: np.random.Generator, known: tuple[str, ...], blur: float) -> str:
    """A known wording, or with chance `blur` a filler phrase."""
    return filler_phrase(rng) if rng.random() < blur else pick(rng, known)


def make_row(rng: np.random.Generator, skill: Skill, form: Format, blurs: tuple[float, float]) -> Row:
    """One row; `blurs` are the chances of a filler phrase in place of the skill's and the form's wording."""
    problem = skill.make(rng)
    parts = (wording(rng, skill.wordings, blurs[0]), problem.content, wording(rng, form.wordings, blurs[1]))
    return {"input": " ".join(part for part in parts if part), "target": form.apply(problem.answer)}


def base_share(skill: Skill) -> int:
    """How often a skill stands in the base's mixture: what is learnt late (measured) stands there more often."""
    return 2 if skill.name in SLOW_SKILLS else 1


def base_rows(seed: int) -> Iterator[Row]:
    """The base's endless mixture: two in five plain answers, the rest in the seven forms, never a kept-back pair."""
    rng = np.random.default_rng(seed)
    plain = [pair for pair in PAIRS if pair[1] is formats.PLAIN for _ in range(base_share(pair[0]))]
    formed = [pair for pair in PAIRS if pair[1] is not formats.PLAIN for _ in range(base_share(pair[0]))]
    while True:
        skill, form = pick(rng, formed if rng.random() < 0.6 else plain)
        yield make_row(rng, skill, form, (BLUR_IN_BASE, BLUR_IN_BASE))


def task_rows(name: str, seed: int) -> Iterator[Row]:
    """The endless rows of one upstream task."""
    rng = np.random.default_rng([seed, *name.encode()])
    if name in skills.BY_NAME:
        forms = [form for skill, form in PAIRS if skill.name == name]
        while True:
            form = formats.PLAIN if rng.random() < PLAIN_IN_TASK else pick(rng, forms)
            yield make_row(rng, skills.BY_NAME[name], form, (BLUR_IN_TASK, 0.0))
    form_name = name.removeprefix("as_")
    pairs = [pair for pair in PAIRS if pair[1].name == form_name]
    while True:
        skill, form = pick(rng, pairs)
        yield make_row(rng, skill, form, (BLUR_OF_THE_OTHER, BLUR_IN_TASK))


def upstream_rows(name: str, count: int, seed: int) -> list[Row]:
    """The first `count` rows of an upstream task.

    Raises:
        ValueError: no such task; the message lists those there are.
    """
    if name not in TASK_NAMES:
        raise ValueError(f"upstream_rows: no task '{name}'; there are {', '.join(TASK_NAMES)}")
    rows = task_rows(name, seed)
    return [next(rows) for _ in range(count)]
