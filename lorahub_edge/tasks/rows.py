"""What a row asks and what answers it, by the names of its columns.

No column that is part of the question is dropped: it is used, or the row is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from lorahub_edge.errors import InvalidInput
from lorahub_edge.texts import has_lone_surrogate

_USER, _ASSISTANT = "user's turn", "assistant's turn"
_ROLES = {  # of a conversation's turns -> column
    "user": _USER,
    "human": _USER,
    "assistant": _ASSISTANT,
    "gpt": _ASSISTANT,
    "system": "system",
    "developer": "system",
}
CONVERSATIONS = ("messages", "conversation", "conversations")
# The column with the question; a row has one, or only some of those that are put before it, a line break after each.
QUESTIONS = ("input", "inputs", "question", "query", "prompt", _USER)
BEFORE = (
    "system", "system_prompt", "system_message", "definition", "task_prefix", "instruction", "instructions",
    "background", "context", "passage", "story", "body",
)  # fmt: skip
ANSWERS = (
    "target", "targets", "output", "outputs", "completion", "response", "answer", "answers", "target_scores",
    _ASSISTANT,
)  # fmt: skip
# Parts of a question without an agreed place in it: they must stand in it already.
UNPLACED = (
    "options", "choices", "candidates", "target_scores", "history", "dialogue", "premise", "hypothesis", "sentence",
    "sentence1", "sentence2", "document", "documents", "article", "paragraph", "contexts", "facts", "evidence", "table",
    "hint", "demonstrations", "tools", "functions", "image", "images", "audio", "video",
)  # fmt: skip
_MAX_OPTIONS = 100
_LEAST_REPEATED_WORDS = 3
_MAX_CHARACTERS = 1 << 20  # of a question's part or an answer: hundreds of times what models read
_WORD = re.compile(r"\w+|[^\w\s]")
_LARGEST_NUMBER = 10**100


def named_columns(row: Any, where: str) -> dict[str, Any]:
    """The columns of a row under their names in small letters, without blanks around them.

    Raises:
        InvalidInput: not a mapping, or two columns of one name.
    """
    if not isinstance(row, Mapping):
        raise InvalidInput(f"{where}: expected a JSON object, received {type(row).__name__}")
    columns: dict[str, Any] = {}
    for name, value in row.items():
        key = str(name).strip().casefold()
        if key in columns:
            raise InvalidInput(f"{where}: the column '{key}' is there twice; rename one")
        columns[key] = value
    return columns


def question_and_answer(columns: Mapping[str, Any], where: str) -> tuple[str, str]:
    """The text that is asked and the answer to it.

    Args:
        columns: see `named_columns`.
        where: file and line, for messages.

    Raises:
        InvalidInput: no question or no answer, more than one, a value that is no text, or a column that would change
            what is asked and cannot be placed.
    """
    columns = _with_turns(columns, where)
    asks = {name: columns[name] for name in (*BEFORE, *QUESTIONS) if name in columns}
    answers = {name: columns[name] for name in ANSWERS if name in columns}
    if not asks or not answers:
        received = ", ".join(columns) or "none"
        raise InvalidInput(
            f"{where}: expected keys input/target, or others such as instruction/output, question/answer, "
            f"prompt/completion or messages (docs/format.md lists them); received {received}; rename the columns"
        )
    question, answer = _question(asks, where), _answer(answers, where)
    for name in filter(columns.__contains__, UNPLACED):
        texts = _texts_within(columns[name])
        if texts and not _all_stand_in(texts, question):
            raise InvalidInput(
                f"{where}: '{name}' is part of what is asked, but its text does not stand in '{[*asks][-1]}'; "
                f"write it there as the model is to read it, and remove '{name}' or give 'target'"
            )
    return question, answer


def _with_turns(columns: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The columns with a conversation's turns as columns too; TRL has prompt and completion as lists of turns."""
    rest = dict(columns)
    names = [name for name in CONVERSATIONS if not _is_blank(rest.get(name))]
    if _is_list(rest.get("prompt")) and _is_list(rest.get("completion")):
        names += ["prompt", "completion"]
    turns = [_turn(turn, name, where) for name in names for turn in _turns(rest.pop(name), name, where)]
    if not turns:
        return rest
    roles = [role for role, _ in turns]
    if roles not in ([_USER, _ASSISTANT], ["system", _USER, _ASSISTANT]):
        raise InvalidInput(
            f"{where}: '{names[0]}' has {len(turns)} turns ({', '.join(roles[:4])}); expected one question and its "
            "answer (system, user, assistant); make a row of each question"
        )
    if "system" in roles and not _is_blank(rest.get("system")):
        raise InvalidInput(f"{where}: 'system' is there twice, as a turn and as a column; keep one")
    return {**rest, **dict(turns)}


def _turns(value: Any, name: str, where: str) -> list[Any]:
    if not _is_list(value):
        raise InvalidInput(f"{where}: '{name}' is {type(value).__name__}; expected a list of turns")
    return list(value)


def _turn(turn: Any, name: str, where: str) -> tuple[str, Any]:
    if not isinstance(turn, Mapping):
        raise InvalidInput(f"{where}: '{name}' holds {type(turn).__name__}; expected turns with role and content")
    role = str(turn.get("role", turn.get("from")))
    return _ROLES.get(role, role), turn.get("content", turn.get("value"))


