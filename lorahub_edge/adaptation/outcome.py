"""What the search among the real modules came to, before the null control and the run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorahub_edge.adaptation.controls import Row
from lorahub_edge.adaptation.objective import Value
from lorahub_edge.modules import LoraModule, NullModules, RankCut
from lorahub_edge.search import SearchResult


@dataclass(frozen=True)
class Outcome:
    """An outcome; nothing here holds on to the stack of the real modules.

    Attributes:
        result: of the search.
        rows: the fixed controls and, last, the adapted model.
        single_losses: of each module alone.
        module: the composed module, cut to the rank that was asked for.
        rank_cut: what that has done; None if it was not.
        null_modules: what the null control is drawn from; None if it is not wanted.
        recordings: see `Objective.recordings`.
    """

    result: SearchResult[Value]
    rows: Sequence[Row]
    single_losses: Sequence[float]
    module: LoraModule
    rank_cut: RankCut | None
    null_modules: NullModules | None
    recordings: Sequence[Mapping[str, Any]]
