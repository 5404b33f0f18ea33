"""nevergrad's optimisers: refused in one line before a search, never a hang, a thread left behind or another's seed."""

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from lorahub_edge import aside
from lorahub_edge.errors import InvalidInput
from lorahub_edge.search import (
    NevergradSearcher,
    check_optimizer,
    load_optimisers,
    make_searcher,
    optimisers,
    run_search,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:nevergrad.*")


@dataclass(frozen=True)
class Number:
    objective: float


def bowl(candidates):
    return [Number(float(((c - 0.3) ** 2).sum())) for c in candidates]


@pytest.mark.parametrize(
    ("optimizer", "package"),
    [
        ("NLOPT_LN_SBPLX", "nlopt"), ("BOBYQA", "pybobyqa"), ("AX", "ax"), ("AXP", "ax"), ("SMAC3", "ConfigSpace"),
        ("pysot", "poap"), ("PymooNSGA2", "pymoo"), ("FCMA", "fcmaes"), ("PCABO", "bayes_optim"),
    ],
)  # fmt: skip
def test_an_optimiser_that_lacks_a_package_is_refused_by_its_name(optimizer, package, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, package, None)  # as if it was not installed
    load_optimisers()
    started = time.perf_counter()
    with pytest.raises(InvalidInput) as refused:
        check_optimizer(optimizer)
    assert time.perf_counter() - started < 5
    message = f"optimizer '{optimizer}' needs the package {package}, which is not installed; choose another optimizer"
    assert str(refused.value) == message
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("optimizer", ["guided-cma", "cma-es", "NGOpt", "Cobyla", "OnePlusOne", "DE"])
def test_what_works_passes(optimizer):
    check_optimizer(optimizer)
    check_optimizer(optimizer, 5, 7)


def test_a_name_may_work_at_one_size_only(monkeypatch):
    """nevergrad's CMA needs another package in one dimension."""
    monkeypatch.setitem(sys.modules, "fcmaes", None)
    own = optimisers.nevergrad().families.ParametrizedCMA(popsize=4)  # nevergrad notes the dimension in what is shared
    optimisers.try_optimiser("CMA", own, None, 40)
    with pytest.raises(InvalidInput, match="needs the package fcmaes"):
        optimisers.try_optimiser("CMA", own, 1, 40)


class Scripted:
    """An optimiser that proposes one value after the other, or calls what is no value."""

    name = "scripted"

    def __init__(self, script):
        self.script = iter(script)

    def __call__(self, parametrization, budget):
        return self

    def ask(self):
        step = next(self.script)
        return SimpleNamespace(value=np.full(2, step() if callable(step) else step))

    def tell(self, candidate, objective):
        pass


def scripted(*script):
    return NevergradSearcher("scripted", Scripted(script), start=np.zeros(2), bound=1.5, budget=9, seed=0)


def fail():
    raise TypeError("only this\nand more")


def fail_in_a_thread():
    try:
        fail()
    except TypeError as error:
        raise RuntimeError("Recast optimizer raised an error:\n") from error


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (float("nan"), "'scripted' proposed nan; expected numbers within [+]-1.5"),
        (float("inf"), "'scripted' proposed inf; expected numbers within [+]-1.5"),
        (1.6, "'scripted' proposed 1.6; expected numbers within [+]-1.5"),
        (fail, "'scripted' failed here [(]TypeError: only this[)]; choose another"),
        (fail_in_a_thread, "'scripted' failed here [(]TypeError: only this[)]; choose another"),
        (threading.Event().wait, "'scripted' does not come to a next candidate; choose another"),
    ],
)
def test_an_optimiser_that_fails_half_way_is_named_and_its_evaluations_are_kept(step, message, monkeypatch):
    monkeypatch.setattr(aside, "IDLE_S", 0.5)
    journal = []
    searcher = scripted(0.5, 0.25, step)
    with pytest.raises(InvalidInput, match=f"^optimizer {message}") as failed:
        run_search(bowl, searcher, 9, journal.extend)
    assert "\n" not in str(failed.value)
    assert [float(e.coefficients[0]) for e in journal] == [0.5, 0.25]


