"""Modules: LoRA modules from anywhere, checked against the base and stacked for the compose kernel."""

from lorahub_edge.catalogue.folders import TRAINING_ROWS
from lorahub_edge.modules.files import (
    LoraFactors,
    LoraModule,
    ModuleFolder,
    read_module,
    write_module,
)
from lorahub_edge.modules.hub import RUN_FORMAT, find_modules, load_modules
from lorahub_edge.modules.in_use import FactorsInUse
from lorahub_edge.modules.layout import STACK_DTYPES, StackLayout, Target
from lorahub_edge.modules.null import NullModules, random_modules
from lorahub_edge.modules.other_bases import OtherBase, other_bases, warn_of_other_bases
from lorahub_edge.modules.runtimes import rank_note
from lorahub_edge.modules.stack import COMPOSITIONS, ModuleStack, modules_in_use
from lorahub_edge.modules.stored import can_map, load_stack
from lorahub_edge.modules.truncate import RankCut, cut_rank

__all__ = [
    "COMPOSITIONS",
    "RUN_FORMAT",
    "STACK_DTYPES",
    "TRAINING_ROWS",
    "FactorsInUse",
    "LoraFactors",
    "LoraModule",
    "ModuleFolder",
    "ModuleStack",
    "NullModules",
    "OtherBase",
    "RankCut",
    "StackLayout",
    "Target",
    "can_map",
    "cut_rank",
    "find_modules",
    "load_modules",
    "load_stack",
    "modules_in_use",
    "other_bases",
    "random_modules",
    "rank_note",
    "read_module",
    "warn_of_other_bases",
    "write_module",
]
