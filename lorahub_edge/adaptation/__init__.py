"""Adapt: the main job. From a base, modules and a handful of examples to one composed module and its controls."""

from lorahub_edge.adaptation.adapted import AdaptedModel, Score, load_adapted
from lorahub_edge.adaptation.controls import Row
from lorahub_edge.adaptation.entry import adapt
from lorahub_edge.adaptation.objective import FORMS, Objective, Value
from lorahub_edge.adaptation.population import PopulationForward, SidePath
from lorahub_edge.adaptation.presets import PRESETS, Preset
from lorahub_edge.adaptation.progress import Progress
from lorahub_edge.adaptation.run import Run
from lorahub_edge.tasks import InputsWereCut

__all__ = [
    "FORMS",
    "PRESETS",
    "AdaptedModel",
    "InputsWereCut",
    "Objective",
    "PopulationForward",
    "Preset",
    "Progress",
    "Row",
    "Run",
    "Score",
    "SidePath",
    "Value",
    "adapt",
    "load_adapted",
]
