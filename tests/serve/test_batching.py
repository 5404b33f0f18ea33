"""Batcher: what waits is answered together and in order, what nobody wants is not, and closing finishes the rest."""

import threading
import time

import pytest

from lorahub_edge.serve import GenerationSettings, OnnxModel
from lorahub_edge.serve.batching import Batcher, Job, Overloaded, ShuttingDown
from tests import tiny

TEXT = tiny.ROWS[0][0]


class HeldModel(OnnxModel):
    """A model that begins only when it is let go, and counts the rows of each batch."""

    def __init__(self, folder):
        super().__init__(folder, n_threads=1)
        self.go = threading.Event()
        self.sizes = []

    def begin(self, prompts, prefix=None):
        self.go.wait(30)
        self.sizes.append(len(prompts))
        return super().begin(prompts, prefix)


@pytest.fixture
def model(folders):
    return HeldModel(folders["t5"])


def job(found, name):
    return Job(TEXT, GenerationSettings(max_new_tokens=2), lambda piece: found.append((name, piece)))


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_closing_finishes_what_waits_and_takes_nothing_more(model):
    found = []
    batcher = Batcher(model, max_batch=2, max_waiting=8)
    batcher.submit([job(found, "first")])
    wait_until(lambda: batcher.n_waiting == 0)
    batcher.submit([job(found, name) for name in ("second", "third", "fourth")])
    assert batcher.close(timeout_s=0.05) is False
    with pytest.raises(ShuttingDown, match="shutting down"):
        batcher.submit([job(found, "late")])
    model.go.set()
    assert batcher.close(timeout_s=30) is True
    answered = [name for name, piece in found if not isinstance(piece, Exception) and piece.completion]
    assert answered == ["first", "second", "third", "fourth"]
    assert model.sizes == [1, 2, 1]


def test_a_request_is_queued_whole_or_not_at_all(model):
    batcher = Batcher(model, max_batch=1, max_waiting=3)
    batcher.submit([job([], "first")])
    wait_until(lambda: batcher.n_waiting == 0)
    batcher.submit([job([], "a"), job([], "b")])
    with pytest.raises(Overloaded, match="2 texts wait already and at most 3 may"):
        batcher.submit([job([], "c"), job([], "d")])
    assert batcher.n_waiting == 2
    batcher.submit([job([], "e")])
    model.go.set()
    assert batcher.close(timeout_s=30)


def test_what_was_given_up_while_it_waited_never_reaches_the_model(model):
    found = []
    batcher = Batcher(model, max_batch=4, max_waiting=8)
    batcher.submit([job(found, "first")])
    wait_until(lambda: batcher.n_waiting == 0)
    gone = job(found, "gone")
    batcher.submit([gone, job(found, "second")])
    gone.cancelled.set()
    model.go.set()
    assert batcher.close(timeout_s=30)
    assert {name for name, _ in found} == {"first", "second"}
    assert model.sizes == [1, 1]
