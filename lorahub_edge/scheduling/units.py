"""What a worker does with a unit of work, wherever the worker is. Knows functions only."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

from lorahub_edge.errors import LorahubEdgeError, first_line

# What a worker keeps from one unit to the next, such as a loaded base.
Held: TypeAlias = "dict[str, Any]"
# A function of a module, called with a unit and what the worker holds.
Function: TypeAlias = "Callable[[Any, Held], Any]"
# A unit's result, or the error that it ended with.
Result: TypeAlias = "tuple[Any, Exception | None]"


def reason_of(error: BaseException) -> str:
    """An error in one line; one that is not ours by its type too."""
    return str(error) if isinstance(error, LorahubEdgeError) else f"{type(error).__name__}: {first_line(error)}"


def attempt(function: Function, unit: Any, held: Held) -> Result:
    """Carry out a unit where its errors have to travel: as a reason, since not every exception can be pickled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(unit, held), None
        except Exception as error:
            return None, LorahubEdgeError(reason_of(error))


def begin(threads: int) -> None:
    """Make a process ready to be a worker: its share of the cores, and other libraries' logs kept quiet."""
    import torch

    torch.set_num_threads(threads)
    for library in ("bitsandbytes", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
