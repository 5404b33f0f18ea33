"""Patterns: PEFT's rank_pattern and alpha_pattern, matched in bounded time. The patterns come from strangers.

PEFT matches them with Python's `re`, which backtracks: some short patterns take years. Here the part of that language
without look-around and back references becomes one automaton for all patterns of a module; see docs/decisions/0015.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lorahub_edge.errors import UnsupportedFormat, first_line

# PEFT's own modules need a few thousand of each: one plain path per layer, or a handful of real patterns.
MAX_STATES = 200_000
MAX_STEPS = 4_000_000
MAX_DEPTH = 50

_START, _END = re.compile(r"\^|\\A"), re.compile(r"\$|\\Z")
# What matches a single character: Python's `re` decides which, and has nothing to go back to.
_CHARACTER = re.compile(r"\\[dDsSwW]|\\[^0-9A-Za-z]|\[\^?\]?(?:\\.|[^\\\[\]])*\]|[^\\()*+?|\[]")
_SET_OPERATOR = re.compile(r"--|&&|~~|\|\|")
_GROUP = re.compile(r"\((?!\?)|\(\?:|\(\?P<\w+>")
_REPEAT = re.compile(r"(?:(?P<sign>[*+?])|\{(?!\})(?P<low>\d*)(?P<comma>,(?P<high>\d*))?\})(?P<kind>[?+]?)")
_BOUNDS = {"*": (0, None), "+": (1, None), "?": (0, 1)}


@dataclass(frozen=True)
class _Repeat:
    """`part` at least `low` and at most `high` times."""

    part: _Node
    low: int
    high: int | None


@dataclass(frozen=True)
class _Choice:
    """One of several sequences."""

    branches: tuple[tuple[_Node, ...], ...]


# a compiled pattern takes one character, but for _START and _END, which take none
_Node = _Repeat | _Choice | re.Pattern[str]


class Patterns:
    """Patterns with a value each; the first that matches a text gives its value.

    Args:
        values: pattern -> value, in order.
        where: for messages.

    Raises:
        UnsupportedFormat: a pattern that is none, or one beyond characters, sets, groups, |, repeats, ^ and $.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = list(values.values())
        self._where = where
        self._steps = 0
        # state -> what it tests (None: nothing) and where it goes on; the first states end the patterns, in order
        self._tests: list[re.Pattern[str] | None] = []
        self._next: list[list[int]] = []
        ends = [self._state(_END, []) for _ in self._values]
        entries = [self._compiled(pattern, end) for pattern, end in zip(values, ends, strict=True)]
        # PEFT matches r"(.*\.)?(PATTERN)$": a whole path, or what stands behind one of its dots
        prefix = self._state(None, [])
        self._next[prefix] += [
            self._state(_character("."), [prefix]),
            self._state(_character(r"\."), entries),
        ]
        self._same: dict[frozenset[int], frozenset[int]] = {}
        self._known: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        self._begin = self._closure([prefix, *entries], at_start=True)

    def value(self, text: str, default: Any) -> Any:
        """The value of the first pattern that PEFT would match with a text, or the default.

        Raises:
            UnsupportedFormat: the patterns need more than MAX_STEPS steps in all.
        """
        states = self._begin
        for character in text if self._values else "":
            states = self._after(states, character)
        first = min(self._closure(states, at_start=not text, at_end=True), default=len(self._values))
        return self._values[first] if first < len(self._values) else default

    def _after(self, states: frozenset[int], character: str) -> frozenset[int]:
        key = (states, character)
        if key not in self._known:
            self._count(len(states))
            taken = [s for s in states if self._takes(self._tests[s], character)]
            self._known[key] = self._closure(n for s in taken for n in self._next[s])
        return self._known[key]

    def _closure(self, states: Iterable[int], *, at_start: bool = False, at_end: bool = False) -> frozenset[int]:
        """The states that these lead to without a character, those left out that test nothing."""
        seen: set[int] = set()
        waiting = list(states)
        while waiting:
            state = waiting.pop()
            if state in seen:
                continue
            seen.add(state)
            test = self._tests[state]
            if test is None or (at_start and test is _START) or (at_end and test is _END):
                waiting += self._next[state]
        self._count(len(seen))
        found = frozenset(s for s in seen if self._tests[s] is not None)
        return self._same.setdefault(found, found)  # equal sets are one object, quick to look up

    @staticmethod
    def _takes(test: re.Pattern[str] | None, character: str) -> bool:
        return test is not None and test is not _START and test is not _END and test.match(character) is not None

    def _count(self, n_steps: int) -> None:
        self._steps += n_steps
        if self._steps > MAX_STEPS:
            raise UnsupportedFormat(f"{self._where}: takes more than {MAX_STEPS} steps to match; use simpler patterns")

    def _compiled(self, pattern: str, end: int) -> int:
        """The first state of one pattern."""
        try:
            entry = self._built(_Parser(pattern).whole(), end)
            re.compile(pattern)
        except (ValueError, OverflowError, re.error) as error:
            shown = pattern if len(pattern) <= 80 else f"{pattern[:80]}..."
            raise UnsupportedFormat(
                f"{self._where} has {shown!r}, which is no pattern ({first_line(error)})"
            ) from error
        return entry

    def _built(self, node: _Node, after: int) -> int:
        if isinstance(node, _Choice):
            entries = [self._sequence(branch, after) for branch in node.branches]
            return self._state(None, entries) if len(entries) > 1 else entries[0]
        if isinstance(node, _Repeat):
            return self._repeat(node, after)
        return self._state(node, [after])

    def _sequence(self, nodes: tuple[_Node, ...], after: int) -> int:
        if not nodes:  # a state all the same: repeats of nothing are counted too
            return self._state(None, [after])
        for node in reversed(nodes):
            after = self._built(node, after)
        return after

    def _repeat(self, node: _Repeat, after: int) -> int:
        entry = after
        if node.high is None:
            entry = self._state(None, [after])
            self._next[entry].append(self._built(node.part, entry))
        else:
            for _ in range(node.high - node.low):
                entry = self._state(None, [self._built(node.part, entry), after])
        for _ in range(node.low):
            entry = self._built(node.part, entry)
        return entry

    def _state(self, test: re.Pattern[str] | None, goes_on: list[int]) -> int:
        if len(self._tests) >= MAX_STATES:
            raise UnsupportedFormat(f"{self._where}: needs more than {MAX_STATES} states; use simpler patterns")
        self._tests.append(test)
        self._next.append(goes_on)
        return len(self._tests) - 1


