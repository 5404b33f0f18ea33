"""Pre-filter: which modules of a large pool a search is to weigh, where it should not weigh all of them.

By chance, as LoRAHub chooses; by what modules say they were trained on; both are known before any weight is read. Or by
the loss of each module alone, which reads all of them, one batch after the other, and costs an evaluation of each.
"""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lorahub_edge.adaptation.controls import lowest_first
from lorahub_edge.adaptation.journal import Journal
from lorahub_edge.adaptation.memory_plan import MemoryPlan, check_use
from lorahub_edge.adaptation.objective import Value, objective_on
from lorahub_edge.adaptation.progress import OnProgress, Progress
from lorahub_edge.adaptation.settings import RunSettings, SearchSettings
from lorahub_edge.adaptation.similarity import cosine_similarities
from lorahub_edge.adaptation.stages import Encoded, Found, Opened
from lorahub_edge.adaptation.task import Task
from lorahub_edge.base import Base
from lorahub_edge.cache import Cache
from lorahub_edge.catalogue.folders import CARD, TRAINING_ROWS, own_words
from lorahub_edge.errors import LorahubEdgeWarning
from lorahub_edge.kernels import memory
from lorahub_edge.modules import LoraModule, ModuleFolder, load_stack
from lorahub_edge.search import Evaluated

# At most so many modules are in memory at once while each is looked at alone, and never more than are to be chosen:
# the plan for the chosen ones then holds for the batches too.
_BATCH = 24


class PoolWarning(LorahubEdgeWarning):
    """The pool has fewer modules than may be chosen, or some that say nothing of what they were trained on."""


@dataclass(frozen=True)
class Choice:
    """Some modules of a pool.

    Attributes:
        way: by which they were chosen, one of WAYS.
        pool: names of all modules, in order.
        places: of the chosen ones in the pool, in the order in which the search has them: best first, or as drawn.
        scores: of each module of the pool, its mean loss ("loss") or similarity ("similar"; None if it says nothing);
            None if there is no such number.
    """

    way: str
    pool: tuple[str, ...]
    places: tuple[int, ...]
    scores: tuple[float | None, ...] | None = None

    def as_record(self) -> dict[str, Any]:
        """For the manifest and the report."""
        left_out = [place for place in range(len(self.pool)) if place not in set(self.places)]
        return {
            "by": self.way,
            "of": len(self.pool),
            "evaluations": len(self.pool) if self.way == "loss" else 0,
            "chosen": [self._entry(place) for place in self.places],
            "left_out": [self._entry(place) for place in left_out],
        }

    def _entry(self, place: int) -> dict[str, Any]:
        score = {} if self.scores is None else {"loss" if self.way == "loss" else "similarity": self.scores[place]}
        return {"name": self.pool[place], **score}


def choose_unread(pool: Found, task: Task, settings: RunSettings) -> tuple[Found, Choice | None]:
    """What is left of the pool once all is chosen that can be before modules are read, and how it was chosen.

    The modules that are left out are not opened. By "loss" the whole pool is left; see `LossFilter`. Warns
    (PoolWarning) if there are fewer modules than may be chosen: then all are taken.
    """
    names, n = tuple(module.name for module in pool.modules), settings.n_searched(len(pool.modules))
    if (settings.max_modules or 0) > len(names):
        warnings.warn(
            f"max_modules: {settings.max_modules} may be chosen and there are {len(names)}; all are taken",
            PoolWarning,
            stacklevel=2,
        )
    if n == len(names) or settings.choose_modules == "loss":
        return pool, None
    if settings.choose_modules == "random":
        # LoRAHub's draw: random.seed(seed), random.sample(names, n)
        choice = Choice("random", names, tuple(random.Random(settings.seed).sample(range(len(names)), n)))
    else:
        scores = _similarities(pool.modules, task)
        best = sorted(range(len(names)), key=lambda place: (scores[place] is None, -(scores[place] or 0.0)))
        choice = Choice("similar", names, tuple(best[:n]), tuple(scores))
    return replace(pool, modules=[pool.modules[place] for place in choice.places]), choice


@dataclass(frozen=True)
class LossFilter:
    """A choice that can only be made once the base is there: the n modules whose mean loss alone is lowest.

    Attributes:
        pool, encoded, search, plan: the run's; modules stay in memory as the plan says for those that are searched.
        n: below the number of modules.
        cache: only used where the plan maps modules: elsewhere each batch is read once.
    """

    pool: Opened
    encoded: Encoded
    search: SearchSettings
    plan: MemoryPlan
    n: int
    cache: Cache | None

    def choose(self, base: Base, journal: Journal, on_progress: OnProgress) -> Choice:
        """Look at each module alone, batch by batch; the best first.

        Args:
            base: loaded.
            journal: what it holds is not computed again. Its lines have a module's place in the pool as index.
            on_progress: told of each batch.
        """
        losses: list[float] = []
        size, n_pool = min(_BATCH, self.n), len(self.pool.modules)
        started = time.perf_counter()
        on_progress(Progress("choose", 0, n_pool))
        for first in range(0, n_pool, size):
            modules = self.pool.modules[first : first + size]
            values = journal.values[first : first + len(modules)]
            if len(values) < len(modules):  # a batch is written whole or not at all
                values = self._values_alone(base, modules)
                memory.give_back()
            alone = [Evaluated(first + i, np.ones(1), value) for i, value in enumerate(values)]
            journal.append(alone, elapsed_s=time.perf_counter() - started)
            losses += [value.mean_loss for value in values]
            on_progress(Progress("choose", len(losses), n_pool))
        return Choice("loss", self.pool.layout.names, tuple(lowest_first(losses)[: self.n]), tuple(losses))

    def _values_alone(self, base: Base, modules: Sequence[LoraModule | ModuleFolder]) -> list[Value]:
        """Of each of these modules; their stack is let go of again."""
        plan, search = self.plan, self.search
        cache = self.cache if plan.mapping == "mmap" else None
        stack = load_stack(modules, base, dtype=plan.stack_dtype, mapping=plan.mapping, cache=cache)
        stack = stack.composed_by(search.composition)
        examples = self.encoded.examples
        with objective_on(base, stack, examples, search, tokens_per_call=plan.tokens_per_call) as objective:
            values = objective(np.eye(len(modules)))
            check_use(plan)
        return values


def _similarities(modules: Sequence[LoraModule | ModuleFolder], task: Task) -> list[float | None]:
    """Of each module's own words to the examples; None where it has none, which is told once."""
    said = [_said_by(module) for module in modules]
    if n_silent := said.count(""):
        warnings.warn(
            f"choose_modules: {n_silent} of {len(said)} modules have neither {CARD} nor {TRAINING_ROWS} to say what "
            "they were trained on; they come last",
            PoolWarning,
            stacklevel=3,
        )
    asked = "\n".join(f"{example.input}\n{example.target}" for example in task.examples)
    scores = iter(cosine_similarities(asked, [text for text in said if text]))
    return [next(scores) if text else None for text in said]


def _said_by(module: LoraModule | ModuleFolder) -> str:
    """See `own_words`; what a catalogue has kept is not read again."""
    if isinstance(module, ModuleFolder):
        return own_words(module.folder) if module.words is None else module.words
    return own_words(module.files[0].parent) if module.files else ""
