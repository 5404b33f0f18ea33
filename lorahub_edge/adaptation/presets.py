"""Presets: which optimiser, objective and budget go together under one name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lorahub_edge.errors import InvalidInput


@dataclass(frozen=True)
class Preset:
    """One way to run the search.

    Attributes:
        name: as --preset takes it.
        meaning: for people.
        optimizer: see `search.make_searcher`.
        objective_form: key of `objective.FORMS`.
        alpha: weight of the L1 penalty.
        bound: half width of the box.
        budget: evaluations; `budget_per_module` more for each module.
        composition: how modules add up; see `ModuleStack`.
    """

    name: str
    meaning: str
    optimizer: str
    objective_form: str
    alpha: float = 0.05
    bound: float = 1.5
    budget: int = 40
    budget_per_module: int = 0
    composition: str = "factors"

    def budget_for(self, n_modules: int) -> int:
        """Evaluations for a pool of this size."""
        return self.budget + self.budget_per_module * n_modules


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "edge",
            "each module alone; a surrogate names those that belong together; CMA-ES among the best six",
            optimizer="guided-cma",
            objective_form="published",
            budget=80,
            budget_per_module=1,
        ),
        Preset("paper", "CMA-ES as arXiv:2307.13269 describes it", optimizer="cma-es", objective_form="published"),
        Preset(
            "lorahub-code",
            "what the released lorahub 0.1.0 does: nevergrad's NGOpt (COBYLA at this size) on its own objective",
            optimizer="NGOpt",
            objective_form="lorahub-code",
        ),
    )
}


def preset_by_name(name: str) -> Preset:
    """Look up a preset.

    Raises:
        InvalidInput: an unknown name.
    """
    if name not in PRESETS:
        raise InvalidInput(f"preset '{name}' is not known; expected {', '.join(PRESETS)}")
    return PRESETS[name]
