"""What a run is asked for: all settings, checked before anything slow begins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lorahub_edge.adaptation.population import ROUTES
from lorahub_edge.adaptation.presets import Preset, preset_by_name
from lorahub_edge.errors import InvalidInput
from lorahub_edge.measure import parse_bytes
from lorahub_edge.modules import STACK_DTYPES
from lorahub_edge.search import make_searcher

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

    @classmethod
    def of(cls, preset: Preset, n_modules: int, *, seed: int, **changes: Any) -> SearchSettings:
        """Fill what the user left open (None) from the preset."""
        values: dict[str, Any] = {"budget": preset.budget_for(n_modules)}
        values |= {name: getattr(preset, name) for name in ("optimizer", "alpha", "bound")}
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
    max_memory: int | str | None = None
    stack_dtype: str | None = None

    def __post_init__(self) -> None:
        chosen = preset_by_name(self.preset)
        names = ("alpha", "seed", "budget", "max_input_tokens", "max_new_tokens")
        check_numbers(**{name: getattr(self, name) for name in names})
        bound = chosen.bound if self.bound is None else self.bound
        make_searcher(self.optimizer or chosen.optimizer, 1, bound=bound, budget=1, seed=0)
        _check_name("evaluate_by", self.evaluate_by, ROUTES)
        _check_name("stack_dtype", self.stack_dtype, STACK_DTYPES)
        _ = self.budget_bytes

    @property
    def budget_bytes(self) -> int | None:
        """Memory that the run may take."""
        return parse_bytes(self.max_memory) if isinstance(self.max_memory, str) else self.max_memory

    def search(self, n_modules: int) -> SearchSettings:
        """What the search over so many modules runs with."""
        changes = {name: getattr(self, name) for name in ("optimizer", "budget", "alpha", "bound")}
        preset = preset_by_name(self.preset)
        return SearchSettings.of(preset, n_modules, seed=self.seed, evaluate_by=self.evaluate_by, **changes)


def _check_name(parameter: str, name: str | None, known: Iterable[str]) -> None:
    if name is not None and name not in known:
        raise InvalidInput(f"{parameter}: expected one of {', '.join(known)}, received '{name}'")


def check_numbers(**numbers: float | None) -> None:
    """Refuse numbers out of range; None is left alone.

    Raises:
        InvalidInput: names the parameter, what was expected and what came.
    """
    least = {"alpha": 0, "seed": 0}
    for name, value in numbers.items():
        low, high = least.get(name, 1), MAX_SEED if name == "seed" else float("inf")
        if value is not None and not low <= value < high:
            below = f" and below {high}" if name == "seed" else ""
            raise InvalidInput(f"{name}: expected a number of at least {low}{below}, received {value}")
