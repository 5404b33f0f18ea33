"""What the pocket tasks ask: 20 skills, each a small generator of problems.

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
    """The content of one row and its answer."""

    content: str
    answer: str


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


def word_list(rng: np.random.Generator) -> tuple[list[str], dict[str, str]]:
    """3 to 5 words: one animal, one fruit, one tool, and sometimes clothing; and category -> its word."""
    by_category = {name: pick(rng, words) for name, words in lexicon.CATEGORIES.items()}
    words = [by_category["animal"], by_category["fruit"], by_category["tool"]]
    words += sample(rng, lexicon.CLOTHES, int(rng.integers(3)))
    return sample(rng, words, len(words)), by_category


def from_list(choose: Callable[[list[str], dict[str, str]], str]) -> Callable[[np.random.Generator], Problem]:
    """A skill that answers with one word of a word list."""

    def make(rng: np.random.Generator) -> Problem:
        words, by_category = word_list(rng)
        return Problem(f"list: {', '.join(words)}.", choose(words, by_category))

    return make


def count_words(rng: np.random.Generator) -> Problem:
    words, _ = word_list(rng)
    return Problem(f"list: {', '.join(words)}.", str(len(words)))


def from_numbers(choose: Callable[[list[int]], int]) -> Callable[[np.random.Generator], Problem]:
    """A skill that answers with one of 3 or 4 different numbers, of which exactly one is odd."""

    def make(rng: np.random.Generator) -> Problem:
        even = sample(rng, range(2, lexicon.MAX_NUMBER + 1, 2), int(rng.integers(2, 4)))
        numbers = [*even, int(rng.integers(lexicon.MAX_NUMBER // 2)) * 2 + 1]
        numbers = sample(rng, numbers, len(numbers))
        return Problem(f"numbers: {', '.join(map(str, numbers))}.", str(choose(numbers)))

    return make


def opposite(rng: np.random.Generator) -> Problem:
    word = pick(rng, tuple(lexicon.OPPOSITE))
    return Problem(f"the {pick(rng, lexicon.ANIMALS)} is {word}.", lexicon.OPPOSITE[word])


def mood(rng: np.random.Generator) -> Problem:
    word = pick(rng, tuple(lexicon.MOOD))
    return Problem(f"the {pick(rng, lexicon.ANIMALS)} is {word}.", lexicon.MOOD[word])


def animal_fact(rng: np.random.Generator, part: int) -> Problem:
    """A sound, a young one or a home, under the same content as `opposite` and `mood`."""
    animal = pick(rng, lexicon.ANIMALS)
    return Problem(f"the {animal} is {pick(rng, tuple(lexicon.OPPOSITE))}.", lexicon.ANIMAL_FACTS[animal][part])


def calendar(rng: np.random.Generator, shift: int) -> Problem:
    """A day or a month, and the one `shift` places on."""
    names = pick(rng, lexicon.CALENDARS)
    place = int(rng.integers(len(names)))
    return Problem(f"{pick(rng, lexicon.PEOPLE)} comes in {names[place]}.", names[(place + shift) % len(names)])


def number_step(rng: np.random.Generator, shift: int) -> Problem:
    number = int(rng.integers(2, lexicon.MAX_NUMBER - 1))
    return Problem(f"{pick(rng, lexicon.PEOPLE)} counts {number}.", str(number + shift))


def parity(rng: np.random.Generator) -> Problem:
    number = int(rng.integers(2, lexicon.MAX_NUMBER - 1))
    return Problem(f"{pick(rng, lexicon.PEOPLE)} counts {number}.", ("even", "odd")[number % 2])


def category(rng: np.random.Generator) -> Problem:
    answer = pick(rng, tuple(lexicon.CATEGORIES))
    return Problem(f"{pick(rng, lexicon.COLOURS)} {pick(rng, lexicon.CATEGORIES[answer])}.", answer)


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
        "sound",
        "the sound an animal makes",
        lambda rng: animal_fact(rng, 0),
        ("what is the sound?", "name the sound.", "which sound has it?", "give the sound."),
    ),
    Skill(
        "young",
        "what a young animal is called",
        lambda rng: animal_fact(rng, 1),
        ("what is the young one?", "name the young one.", "what is its young?", "give the young one."),
    ),
    Skill(
        "home",
        "where an animal lives",
        lambda rng: animal_fact(rng, 2),
        ("what is the home?", "name the home.", "which home has it?", "give the home."),
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
        "previous_number",
        "one less",
        lambda rng: number_step(rng, -1),
        ("take one away.", "what is one less?", "what is before it?", "give the previous number."),
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
