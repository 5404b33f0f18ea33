"""lorahub_edge: adapt a frozen int8 model to a new task by composing LoRA modules, without gradients.

    import lorahub_edge

    run = lorahub_edge.adapt(base="pocket", modules="pocket", examples="my_task.jsonl")
    run.coefficients, run.table, run.predict(["..."])

`adapt` finds the coefficients, `plan` says what it would need in memory, `load_adapted` opens a run, merged or
exported folder again, `train_module` makes a module for a hub;
`sweep` adapts to many tasks with many settings, on one machine or many;
`merge` folds a run's module into its base, `export` makes an ONNX folder of it, `verify` checks one again,
`export_gguf_adapter` makes a LoRA file for llama.cpp;
`Catalogue` knows thousands of modules, and `modules="hub:QUERY"` takes some of them;
`lorahub_edge.serve` answers from such a folder without torch.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lorahub_edge.cpu_floor import need_cpu
from lorahub_edge.errors import needed_by

if TYPE_CHECKING:
    from lorahub_edge.adaptation import AdaptedModel, MemoryPlan, Run, adapt, plan
    from lorahub_edge.answering import ExportedModel, load_adapted
    from lorahub_edge.base import Base, load_base, save_base
    from lorahub_edge.catalogue import Catalogue
    from lorahub_edge.exporting import Exported, GgufAdapter, export, export_gguf_adapter, verify
    from lorahub_edge.merging import Merged, merge
    from lorahub_edge.modules import LoraModule, load_modules
    from lorahub_edge.sweeping import Swept, sweep
    from lorahub_edge.train import train_module

__version__ = "0.1.0"

_HOME = {
    "AdaptedModel": "adaptation",
    "Base": "base",
    "Catalogue": "catalogue",
    "Exported": "exporting",
    "ExportedModel": "answering",
    "GgufAdapter": "exporting",
    "LoraModule": "modules",
    "MemoryPlan": "adaptation",
    "Merged": "merging",
    "Run": "adaptation",
    "Swept": "sweeping",
    "adapt": "adaptation",
    "export": "exporting",
    "export_gguf_adapter": "exporting",
    "load_adapted": "answering",
    "load_base": "base",
    "load_modules": "modules",
    "merge": "merging",
    "plan": "adaptation",
    "save_base": "base",
    "sweep": "sweeping",
    "train_module": "train",
    "verify": "exporting",
}
__all__ = [
    "AdaptedModel",
    "Base",
    "Catalogue",
    "Exported",
    "ExportedModel",
    "GgufAdapter",
    "LoraModule",
    "MemoryPlan",
    "Merged",
    "Run",
    "Swept",
    "adapt",
    "export",
    "export_gguf_adapter",
    "load_adapted",
    "load_base",
    "load_modules",
    "merge",
    "plan",
    "save_base",
    "sweep",
    "train_module",
    "verify",
]

# onnxruntime 1.31 reports to its makers, with a number for the device, unless this is set when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: torch and transformers take seconds, and serving does without them.

    Raises:
        NotInstalled: it needs more than the plain install has.
    """
    if name not in _HOME:
        raise AttributeError(f"module 'lorahub_edge' has no attribute '{name}'")
    need_cpu()
    with needed_by(name):
        return getattr(import_module(f"lorahub_edge.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """What is public, though nothing of it is imported yet."""
    return sorted([*__all__, "__version__"])
