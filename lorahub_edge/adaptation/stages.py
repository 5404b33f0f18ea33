"""The stages before the search, each a frozen value made from the one before: opened, encoded, planned.

Weights are still on disk when the last of them is there, so a run that cannot work ends before anything slow begins.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorahub_edge.adaptation.memory_plan import MemoryPlan, Workload, memory_plans
from lorahub_edge.adaptation.settings import RunSettings, SearchSettings
from lorahub_edge.adaptation.task import Task
from lorahub_edge.base import Base, OpenBase, open_base
from lorahub_edge.cache import Cache, content_hashes
from lorahub_edge.measure import Stopwatch, versions
from lorahub_edge.modules import LoraModule, ModuleFolder, StackLayout, can_map, find_modules, warn_of_other_bases
from lorahub_edge.search import load_optimisers
from lorahub_edge.tasks import EncodedExample, PromptFormat
from lorahub_edge.tasks.lost import warn_of_unreachable


@dataclass(frozen=True)
class Found:
    """Base and modules before anything of a module is read.

    Attributes:
        base: opened; loaded only if it was handed over so.
        modules: in the order given.
        specs: what named them; empty for loaded modules.
    """

    base: Base | OpenBase
    modules: Sequence[LoraModule | ModuleFolder]
    specs: tuple[str, ...]


@dataclass(frozen=True)
class Opened:
    """Base and modules, found and checked against each other.

    Attributes:
        base, modules, specs: see `Found`.
        layout: where their factors will lie.
    """

    base: Base | OpenBase
    modules: Sequence[LoraModule | ModuleFolder]
    layout: StackLayout
    specs: tuple[str, ...] = ()

    def only(self, places: Sequence[int]) -> Opened:
        """The modules at these places, in their order."""
        modules = [self.modules[place] for place in places]
        outlines = [module.outline() for module in modules]
        # what the pool changes, and not the base: an opened base is empty once it has been loaded
        shapes = {t.name: (t.out_features, t.in_features) for t in self.layout.targets}
        return Opened(self.base, modules, StackLayout.of(outlines, shapes, self.base.source.spec), self.specs)


def find_inputs(base: str | Path | Base, modules: Any, settings: RunSettings, stopwatch: Stopwatch) -> Found:
    """Open the base and find the modules.

    Args, Raises: see `adapt`.
    """
    with stopwatch.stage("load_base"):
        opened = (
            base
            if isinstance(base, Base)
            else open_base(str(base), precision=settings.precision, device=settings.device)
        )
    with stopwatch.stage("load_modules"):
        given = [modules] if isinstance(modules, (str, Path)) else list(modules)
        known = [m for m in given if isinstance(m, (LoraModule, ModuleFolder))]
        if given and len(known) == len(given):
            return Found(opened, known, ())
        return Found(opened, find_modules(given, bases=opened.source.names), tuple(map(str, given)))


def open_inputs(found: Found, stopwatch: Stopwatch) -> Opened:
    """Read what modules say of their factors, and check it against the base.

    Raises:
        IncompatibleModules, UnsupportedFormat: see `StackLayout.of`, `ModuleFolder.outline`.
    """
    with stopwatch.stage("load_modules"):
        outlines = [module.outline() for module in found.modules]
        layout = StackLayout.of(outlines, found.base.linear_shapes(), found.base.source.spec)
    warn_of_other_bases(outlines, found.base.source)
    return Opened(found.base, found.modules, layout, found.specs)


@dataclass(frozen=True)
class Encoded:
    """The task as token ids.

    Attributes:
        prompt: how text became tokens.
        examples: what the search reads.
        test: prompts of the test rows.
        lost: what of the task's texts the tokens do not hold, counted for the manifest.
        max_new_tokens: where answers are cut.
    """

    prompt: PromptFormat
    examples: Sequence[EncodedExample]
    test: Sequence[Sequence[int]]
    lost: Mapping[str, int]
    max_new_tokens: int


def encode(opened: Opened, task: Task, settings: RunSettings) -> Encoded:
    """Tokenise the examples and the test, once."""
    prompt = PromptFormat.for_base(opened.base, template=settings.prompt, max_input_tokens=settings.max_input_tokens)
    examples, lost = prompt.encode_examples(task.examples, "examples")
    test = prompt.encode_inputs([e.input for e in task.test], "test inputs")
    lost["n_test_unreachable"] = warn_of_unreachable(prompt, [e.target for e in task.test], "the test")
    max_new_tokens = settings.max_new_tokens or default_max_new_tokens(examples)
    return Encoded(prompt, examples, test, lost, max_new_tokens)


def default_max_new_tokens(examples: Sequence[EncodedExample]) -> int:
    """Where answers are cut unless a user says otherwise: well behind the longest that was seen."""
    return 2 * max(len(e.target_ids) for e in examples) + 8


def plan_memory(opened: Opened, encoded: Encoded, settings: RunSettings, cache: Cache | None) -> list[MemoryPlan]:
    """All that the run may do with memory, what gives up least first; see `choose_plan`."""
    load_optimisers(settings.chosen_optimizer)  # before what Python itself takes is measured
    tested_tokens = max((len(ids) + encoded.max_new_tokens for ids in encoded.test), default=0)
    return memory_plans(
        opened.base,
        opened.layout.of_any(settings.n_searched(len(opened.modules))),
        Workload(encoded.examples, tested_tokens, settings.evaluate_by, settings.chosen_composition),
        budget_bytes=settings.budget_bytes,
        stack_dtype=settings.stack_dtype,
        can_map=can_map(opened.modules, opened.base.device, cache),
    )


@dataclass(frozen=True)
class ContentHashes:
    """What the weights were before they were loaded.

    Attributes:
        base: file name -> hex SHA-256.
        modules: the same of each module, in order.
    """

    base: Mapping[str, str]
    modules: Sequence[Mapping[str, str]]

    @classmethod
    def of(cls, opened: Opened, cache: Cache | None) -> ContentHashes:
        """Of all files of the opened inputs, remembered where there is a cache."""
        base = content_hashes(opened.base.weight_files, cache)
        return cls(base, [content_hashes(module.files, cache) for module in opened.modules])

    def only(self, places: Sequence[int]) -> ContentHashes:
        """Of the modules at these places."""
        return ContentHashes(self.base, [self.modules[place] for place in places])


def evaluation_inputs(
    opened: Opened,
    encoded: Encoded,
    search: SearchSettings,
    plan: MemoryPlan,
    hashes: ContentHashes,
    n_searched: int,
) -> dict[str, str]:
    """Part of the inputs -> hash: all that an evaluation's value and place in the search depend on.

    Where fewer modules are searched than are opened, the choice among all of them is one of these evaluations' results.
    """
    parts: dict[str, Any] = {
        "base": [hashes.base, opened.base.precision, opened.base.device.type],
        "modules": [[m.name, files or _digest(m)] for m, files in zip(opened.modules, hashes.modules, strict=True)],
        "examples": [[e.input_ids, e.target_ids] for e in encoded.examples],
        "search settings": asdict(search),
        "memory plan": [plan.stack_dtype, plan.tokens_per_call],
        "versions": versions(),
    }
    if n_searched < len(opened.modules):
        parts["modules"] = [n_searched, parts["modules"]]
    return {part: hashlib.sha256(json.dumps(value).encode()).hexdigest() for part, value in parts.items()}


def _digest(module: LoraModule | ModuleFolder) -> str:
    """Of a module that was made in memory."""
    digest = hashlib.sha256()
    for target, factors in module.read().factors.items():
        digest.update(f"{target} {factors.scaling!r} {tuple(factors.A.shape)}".encode())
        for factor in (factors.A, factors.B):
            digest.update(factor.contiguous().numpy().tobytes())
    return digest.hexdigest()