@pytest.fixture
def heeds_ctrl_c():
    """A shell starts what runs in its background with the signal ignored, and Python leaves it so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_while_an_optimiser_thinks_gives_the_best_so_far(heeds_ctrl_c):
    def think():
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait()

    started = time.perf_counter()
    result = run_search(bowl, scripted(0.5, 0.25, 1.0, think), 9)
    assert time.perf_counter() - started < 5
    assert result.interrupted
    assert (result.n_evaluations, result.best.index) == (3, 1)


def test_an_optimiser_that_thinks_is_not_taken_for_one_that_waits(monkeypatch):
    def think():
        until = time.process_time() + 0.6
        while time.process_time() < until:
            pass
        return 0.25

    monkeypatch.setattr(aside, "IDLE_S", 0.25)
    assert run_search(bowl, scripted(0.5, think), 2).best.index == 1
    monkeypatch.setattr(optimisers, "ASK_LIMIT_S", 0.2)
    with pytest.raises(InvalidInput, match="does not come to a next candidate"):
        run_search(bowl, scripted(0.5, think), 2)


def optimiser_threads():
    return [t for t in threading.enumerate() if type(t).__name__ == "_MessagingThread" or "optimizer" in t.name]


@pytest.mark.parametrize("ends", ["by its budget", "by Ctrl-C"])
def test_a_search_leaves_no_thread_behind(ends):
    counter = itertools.count()

    def evaluate(candidates):
        if ends == "by Ctrl-C" and next(counter) == 5:
            raise KeyboardInterrupt
        assert any(type(t).__name__ == "_MessagingThread" for t in optimiser_threads())
        return bowl(candidates)

    before = optimiser_threads()
    result = run_search(evaluate, make_searcher("NGOpt", 5, bound=1.5, budget=9, seed=0), 9)
    assert result.interrupted == (ends == "by Ctrl-C")
    deadline = time.perf_counter() + 5
    while set(optimiser_threads()) - set(before) and time.perf_counter() < deadline:
        time.sleep(0.01)
    assert not set(optimiser_threads()) - set(before)


def test_a_search_that_is_still_held_does_not_keep_the_process_alive():
    """An exception's traceback holds it, and nevergrad's threads ended with their search only."""
    script = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "from lorahub_edge.search import make_searcher\n"
        "searcher = make_searcher('NGOpt', 5, bound=1.5, budget=9, seed=0)\n"
        "searcher.ask(1)\n"
        "raise SystemExit(3)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 3


@pytest.mark.parametrize("optimizer", ["DSproba", "LognormalDiscreteOnePlusOne"])
def test_what_draws_from_the_global_state_repeats_itself_and_leaves_it_alone(optimizer):
    seen = []
    for disturbance in (1, 2):
        np.random.seed(disturbance)  # noqa: NPY002
        before = np.random.get_state()[1].tobytes()  # noqa: NPY002
        candidates = []
        run_search(
            lambda batch, candidates=candidates: candidates.extend(batch) or bowl(batch),
            make_searcher(optimizer, 5, bound=1.5, budget=20, seed=3),
            20,
        )
        assert np.random.get_state()[1].tobytes() == before  # noqa: NPY002
        seen.append(candidates)
    np.testing.assert_array_equal(*seen)


def replayed() -> dict[str, bytes]:
    """All candidates of the presets' searches, at several sizes, as bytes."""
    seen = {}
    for optimizer, n in itertools.product(("guided-cma", "cma-es", "NGOpt"), (1, 2, 5, 20, 30)):
        budget, candidates = 40 + n * (optimizer == "guided-cma"), []

        def evaluate(batch, candidates=candidates, n=n):
            candidates.extend(batch)
            slopes = np.linspace(-0.4, 0.7, n)
            return [Number(float(((c - slopes) ** 2).sum() + 0.05 * np.abs(c).sum())) for c in batch]

        guide = lambda n=n: np.full(n, 1 / n)  # noqa: E731
        run_search(evaluate, make_searcher(optimizer, n, bound=1.5, budget=budget, seed=42, guide=guide), budget)
        seen[f"{optimizer}, {n} modules"] = np.array(candidates).tobytes()
    return seen


def test_a_search_asks_for_the_same_in_any_process_and_whatever_ran_before():
    """`adapt --resume` counts on it: it lets a new searcher run through the evaluations that are there."""
    np.random.seed(7)  # noqa: NPY002
    random.seed(7)
    expected = replayed()
    assert len(set(expected.values())) == len(expected)
    script = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "from tests.search.test_optimisers import replayed\n"
        "for name, data in replayed().items(): print(name, data.hex(), sep=':')"
    )
    other = {**os.environ, "PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"}
    done = subprocess.run([sys.executable, "-c", script], env=other, capture_output=True, text=True, check=True)
    afresh = dict(line.split(":") for line in done.stdout.splitlines())
    assert {name: bytes.fromhex(text) for name, text in afresh.items()} == expected
