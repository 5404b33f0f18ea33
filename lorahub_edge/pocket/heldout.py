"""The tasks that are kept back: pairs of a skill and a form that no training row ever has, under unseen wording.

8 pairs make the held-out tasks. 8 more make the development tasks, on which everything was tuned; they have no files.
A task has one wording, as a BIG-bench task has. All are unseen; most are made of filler words (lexicon.FILLERS) alone
and do not say what is asked, some keep a telling word for the skill or for the form.
"""

from dataclasses import dataclass

import numpy as np

from lorahub_edge.pocket import formats, skills


@dataclass(frozen=True)
class HeldoutTask:
    """One kept-back task: which skill, in which form, asked how."""

    skill: str
    form: str
    wording: str
    form_wording: str

    @property
    def name(self) -> str:
        """For example "sound_in_braces"; "find_fruit_reworded" where the form is the plain one."""
        return f"{self.skill}_reworded" if self.form == "plain" else f"{self.skill}_in_{self.form}"

    @property
    def summary(self) -> str:
        """One line for listings."""
        return f"{skills.BY_NAME[self.skill].summary}; {formats.BY_NAME[self.form].summary}"


HELDOUT = (
    HeldoutTask("first_word", "twice", "report the opening entry.", "echo this two times."),
    HeldoutTask("find_animal", "sentence", "spot the animal.", "speak with style."),
    HeldoutTask("sound", "braces", "utter its tone.", "wrap out the record."),
    HeldoutTask("young", "question", "fetch the tiny kin.", "confirm by shape."),
    HeldoutTask("opposite", "thanks", "flip this word.", "kindly be polite."),
    HeldoutTask("previous_date", "initial", "report the previous one.", "print the head sign."),
    HeldoutTask("largest", "labelled", "return the peak number.", "pack this field."),
    HeldoutTask("find_fruit", "plain", "pick some snack.", ""),
)
DEVELOPMENT = (
    HeldoutTask("odd_number", "braces", "select this contrary member.", "frame the layout."),
    HeldoutTask("find_tool", "twice", "choose the gadget.", "double each element."),
    HeldoutTask("home", "sentence", "locate its home.", "utter for your manner."),
    HeldoutTask("smallest", "question", "fetch the bottom piece.", "speak with shape."),
    HeldoutTask("mood", "thanks", "judge this feeling.", "simply be polite."),
    HeldoutTask("next_date", "labelled", "one step ahead.", "pack as the code."),
    HeldoutTask("last_word", "initial", "judge the rear element.", "simply the front mark."),
    HeldoutTask("count_words", "plain", "tally these.", ""),
)
BY_NAME = {task.name: task for task in (*HELDOUT, *DEVELOPMENT)}
KEPT_BACK = frozenset((task.skill, task.form) for task in BY_NAME.values() if task.form != "plain")


def make_row(task: HeldoutTask, rng: np.random.Generator) -> dict[str, str]:
    """One {"input", "target"} row of a kept-back task."""
    problem = skills.BY_NAME[task.skill].make(rng)
    parts = (task.wording, problem.content, task.form_wording)
    return {
        "input": " ".join(part for part in parts if part),
        "target": formats.BY_NAME[task.form].apply(problem.answer),
    }


def heldout_rows(task: HeldoutTask, count: int, *, seed: int) -> list[dict[str, str]]:
    """`count` rows with different inputs.

    Raises:
        ValueError: the task's world has too few different inputs; found after many draws without a new one.
    """
    rng = np.random.default_rng([seed, *task.name.encode()])
    rows: dict[str, dict[str, str]] = {}
    for _ in range(count * 200):
        row = make_row(task, rng)
        rows.setdefault(row["input"], row)
        if len(rows) == count:
            return list(rows.values())
    raise ValueError(f"heldout_rows: '{task.name}' has only {len(rows)} different inputs, {count} were asked for")
