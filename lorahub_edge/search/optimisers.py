"""nevergrad's optimisers as searchers: found by name, tried before anything slow begins, kept from hanging or leaking.

nevergrad has more than 500 names. Some need a package that is not installed, some fail at some sizes, some draw from
NumPy's global state, and some wait for themselves for ever. Here each of these becomes a result or one line.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import io
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from lorahub_edge.aside import NotDone, within
from lorahub_edge.errors import InvalidInput, first_line

Candidates = npt.NDArray[np.float64]
T = TypeVar("T")

# No optimiser thinks for so long. One that waits for itself, as NGOptF does at some sizes, is found much earlier.
ASK_LIMIT_S = 60.0

# A trial ends after so many candidates, or so many seconds.
TRIAL_CANDIDATES, TRIAL_S = 40, 1.0

# Where the number of modules is not known yet, an optimiser is refused if it works at neither size.
_TRIAL_SIZES = (2, 20)

# NumPy's global state, stdout and warnings are the process's: searches in several threads lend them in turn.
_ONE_AT_A_TIME = threading.RLock()

# nevergrad's optimisers that need the package bayes_opt, which loads scikit-learn and pandas: up to 80 MB for two names
# of more than 500, so it is left out for all others. nevergrad itself treats it as one that may be missing.
_NEED_BAYES_OPT = ("BO", "BOSplit")


@functools.cache
def nevergrad() -> Any:
    """nevergrad, imported when a search begins: it takes a second and 40 MB, and answering needs neither."""
    with _expected_warnings(), _left_out("bayes_opt"), _GlobalState(0).lent():  # some settings are drawn on import
        return importlib.import_module("nevergrad")


def load_optimisers(optimizer: str = "cma-es") -> None:
    """Import what a search by this optimiser needs, so that what it takes in memory is there to be measured."""
    if optimizer in _NEED_BAYES_OPT:
        with contextlib.suppress(ImportError):  # optimiser_class says what is missing
            importlib.import_module("bayes_opt")
    nevergrad()


def optimiser_class(optimizer: str, ours: tuple[str, ...]) -> Any:
    """Look up one of nevergrad's names.

    Args:
        optimizer: the name.
        ours: names to propose beside nevergrad's.

    Raises:
        InvalidInput: an unknown name (with close ones).
    """
    load_optimisers(optimizer)
    registry = nevergrad().optimizers.registry
    if optimizer in registry:
        return registry[optimizer]
    if optimizer in _NEED_BAYES_OPT:
        raise InvalidInput(
            f"optimizer '{optimizer}' needs the package bayes_opt when nevergrad is loaded, and in this process it "
            "was not there; install it, and import it before the first search"
        )
    close = difflib.get_close_matches(optimizer, [*ours, *registry], n=3, cutoff=0.4) or [*ours, "NGOpt", "Cobyla"]
    raise InvalidInput(f"optimizer '{optimizer}' is not known; did you mean {', '.join(close)}?")


def try_optimiser(optimizer: str, optimiser: Any, n: int | None, budget: int) -> None:
    """Let an optimiser search a little on a toy objective.

    Args:
        optimizer: its name, for messages.
        optimiser: see `optimiser_class`.
        n: dimensions; None if they are not known yet.
        budget: evaluations planned.

    Raises:
        InvalidInput: it fails, or never ends, at this size; without a size: at all that were tried.
    """
    failures: list[InvalidInput] = []
    for size in _TRIAL_SIZES if n is None else (n,):
        try:
            _search_toy(optimizer, optimiser, size, budget)
        except InvalidInput as error:
            failures.append(error)
        else:
            return
    raise failures[0]


def _search_toy(optimizer: str, optimiser: Any, n: int, budget: int) -> None:
    started, left = time.perf_counter(), min(budget, TRIAL_CANDIDATES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the search itself will show them
        searcher = NevergradSearcher(optimizer, optimiser, start=np.zeros(n), bound=1.0, budget=budget, seed=0)
        while left > 0 and time.perf_counter() - started < TRIAL_S:
            candidates = searcher.ask(left)
            searcher.tell(candidates, ((candidates - 0.3) ** 2).sum(axis=1))
            left -= len(candidates)


class NevergradSearcher:
    """Any nevergrad optimiser over the box [-bound, bound]^n.

    Args:
        name: what the user asked for, for the record.
        optimizer: a nevergrad optimiser class or configured family.
        start: float64 (n,), where the search begins.
        bound: half width of the box.
        budget: evaluations that the optimiser may plan with.
        seed: of all its randomness.
        population_size: candidates per ask; 1 for optimisers that learn after each evaluation.

    Raises:
        InvalidInput: the optimiser fails, here or in `ask`; the message names it.
    """

    def __init__(
        self,
        name: str,
        optimizer: Any,
        *,
        start: npt.NDArray[np.float64],
        bound: float,
        budget: int,
        seed: int,
        population_size: int = 1,
    ) -> None:
        self.name = name
        self._bound = bound
        self._population_size = population_size
        self._global_state = _GlobalState(seed)
        self._optimizer = self._call(lambda: _made(optimizer, start, bound, budget, seed))
        self._asked: list[Any] = []
        self._untold: list[tuple[Any, float]] = []

    @property
    def resolved_name(self) -> str:
        """The innermost optimiser: nevergrad's choosers (NGOpt, Shiwa) pick another at the first ask."""
        inner = self._optimizer
        while (chosen := getattr(inner, "optim", None)) is not None and chosen is not inner:
            inner = chosen
        return str(inner.name)

    def ask(self, at_most: int) -> Candidates:
        self._asked = self._call(functools.partial(self._next_generation, min(self._population_size, at_most)))
        candidates = np.array([candidate.value for candidate in self._asked], dtype=np.float64)
        inside = np.abs(candidates) <= self._bound  # false for NaN as well
        if not inside.all():
            raise InvalidInput(
                f"optimizer '{self.name}' proposed {candidates[~inside][0]}; expected numbers within "
                f"+-{self._bound:g}; choose another optimizer"
            )
        return candidates

    def tell(self, candidates: Candidates, objectives: npt.NDArray[np.float64]) -> None:
        # Told at the next ask. Optimisers in threads of their own then draw and compute within one call, not beside
        # the evaluations, and nothing that was evaluated is lost if they fail.
        self._untold += [(c, float(objective)) for c, objective in zip(self._asked, objectives, strict=True)]

    def _next_generation(self, size: int) -> list[Any]:
        untold, self._untold = self._untold, []
        for candidate, objective in untold:
            self._optimizer.tell(candidate, objective)
        return [self._optimizer.ask() for _ in range(size)]

    def _call(self, call: Callable[[], T]) -> T:
        with _ONE_AT_A_TIME, _expected_warnings(), self._global_state.lent():
            return _aside(call, self.name)


