"""Batcher: what waits is answered together and in order, what nobody wants is not, and closing finishes the rest."""

import dataclasses
import threading

import pytest

from lorahub_edge.errors import InvalidInput
from lorahub_edge.serve import GenerationSettings, OnnxModel
from lorahub_edge.serve.batching import Batcher, Job, ModelFailed, Overloaded, ShuttingDown
from tests import tiny
from tests.serve.conftest import wait_until

TEXT = tiny.ROWS[0][0]


class HeldModel(OnnxModel):
    """A model that begins only when it is let go, and counts the rows of each batch."""

    def __init__(self, folder):
        super().__init__(folder, n_threads=1)
        self.go = threading.Event()
        self.sizes = []

    def begin(self, prompts, prefix=None, mixes=None):
        self.go.wait(30)
        self.sizes.append(len(prompts))
        return super().begin(prompts, prefix, mixes)


@pytest.fixture
def model(folders):
    return HeldModel(folders["t5"])


@pytest.fixture
def job(model):
    def make(found, name):
        settings = GenerationSettings(max_new_tokens=2)
        return Job(model.files, model.mix, TEXT, settings, lambda piece: found.append((name, piece)))

    return make


def test_closing_finishes_what_waits_and_takes_nothing_more(model, job):
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


def test_a_request_is_queued_whole_or_not_at_all(model, job):
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


def test_what_was_given_up_while_it_waited_never_reaches_the_model(model, job):
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


class HeldTokenizer:
    """Tokenises only when it is let go; counts its texts."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.decode = tokenizer.decode
        self.go = threading.Event()
        self.texts = []

    def encode_batch(self, texts, **options):
        assert self.go.wait(30)
        self.texts += texts
        return self._tokenizer.encode_batch(texts, **options)


@pytest.fixture
def slow_reader(model):
    """A model whose tokenizer is held."""
    model.go.set()
    model.files = dataclasses.replace(model.files, tokenizer=HeldTokenizer(model.files.tokenizer))
    return model


def test_texts_are_tokenised_once_by_another_thread_and_count_as_waiting(slow_reader, job):
    found, tokenizer = [], slow_reader.files.tokenizer
    batcher = Batcher(slow_reader, max_batch=2, max_waiting=2)
    batcher.submit([job(found, "a"), job(found, "b")])
    with pytest.raises(Overloaded):
        batcher.submit([job(found, "c")])
    assert (tokenizer.texts, batcher.n_waiting) == ([], 2)
    tokenizer.go.set()
    assert batcher.close(timeout_s=30)
    assert {name for name, piece in found if piece.completion} == {"a", "b"}
    assert (tokenizer.texts, batcher.n_waiting) == ([TEXT, TEXT], 0)


def test_a_text_that_is_too_long_is_told_to_its_request_alone(model, job):
    model.go.set()
    found = []
    batcher = Batcher(model, max_batch=4, max_waiting=4)
    long = dataclasses.replace(job(found, "long"), prompt="dog " * 3000)
    batcher.submit([job(found, "beside"), long])
    batcher.submit([job(found, "other")])
    assert batcher.close(timeout_s=30)
    errors = {name for name, piece in found if isinstance(piece, InvalidInput)}
    assert (errors, batcher.n_waiting) == ({"beside", "long"}, 0)
    assert [name for name, piece in found if not isinstance(piece, Exception) and piece.completion] == ["other"]


def test_more_texts_than_may_ever_wait_are_no_reason_to_ask_again(model, job):
    batcher = Batcher(model, max_batch=4, max_waiting=2)
    with pytest.raises(InvalidInput, match="prompt: expected at most 2 texts, received 3"):
        batcher.submit([job([], "a"), job([], "b"), job([], "c")])
    assert batcher.close(timeout_s=30)


@pytest.mark.parametrize("part", ["begin", "tokenizer"])
def test_a_fault_is_logged_once_for_its_batch_and_told_to_everyone_in_it(model, job, part, caplog):
    model.go.set()
    if part == "begin":
        model.begin = lambda prompts, mixes: 1 / 0
    else:
        model.files = dataclasses.replace(model.files, tokenizer=None)
    found = []
    batcher = Batcher(model, max_batch=4, max_waiting=4)
    batcher.submit([job(found, "a"), job(found, "b")])
    assert batcher.close(timeout_s=30)
    assert [type(piece) for _, piece in found] == [ModelFailed] * 2
    assert all(record.exc_info is not None for record in caplog.records)
