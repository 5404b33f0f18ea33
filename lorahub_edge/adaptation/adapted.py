"""AdaptedModel: a base with one composed module beside it, ready to be scored and to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorahub_edge.adaptation.generate import greedy_answers
from lorahub_edge.adaptation.objective import FORMS, Objective
from lorahub_edge.adaptation.population import PopulationForward
from lorahub_edge.adaptation.saved_run import SavedRun
from lorahub_edge.base import Base
from lorahub_edge.cache import default_cache
from lorahub_edge.modules import LoraModule, ModuleStack
from lorahub_edge.tasks import Examples, PromptFormat, Score, as_examples
from lorahub_edge.tasks.lost import warn_of_unreachable
from lorahub_edge.texts import checked_texts


@dataclass(frozen=True)
class AdaptedModel:
    """A base and a point in the space of its modules.

    Attributes:
        base: frozen.
        stack: modules.
        coefficients: float64 (n_modules,).
        prompt: how text becomes tokens.
        max_new_tokens: where answers are cut.
    """

    base: Base
    stack: ModuleStack
    coefficients: torch.Tensor
    prompt: PromptFormat
    max_new_tokens: int

    @classmethod
    def of_module(cls, base: Base, module: LoraModule, prompt: PromptFormat, max_new_tokens: int) -> AdaptedModel:
        """A base with one module beside it, as it is."""
        stack = ModuleStack.build([module], base)
        as_it_is = torch.ones(1, dtype=torch.float64)
        return cls(base, stack, as_it_is, prompt, max_new_tokens)

    @classmethod
    def of_run(cls, run: SavedRun, *, device: str = "auto") -> AdaptedModel:
        """The base of a run with its composed module beside it.

        Raises:
            InvalidInput: the base is gone or no longer the same.
        """
        base = run.load_base(device=device, cache=default_cache())
        return cls.of_module(base, run.module, PromptFormat.of_record(base, run.prompt), run.max_new_tokens)

    def predict(self, inputs: Sequence[str], *, batch_size: int = 16) -> list[str]:
        """Greedy answers to texts, in order.

        Raises:
            TypeError: one text instead of a list of texts.
        """
        return greedy_answers(
            self.base,
            self.stack,
            self.coefficients,
            self.prompt.encode_inputs(checked_texts(inputs, "inputs"), "inputs"),
            self.prompt,
            max_new_tokens=self.max_new_tokens,
            batch_size=batch_size,
        )

    def loss(self, examples: Examples) -> float:
        """Cross-entropy per answer token over all examples."""
        encoded = self.prompt.encode_all(as_examples(examples))
        with PopulationForward(self.base, self.stack, encoded).ready() as forward:
            objective = Objective(forward, FORMS["published"], alpha=0.0)
            return objective(self.coefficients[None].double().numpy())[0].mean_loss

    def evaluate(self, examples: Examples) -> Score:
        """Loss and scores of the answers on a file or a list of examples."""
        rows = as_examples(examples)
        warn_of_unreachable(self.prompt, [e.target for e in rows], "examples")
        return Score.of(self.predict([e.input for e in rows]), rows, self.loss(rows))

    def __repr__(self) -> str:
        return f"AdaptedModel({self.base!r}, {len(self.stack.names)} modules)"
