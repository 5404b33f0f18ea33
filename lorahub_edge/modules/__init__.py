"""Modules: LoRA modules from anywhere, checked against the base and stacked for the compose kernel."""

from lorahub_edge.modules.files import LoraFactors, LoraModule, read_module, write_module
from lorahub_edge.modules.hub import load_modules
from lorahub_edge.modules.stack import ModuleStack, Target, random_modules

__all__ = [
    "LoraFactors",
    "LoraModule",
    "ModuleStack",
    "Target",
    "load_modules",
    "random_modules",
    "read_module",
    "write_module",
]
