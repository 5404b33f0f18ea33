"""What a search runs with: a preset and the user's changes to it, checked before anything slow begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorahub_edge.adaptation.presets import Preset
from lorahub_edge.errors import InvalidInput

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
