"""How to train: numbers and their checks."""

from __future__ import annotations

from dataclasses import dataclass

from lorahub_edge.adaptation.settings import check_numbers
from lorahub_edge.errors import InvalidInput


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
        positive = ("rank", "alpha", "epochs", "max_steps", "learning_rate", "batch_size", "max_input_tokens")
        for name in (*positive, "max_target_tokens"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InvalidInput(f"{name}: expected a number above 0, received {value}")
        check_numbers(seed=self.seed)
        if not 0 <= self.dropout < 1:
            raise InvalidInput(f"dropout: expected 0 <= dropout < 1, received {self.dropout}")