@functools.lru_cache(maxsize=4096)
def _character(text: str) -> re.Pattern[str]:
    return re.compile(text)


class _Parser:
    """Text -> nodes. What it lets through and Python refuses, `re.compile` finds afterwards."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def whole(self) -> _Node:
        choice = self._choice(depth=0)
        if self._at < len(self._text):
            raise ValueError(f"unbalanced parenthesis at position {self._at}")
        return choice

    def _choice(self, depth: int) -> _Choice:
        if depth > MAX_DEPTH:
            raise ValueError(f"groups nested more than {MAX_DEPTH} deep")
        branches: list[list[_Node]] = [[]]
        while self._at < len(self._text) and not self._text.startswith(")", self._at):
            if self._take("|"):
                branches.append([])
            else:
                branches[-1].append(self._repeated(self._part(depth)))
        return _Choice(tuple(map(tuple, branches)))

    def _part(self, depth: int) -> _Node:
        if self._matches(_GROUP):
            choice = self._choice(depth + 1)
            if not self._take(")"):
                raise ValueError("missing )")
            return choice
        for anchor in (_START, _END):
            if self._matches(anchor):
                return anchor
        if match := self._matches(_CHARACTER):
            text = match[0]
            if text.startswith("[") and _SET_OPERATOR.search(text):
                raise ValueError(f"{text[:40]!r} is not read")
            return _character(text)
        raise ValueError(f"{self._text[self._at : self._at + 10]!r} is not read")

    def _repeated(self, part: _Node) -> _Node:
        match = self._matches(_REPEAT)
        if match is None:
            return part
        if match["kind"] == "+":
            raise ValueError(f"{match[0]!r} is not read")
        if match["sign"]:
            return _Repeat(part, *_BOUNDS[match["sign"]])
        low = int(match["low"] or 0)
        high = low if match["comma"] is None else int(match["high"]) if match["high"] else None
        return _Repeat(part, low, high)

    def _matches(self, kind: re.Pattern[str]) -> re.Match[str] | None:
        match = kind.match(self._text, self._at)
        self._at = match.end() if match else self._at
        return match

    def _take(self, character: str) -> bool:
        taken = self._text.startswith(character, self._at)
        self._at += taken
        return taken