def _question(columns: Mapping[str, Any], where: str) -> str:
    """What is asked: the question column behind those that are put before it, unless it has their text already.

    Empty ones are left out.
    """
    given = [name for name in columns if not _is_blank(columns[name])] or [*columns][-1:]
    parts = {name: _text(name, columns[name], where) for name in given}
    questions = [name for name in parts if name in QUESTIONS]
    if len(questions) < 2:
        question = "".join(parts[name] for name in questions)
        before = [t for n, t in parts.items() if n not in questions and not _is_repeated(t, question)]
        return "\n".join([*before, *(parts[name] for name in questions)])
    for name in questions:  # a template that was filled in: its text holds all others
        if _all_stand_in(list(parts.values()), parts[name]):
            return parts[name]
    raise InvalidInput(f"{where}: {' and '.join(map(repr, questions))} both hold a question; keep one")


def _answer(columns: Mapping[str, Any], where: str) -> str:
    given = [name for name in columns if not _is_blank(columns[name])] or [*columns][:1]
    answers = {name: _one_answer(name, columns[name], where) for name in given}
    if len(set(answers.values())) > 1:
        raise InvalidInput(f"{where}: {' and '.join(map(repr, answers))} hold different answers; keep one")
    return answers[given[0]]


def _one_answer(name: str, value: Any, where: str) -> str:
    """A text; the only one of a list or of SQuAD's {"text": [...]}; the one that BIG-bench scores highest."""
    if name == "target_scores":
        value = _highest(value, where)
    elif isinstance(value, Mapping) and _is_list(value.get("text")):
        value = value["text"]
    if not _is_list(value):
        return _text(name, value, where)
    texts = {_text(name, each, where) for each in value or [""]}
    if len(texts) > 1:
        raise InvalidInput(
            f"{where}: '{name}' has {len(texts)} answers; expected one, since exact match compares with one; keep one"
        )
    return texts.pop()


def _highest(scores: Any, where: str) -> list[Any]:
    if not isinstance(scores, Mapping) or not all(isinstance(score, Real) for score in scores.values()):
        raise InvalidInput(f"{where}: 'target_scores' is no mapping of answers to numbers; give 'target' instead")
    highest = max(scores.values(), default=0)
    return [text for text, score in scores.items() if score == highest]


def _text(name: str, value: Any, where: str) -> str:
    """A text, or a whole number as text. How a fraction or a truth value would be written is not ours to guess."""
    if _is_list(value) and len(value) == 1:  # as Super-NaturalInstructions has its definition
        value = value[0]
    if _is_missing(value):
        raise InvalidInput(f"{where}: '{name}' is missing (null or NaN); expected text")
    if isinstance(value, Integral) and not isinstance(value, bool) and abs(int(value)) < _LARGEST_NUMBER:
        return str(int(value))
    if not isinstance(value, str):
        remedy = "one text in every row" if _is_list(value) or isinstance(value, Mapping) else "put it in quotes"
        raise InvalidInput(f"{where}: '{name}' is {type(value).__name__}; expected text ({remedy})")
    if not value.strip():
        raise InvalidInput(f"{where}: '{name}' is empty")
    if len(value) > _MAX_CHARACTERS:
        raise InvalidInput(f"{where}: '{name}' has {len(value)} characters; expected at most {_MAX_CHARACTERS}")
    if has_lone_surrogate(value):
        raise InvalidInput(f"{where}: '{name}' has half of a surrogate pair, which is no text")
    return str(value)


def _texts_within(value: Any) -> list[Any]:
    """A column's texts: itself, the entries of a list, of a mapping's lists, or a mapping's keys if they are scored."""
    if _is_blank(value):
        return []
    if isinstance(value, Mapping):
        values = [*value.values()]
        value = [*value] if all(isinstance(each, Real) for each in values) else values
    if not _is_list(value):
        return [value]
    return [text for each in value for text in (each if _is_list(each) else [each])]


def _is_repeated(text: str, question: str) -> bool:
    """Whether a question was filled in with a text. A word or two may be there by chance, and are put before it."""
    return len(text.split()) >= _LEAST_REPEATED_WORDS and _all_stand_in([text], question)


def _all_stand_in(texts: list[Any], whole: str) -> bool:
    """Whether a text has all others in it, as whole words, in small or capital letters."""
    if len(texts) > _MAX_OPTIONS or not all(isinstance(text, (str, Real)) for text in texts):
        return False
    words = _words(whole)
    return all(_words(text) in words for text in texts)


def _words(text: str | Real) -> str:
    """A text's words and signs in small letters, blanks around each, so that "in" finds whole ones."""
    return " " + "".join(f"{word} " for word in _WORD.findall(str(text).casefold()))


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _is_missing(value: Any) -> bool:
    """null, NaN, or pandas' own marks for either."""
    no_number = isinstance(value, Real) and value != value
    return value is None or no_number or type(value).__name__ in ("NAType", "NaTType")


def _is_blank(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return _is_missing(value) or ((_is_list(value) or isinstance(value, Mapping)) and not value)
