"""Merging: fold a composed module into the base, and say how much of it survived the rounding."""

from lorahub_edge.merging.entry import DEFAULT_MIN_SURVIVAL, Merged, MergeLost, merge
from lorahub_edge.merging.saved_merge import SavedMerge, is_merged_folder, open_merged
from lorahub_edge.merging.survival import LayerSurvival, Survival

__all__ = [
    "DEFAULT_MIN_SURVIVAL",
    "LayerSurvival",
    "MergeLost",
    "Merged",
    "SavedMerge",
    "Survival",
    "is_merged_folder",
    "merge",
    "open_merged",
]
