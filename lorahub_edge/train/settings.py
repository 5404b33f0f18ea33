"""How to train: numbers and their checks."""

from __future__ import annotations

from dataclasses import dataclass

from lorahub_edge.adaptation.settings import FINITE, MAX_SEED, Range, check_ranges

# Settings that are not named here are counts.
_RANGES = {
    "rank": Range(1, 2**16),
    "alpha": Range(0, FINITE, whole=False, open_low=True),
    "dropout": Range(0, 1, whole=False, open_high=True),
    "learning_rate": Range(0, FINITE, whole=False, open_low=True),
    "seed": Range(0, MAX_SEED - 1),
}


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        rank, alpha, dropout: of the LoRA.
        targets: layer names; None is the family's usual pair (q and v).
        epochs: passes over the rows; max_steps, if not None, ends it earlier.
        learning_rate: AdamW's, falling linearly to 0.
        batch_size: rows per step.
        max_input_tokens, max_target_tokens: longer ones are cut.
        seed: of the initial factors, the order of rows and dropout.
    """

    rank: int = 16
    alpha: float = 32
    dropout: float = 0.1
    targets: tuple[str, ...] | None = None
    epochs: int = 20
    max_steps: int | None = None
    learning_rate: float = 2e-4
    batch_size: int = 10
    max_input_tokens: int = 1024
    max_target_tokens: int = 256
    seed: int = 42

    def check(self) -> None:
        """Refuse numbers out of range.

        Raises:
            InvalidInput: names the setting, what was expected and what came.
        """
        values = {name: value for name, value in vars(self).items() if name != "targets"}
        check_ranges(values, _RANGES)