def _made(optimizer: Any, start: npt.NDArray[np.float64], bound: float, budget: int, seed: int) -> Any:
    box = nevergrad().p.Array(init=start.tolist(), lower=[-bound] * len(start), upper=[bound] * len(start))
    box.random_state = np.random.RandomState(seed)  # nevergrad takes no Generator
    with contextlib.redirect_stdout(io.StringIO()):  # AXP prints what it lacks; stdout is for answers
        return optimizer(parametrization=box, budget=budget)


class _GlobalState:
    """A state of NumPy's global generator that is in force only while it is lent: some optimisers draw from there."""

    def __init__(self, seed: int) -> None:
        self._state = np.random.RandomState([seed, 1]).get_state()

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        saved = np.random.get_state()  # noqa: NPY002
        np.random.set_state(self._state)  # noqa: NPY002
        try:
            yield
        finally:
            self._state = np.random.get_state()  # noqa: NPY002
            np.random.set_state(saved)  # noqa: NPY002


def _aside(call: Callable[[], T], optimizer: str) -> T:
    """Call nevergrad, which may start threads of other libraries' optimisers that never end.

    Raises:
        InvalidInput: the call fails, or does not end.
    """
    try:
        return within(ASK_LIMIT_S, call, name=f"optimizer {optimizer}")
    except NotDone as error:
        reason = "does not come to a next candidate"
        raise InvalidInput(f"optimizer '{optimizer}' {reason}; choose another optimizer") from error
    except Exception as error:
        raise InvalidInput(f"optimizer '{optimizer}' {_reason(error)}; choose another optimizer") from error


def _reason(error: BaseException) -> str:
    """What went wrong first: nevergrad wraps the errors of its threads."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"needs the package {error.name.partition('.')[0]}, which is not installed"
    return f"failed here ({type(error).__name__}: {first_line(error)})"


@contextlib.contextmanager
def _left_out(package: str) -> Iterator[None]:
    """Let an import of the package fail as if it was not installed, unless it is loaded already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


@contextlib.contextmanager
def _expected_warnings() -> Iterator[None]:
    """Keep quiet what nevergrad's dependencies say of every run."""
    with warnings.catch_warnings():
        # cma could plot if matplotlib were there
        warnings.filterwarnings("ignore", message="Could not import matplotlib")
        # SciPy's COBYLA corrects the end radius that nevergrad gives it, and a budget too small for its simplex
        warnings.filterwarnings("ignore", message="COBYLA: Invalid (RHOEND|MAXFUN)")
        yield
