"""What the pocket tasks ask: 18 skills, each a small generator of problems.

A skill knows nothing of the form an answer is given in (formats.py) nor of which tasks are kept back (heldout.py).
Skills that share a `kind` of content cannot be told apart by the content alone: only the instruction, or a LoRA module,
says which one is meant.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from lorahub_edge.pocket import lexicon

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """The content of one row, its answer, and wrong answers of the same sort (for options and claims)."""

    content: str
    answer: str
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Skill:
    """One thing to ask. `wordings` are the instructions seen in training."""

    name: str
    summary: str
    make: Callable[[np.random.Generator], Problem]
    wordings: tuple[str, ...]


def pick(rng: np.random.Generator, values: Sequence[T]) -> T:
    """One value, each as likely."""
    return values[int(rng.integers(len(values)))]


def sample(rng: np.random.Generator, values: Sequence[T], count: int) -> list[T]:
    """`count` different values in random order."""
    return [values[int(i)] for i in rng.permutation(len(values))[:count]]


def others(values: Sequence[str], answer: str) -> tuple[str, ...]:
    """`values` without `answer`, each once, in their order."""
    return tuple(dict.fromkeys(value for value in values if value != answer))


def word_list(rng: np.random.Generator) -> tuple[list[str], dict[str, str]]:
    """3 to 5 words: one animal, one fruit, one tool, and sometimes clothing. Also says which word is of which category."""
    by_category = {name: pick(rng, words) for name, words in lexicon.CATEGORIES.items()}
    words = [by_category["animal"], by_category["fruit"], by_category["tool"]]
    words += sample(rng, lexicon.CLOTHES, int(rng.integers(3)))
    return sample(rng, words, len(words)), by_category


def from_list(choose: Callable[[list[str], dict[str, str]], str]) -> Callable[[np.random.Generator], Problem]:
    """A skill that answers with one word of a word list."""

    def make(rng: np.random.Generator) -> Problem:
        words, by_category = word_list(rng)
        answer = choose(words, by_category)
        return Problem(f"list: {', '.join(words)}.", answer, others(words, answer))

    return make


def count_words(rng: np.random.Generator) -> Problem:
    words, _ = word_list(rng)
    answer = str(len(words))
    return Problem(f"list: {', '.join(words)}.", answer, others(("2", "3", "4", "5", "6"), answer))


def from_numbers(choose: Callable[[list[int]], int]) -> Callable[[np.random.Generator], Problem]:
    """A skill that answers with one of 3 or 4 different numbers, of which exactly one is odd."""

    def make(rng: np.random.Generator) -> Problem:
        even = sample(rng, range(2, lexicon.MAX_NUMBER + 1, 2), int(rng.integers(2, 4)))
        numbers = [*even, int(rng.integers(lexicon.MAX_NUMBER // 2)) * 2 + 1]
        numbers = sample(rng, numbers, len(numbers))
        answer = str(choose(numbers))
        return Problem(f"numbers: {', '.join(map(str, numbers))}.", answer, others([str(n) for n in numbers], answer))

    return make


def story(rng: np.random.Generator, part: int) -> Problem:
    """1 to 3 people, each with a thing, a colour and a place; asks for one `part` of the line that names a thing.

    Short stories are there because a small model learns the long ones from them.
    """
    facts = list(
        zip(
            sample(rng, lexicon.PEOPLE, 3),
            sample(rng, lexicon.COLOURS, 3),
            sample(rng, lexicon.THINGS, 3),
            sample(rng, lexicon.PLACES, 3),
            strict=True,
        )
    )
    told = facts[: pick(rng, (1, 2, 3, 3))]
    lines = " ".join(f"{person} has {colour} {thing} in {place}." for person, colour, thing, place in told)
    asked = pick(rng, told)
    return Problem(f"{lines} about: {asked[2]}.", asked[part], others([fact[part] for fact in facts], asked[part]))


def opposite(rng: np.random.Generator) -> Problem:
    word = pick(rng, tuple(lexicon.OPPOSITE))
    answer = lexicon.OPPOSITE[word]
    return Problem(
        f"the {pick(rng, lexicon.NOUNS)} is {word}.",
        answer,
        (word, *others(sample(rng, tuple(lexicon.OPPOSITE), 2), answer)),
    )


def mood(rng: np.random.Generator) -> Problem:
    word = pick(rng, tuple(lexicon.MOOD))
    answer = lexicon.MOOD[word]
    return Problem(f"the {pick(rng, lexicon.NOUNS)} is {word}.", answer, others(("good", "bad", "neutral"), answer))


def calendar(rng: np.random.Generator, shift: int) -> Problem:
    """A day or a month, and the one `shift` places on."""
    names = pick(rng, lexicon.CALENDARS)
    place = int(rng.integers(len(names)))
    answer = names[(place + shift) % len(names)]
    wrong = (names[(place - shift) % len(names)], names[place])
    return Problem(f"{pick(rng, lexicon.PEOPLE)} comes in {names[place]}.", answer, wrong)


def number_step(rng: np.random.Generator, shift: int) -> Problem:
    number = int(rng.integers(2, lexicon.MAX_NUMBER - 1))
    answer = str(number + shift)
    content = f"{pick(rng, lexicon.PEOPLE)} counts {number}."
    return Problem(content, answer, (str(number - shift), str(number)))


def parity(rng: np.random.Generator) -> Problem:
    number = int(rng.integers(2, lexicon.MAX_NUMBER - 1))
    answer = ("even", "odd")[number % 2]
    content = f"{pick(rng, lexicon.PEOPLE)} counts {number}."
    return Problem(content, answer, others(("even", "odd", "neither"), answer))


def category(rng: np.random.Generator) -> Problem:
    answer = pick(rng, tuple(lexicon.CATEGORIES))
    content = f"{pick(rng, lexicon.COLOURS)} {pick(rng, lexicon.CATEGORIES[answer])}."
    return Problem(content, answer, others(tuple(lexicon.CATEGORIES), answer))


def odd_number(numbers: list[int]) -> int:
    return next(number for number in numbers if number % 2)


SKILLS = (
    Skill(
        "first_word",
        "the first word of a list",
        from_list(lambda words, _: words[0]),
        ("what is the first word?", "give the first word.", "which word is first?", "the word at the start."),
    ),
    Skill(
        "last_word",
        "the last word of a list",
        from_list(lambda words, _: words[-1]),
        ("what is the last word?", "give the last word.", "which word is last?", "the word at the end."),
    ),
    Skill(
        "find_animal",
        "the animal in a list",
        from_list(lambda _, by: by["animal"]),
        ("which word is an animal?", "find the animal.", "name the animal.", "what is the animal?"),
    ),
    Skill(
        "find_fruit",
        "the fruit in a list",
        from_list(lambda _, by: by["fruit"]),
        ("which word is a fruit?", "find the fruit.", "name the fruit.", "what is the fruit?"),
    ),
    Skill(
        "find_tool",
        "the tool in a list",
        from_list(lambda _, by: by["tool"]),
        ("which word is a tool?", "find the tool.", "name the tool.", "what is the tool?"),
    ),
    Skill(
        "count_words",
        "how many words a list has",
        count_words,
        ("how many words?", "count the words.", "what is the number of words?", "give the count."),
    ),
    Skill(
        "largest",
        "the largest number",
        from_numbers(max),
        ("what is the largest?", "find the largest number.", "which number is largest?", "give the maximum."),
    ),
    Skill(
        "smallest",
        "the smallest number",
        from_numbers(min),
        ("what is the smallest?", "find the smallest number.", "which number is smallest?", "give the minimum."),
    ),
    Skill(
        "odd_number",
        "the one odd number",
        from_numbers(odd_number),
        ("which number is odd?", "find the odd number.", "what is the odd number?", "name the odd number."),
    ),
    Skill(
        "owner",
        "who has a thing",
        lambda rng: story(rng, 0),
        ("who has it?", "name the owner.", "what is the name of the owner?", "which person has it?"),
    ),
    Skill(
        "colour",
        "the colour of a thing",
        lambda rng: story(rng, 1),
        ("what is the colour?", "name the colour.", "which colour is it?", "what colour has it?"),
    ),
    Skill(
        "place",
        "where a thing is",
        lambda rng: story(rng, 3),
        ("where is it?", "name the place.", "which place is it in?", "what is the place?"),
    ),
    Skill(
        "opposite",
        "the opposite of a word",
        opposite,
        ("what is the opposite?", "give the opposite.", "which word is the opposite?", "name the opposite word."),
    ),
    Skill(
        "mood",
        "whether a word is good or bad",
        mood,
        ("is it good or bad?", "good or bad?", "what is the mood?", "name the mood."),
    ),
    Skill(
        "next_date",
        "the day or month after",
        lambda rng: calendar(rng, 1),
        ("what is next?", "what is after it?", "name the next one.", "which one is after it?"),
    ),
    Skill(
        "previous_date",
        "the day or month before",
        lambda rng: calendar(rng, -1),
        ("what is previous?", "what is before it?", "name the previous one.", "which one is before it?"),
    ),
    Skill(
        "next_number",
        "one more",
        lambda rng: number_step(rng, 1),
        ("add one.", "what is one more?", "what is after it?", "give the next number."),
    ),
    Skill(
        "parity",
        "whether a number is even or odd",
        parity,
        ("is it even or odd?", "even or odd?", "what is the parity?", "name the parity."),
    ),
    Skill(
        "category",
        "animal, fruit, tool or clothing",
        category,
        ("what is the category?", "name the category.", "what sort is it?", "which category is it?"),
    ),
)
BY_NAME = {skill.name: skill for skill in SKILLS}
