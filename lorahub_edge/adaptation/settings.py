"""What a run is asked for: all settings, checked before anything slow begins."""

from __future__ import annotations

import numbers
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorahub_edge.adaptation.population import ROUTES
from lorahub_edge.adaptation.presets import Preset, preset_by_name
from lorahub_edge.errors import InvalidInput
from lorahub_edge.measure import parse_bytes
from lorahub_edge.modules import COMPOSITIONS, STACK_DTYPES
from lorahub_edge.search import check_optimizer

# How modules are chosen from a pool that is larger than a search should weigh; see prefilter.py.
WAYS = ("loss", "random", "similar")

MAX_SEED = 2**32  # NumPy's and torch's generators take seeds below this


@dataclass(frozen=True)
class SearchSettings:
    """A preset with the user's changes, all values checked."""

    preset: str
    optimizer: str
    objective_form: str
    alpha: float
    bound: float
    budget: int
    seed: int
    evaluate_by: str = "side"
    composition: str = "factors"

    @classmethod
    def of(cls, preset: Preset, n_modules: int, *, seed: int, **changes: Any) -> SearchSettings:
        """Fill what the user left open (None) from the preset."""
        values: dict[str, Any] = {"budget": preset.budget_for(n_modules)}
        values |= {name: getattr(preset, name) for name in ("optimizer", "alpha", "bound", "composition")}
        values |= {name: value for name, value in changes.items() if value is not None}
        return cls(preset.name, objective_form=preset.objective_form, seed=seed, **values)


@dataclass(frozen=True)
class RunSettings:
    """What `adapt` and `plan` are asked for, apart from base, modules and task; see `adapt` for the meaning of each.

    Raises:
        InvalidInput: names the setting, what was expected and what came.
    """

    preset: str = "edge"
    optimizer: str | None = None
    budget: int | None = None
    alpha: float | None = None
    bound: float | None = None
    seed: int = 42
    device: str = "auto"
    precision: str = "int8"
    prompt: str = "auto"
    max_input_tokens: int | None = None
    max_new_tokens: int | None = None
    null_control: bool = True
    evaluate_by: str = "side"
    composition: str | None = None
    rank: int | None = None
    max_memory: int | str | None = None
    stack_dtype: str | None = None
    max_modules: int | None = None
    choose_modules: str = "loss"

    def __post_init__(self) -> None:
        chosen = preset_by_name(self.preset)
        names = ("alpha", "bound", "seed", "budget", "max_input_tokens", "max_new_tokens", "rank", "max_modules")
        check_numbers(**{name: getattr(self, name) for name in names}, max_memory=self.budget_bytes)
        _check_name("evaluate_by", self.evaluate_by, ROUTES)
        _check_name("composition", self.composition, COMPOSITIONS)
        _check_name("stack_dtype", self.stack_dtype, STACK_DTYPES)
        _check_name("choose_modules", self.choose_modules, WAYS)
        if self.choose_modules != "loss" and self.max_modules is None:
            raise InvalidInput(f"choose_modules '{self.choose_modules}': expected max_modules, how many; received none")
        check_optimizer(self.chosen_optimizer, budget=self.budget or chosen.budget)

    @property
    def chosen_optimizer(self) -> str:
        """The user's, or else the preset's."""
        return self.optimizer or preset_by_name(self.preset).optimizer

    @property
    def chosen_composition(self) -> str:
        """The user's, or else the preset's."""
        return self.composition or preset_by_name(self.preset).composition

    @property
    def budget_bytes(self) -> int | None:
        """Memory that the run may take."""
        return parse_bytes(self.max_memory) if isinstance(self.max_memory, str) else self.max_memory

    def n_searched(self, n_pool: int) -> int:
        """How many modules of a pool the search weighs."""
        return n_pool if self.max_modules is None else min(self.max_modules, n_pool)

    def search(self, n_modules: int) -> SearchSettings:
        """What the search over so many modules runs with."""
        changes = {name: getattr(self, name) for name in ("optimizer", "budget", "alpha", "bound", "composition")}
        preset = preset_by_name(self.preset)
        return SearchSettings.of(preset, n_modules, seed=self.seed, evaluate_by=self.evaluate_by, **changes)


def _check_name(parameter: str, name: str | None, known: Iterable[str]) -> None:
    if name is not None and name not in known:
        raise InvalidInput(f"{parameter}: expected one of {', '.join(known)}, received '{name}'")


# The high end of a setting that may be any finite number.
FINITE = sys.float_info.max


@dataclass(frozen=True)
class Range:
    """The numbers that a setting takes: from `low` to `high`, with both ends unless they are open."""

    low: float
    high: float
    whole: bool = True
    open_low: bool = False
    open_high: bool = False

    def has(self, value: object) -> bool:
        """Whether it takes a value; no setting takes a bool or NaN for a number."""
        kind = numbers.Integral if self.whole else numbers.Real
        if isinstance(value, bool) or not isinstance(value, kind):
            return False
        if isinstance(value, np.floating):
            value = float(value)  # NumPy would cast the range instead
        above = self.low < value if self.open_low else self.low <= value  # type: ignore[operator]
        below = value < self.high if self.open_high else value <= self.high
        return bool(above and below)

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number" if self.high < FINITE else "a finite number"
        low = f"above {self.low:.10g}" if self.open_low else f"of at least {self.low:.10g}"
        high = "" if self.high == FINITE else f" and {'below' if self.open_high else 'at most'} {self.high:.10g}"
        return f"{kind} {low}{high}"


# Counts of evaluations, rows or tokens: far above what anyone needs.
COUNTS = Range(1, 10**7)

_RANGES = {
    "seed": Range(0, MAX_SEED - 1),
    "example_seed": Range(0, MAX_SEED - 1),
    "alpha": Range(0, FINITE, whole=False),
    "bound": Range(0, 10**6, whole=False, open_low=True),
    "max_memory": Range(1, 2**63 - 1),
    "min_survival": Range(0, 1, whole=False),
}


def check_numbers(**values: object) -> None:
    """Refuse numbers of a run that are out of range: names without a range of their own are counts. None is left alone.

    Raises:
        InvalidInput: names the parameter, what was expected and what came.
    """
    check_ranges(values, _RANGES)


def check_ranges(values: Mapping[str, object], ranges: Mapping[str, Range]) -> None:
    """The same for settings with other ranges. Raises: see `check_numbers`."""
    for name, value in values.items():
        expected = ranges.get(name, COUNTS)
        if value is not None and not expected.has(value):
            raise InvalidInput(f"{name}: expected {expected}, received {value!r:.40}")
