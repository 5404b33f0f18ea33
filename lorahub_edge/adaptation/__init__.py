"""Adapt: the main job. From a base, modules and a handful of examples to one composed module and its controls."""

from lorahub_edge.adaptation.adapted import AdaptedModel
from lorahub_edge.adaptation.controls import Row
from lorahub_edge.adaptation.entry import adapt, plan
from lorahub_edge.adaptation.memory_plan import MemoryExceeded, MemoryPlan, choose_plan
from lorahub_edge.adaptation.objective import FORMS, Objective, Value
from lorahub_edge.adaptation.population import PopulationForward
from lorahub_edge.adaptation.presets import PRESETS, Preset
from lorahub_edge.adaptation.progress import Progress
from lorahub_edge.adaptation.run import Run, RunNotWritten
from lorahub_edge.adaptation.run_folder import RunUnfinished
from lorahub_edge.adaptation.saved_run import SavedRun, open_run
from lorahub_edge.adaptation.side_path import SidePath
from lorahub_edge.tasks import InputsWereCut, Score

__all__ = [
    "FORMS",
    "PRESETS",
    "AdaptedModel",
    "InputsWereCut",
    "MemoryExceeded",
    "MemoryPlan",
    "Objective",
    "PopulationForward",
    "Preset",
    "Progress",
    "Row",
    "Run",
    "RunNotWritten",
    "RunUnfinished",
    "SavedRun",
    "Score",
    "SidePath",
    "Value",
    "adapt",
    "choose_plan",
    "open_run",
    "plan",
]
