"""Lanes: jobs side by side, each alone on a place, and torch's threads as they were afterwards."""

import threading

import pytest
import torch

from lorahub_edge.adaptation.lanes import Lanes, n_lanes
from lorahub_edge.base import load_base
from lorahub_edge.base.int8 import Int8Linear


@pytest.mark.parametrize("n", [1, 2, 3])
def test_results_come_in_order_whatever_ends_first(n):
    def job_for(number):
        def job(place):
            if number % n == 0:
                threading.Event().wait(0.01)
            return number

        return job

    with Lanes(range(n)) as lanes:
        assert list(lanes.run(map(job_for, range(20)))) == list(range(20))


def test_no_two_jobs_share_a_place_and_both_places_are_used():
    busy, met = set(), threading.Barrier(2, timeout=30)

    def job(place):
        assert place not in busy
        busy.add(place)
        met.wait()  # passes only with another job at the same time
        busy.remove(place)
        return place

    with Lanes(["a", "b"]) as lanes:
        assert set(lanes.run([job] * 10)) == {"a", "b"}


def test_each_lane_has_one_thread_of_torchs_and_the_caller_keeps_its_own(two_threads):
    with Lanes([0, 1]) as lanes:
        assert list(lanes.run([lambda _: torch.get_num_threads()] * 4)) == [1] * 4
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 2
    with Lanes([0]) as lanes:  # one place has all of them, in the caller's thread
        assert list(lanes.run([lambda _: (torch.get_num_threads(), threading.current_thread())])) == [
            (2, threading.current_thread())
        ]


def test_an_error_is_raised_and_what_has_not_begun_is_dropped():
    done, was_raised = [], threading.Event()

    def job_for(number):
        def job(place):
            if number == 1:
                raise MemoryError("no more")
            assert number == 0 or was_raised.wait(60)
            done.append(number)

        return job

    with Lanes([0, 1]) as lanes:
        with pytest.raises(MemoryError, match="no more"):
            list(lanes.run(map(job_for, range(1000))))
        was_raised.set()
        assert list(lanes.run([lambda place: "again"])) == ["again"]
    assert set(done) <= {0, 2, 3}  # one for each lane had begun


def test_lanes_follow_threads_and_tokens(two_threads):
    assert [n_lanes("cpu", tokens) for tokens in (1, 79, 159, 160, 640)] == [1, 1, 1, 2, 2]
    assert n_lanes("cuda", 8192) == 1
    torch.set_num_threads(1)
    assert n_lanes("cpu", 640) == 1


def test_a_replica_shares_tensors_and_nothing_else():
    base = load_base("pocket", device="cpu")
    replica = base.replica()
    names = [n for n, _ in base.model.named_buffers()]
    assert names == [n for n, _ in replica.model.named_buffers()]
    for a, b in zip(base.model.buffers(), replica.model.buffers(), strict=True):
        assert a.data_ptr() == b.data_ptr()
    assert replica.weight_bytes() == base.weight_bytes()
    layers = [[m for m in b.model.modules() if isinstance(m, Int8Linear)] for b in (base, replica)]
    for a, b in zip(*layers, strict=True):
        assert a is not b
        assert a.inputs is not b.inputs
        assert a.engine == b.engine
    assert len({id(layer.inputs) for layer in layers[1]}) == 1
