"""Units go to free workers; a unit whose worker dies goes to another one, but not for ever."""

from concurrent.futures import Future
from typing import ClassVar

import pytest

from lorahub_edge.errors import InvalidInput, LorahubEdgeError
from lorahub_edge.scheduling import Workers, carry_out
from lorahub_edge.scheduling.here import ThisProcess


class Died(Exception):
    pass


class Mortal(ThisProcess):
    """Dies of the units that it is told to, once each unless they are deadly."""

    lost = (Died,)
    deadly: ClassVar[set[int]] = set()
    fatal: ClassVar[list[int]] = []
    started: ClassVar[list[ThisProcess]] = []

    def __init__(self, starts=True):
        super().__init__()
        type(self).started.append(self)
        self.is_dead = False
        if not starts:
            self.ready = Future()
            self.ready.set_exception(Died("at the start"))

    def submit(self, function, unit):
        assert not self.is_dead
        if unit in self.deadly or unit in self.fatal:
            if unit in self.fatal:
                self.fatal.remove(unit)
            future = Future()
            future.set_exception(Died(f"of {unit}"))
            return future
        return super().submit(function, unit)

    def stop(self):
        self.is_dead = True


@pytest.fixture(autouse=True)
def _nobody_has_died():
    Mortal.deadly, Mortal.fatal, Mortal.started = set(), [], []


def double(unit, held):
    if unit == 13:
        raise ValueError("unlucky")
    held["n"] = held.get("n", 0) + 1
    return 2 * unit


def ended(steps):
    return {
        step.place: step.result if step.error is None else str(step.error) for step in steps if step.kind == "ended"
    }


def test_every_unit_ends_once_and_an_error_is_that_unit_s_alone():
    steps = list(carry_out(double, [1, 13, 3], Mortal, n_workers=2))
    assert ended(steps) == {0: 2, 1: "unlucky", 2: 6}
    assert [s.kind for s in steps].count("started") == 3
    assert all(worker.is_dead for worker in Mortal.started)


def test_a_unit_whose_worker_dies_is_done_by_another():
    Mortal.fatal = [2, 2]
    steps = list(carry_out(double, [1, 2, 3], Mortal, n_workers=1))
    assert ended(steps) == {0: 2, 1: 4, 2: 6}
    assert [(s.kind, s.place) for s in steps if s.place == 1] == [
        ("started", 1), ("lost", 1), ("started", 1), ("lost", 1), ("started", 1), ("ended", 1),
    ]  # fmt: skip
    assert len(Mortal.started) == 3


def test_a_unit_that_kills_three_workers_is_a_failure_and_the_others_go_on():
    Mortal.deadly = {2}
    found = ended(carry_out(double, [1, 2, 3], Mortal, n_workers=2))
    assert (found[0], found[2]) == (2, 6)
    assert found[1] == "its worker died, 3 times; the last time: Died: of 2"


def test_workers_that_cannot_start_are_given_up_and_those_that_can_do_the_work():
    with pytest.raises(LorahubEdgeError, match="no worker can be started; the last one died: Died: at the start"):
        list(carry_out(double, [1, 2], lambda: Mortal(starts=False), n_workers=2))
    assert len(Mortal.started) < 9
    starts = iter([False, True, False])
    assert ended(carry_out(double, [1, 2, 3], lambda: Mortal(next(starts, False)), n_workers=2)) == {0: 2, 1: 4, 2: 6}


def test_what_waits_for_room_keeps_nobody_waiting():
    """As on a cluster with room for one of two workers."""

    class NeverReady(Mortal):
        def __init__(self):
            super().__init__()
            self.ready = Future()

    kinds = iter([NeverReady, Mortal])
    assert ended(carry_out(double, [1, 2], lambda: next(kinds)(), n_workers=2)) == {0: 2, 1: 4}


def test_who_stops_listening_stops_the_workers():
    steps = carry_out(double, [1, 2, 3], Mortal, n_workers=2)
    next(steps)
    steps.close()
    assert all(worker.is_dead for worker in Mortal.started)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"n": 0}, "workers: expected a whole number of at least 1, received 0"),
        ({"threads": -1}, "threads: expected"),
        ({"num_gpus": 0.5}, r"num_gpus: expected GPUs of each worker on Ray \(--ray\), received 0.5"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(asked, message):
    with pytest.raises(InvalidInput, match=message):
        Workers(**asked)
