"""Engine: answers join and leave at any step, and are the same as alone, whatever they share a step with."""

import dataclasses
import random

import numpy as np
import pytest

from lorahub_edge.errors import InvalidInput
from lorahub_edge.serve import GenerationSettings, OnnxModel
from lorahub_edge.serve.engine import Engine
from lorahub_edge.serve.generate import new_sequence
from lorahub_edge.serve.state import of_rows, view
from tests import tiny

TEXTS = [text for text, _ in tiny.ROWS]


def sequences(model, settings, *, files=None):
    files = files or model.files
    return [
        new_sequence(k, files, files.encode(" ".join(TEXTS[: 1 + k % 3])), each, model.mix)
        for k, each in enumerate(settings)
    ]


def answers(engine, arrivals, *, every=1):
    """What comes of sequences of which one more arrives every few steps; all at once if 0."""
    found, step = {}, 0
    arrivals = list(arrivals)
    while arrivals or not engine.is_idle:
        while arrivals and (not every or step % every == 0):
            engine.add(arrivals.pop(0))
            if every:
                break
        for sequence, piece in engine.step():
            if isinstance(piece, Exception):
                found[sequence.index] = piece
            elif piece.completion:
                found[sequence.index] = piece.completion
        step += 1
    return [found[k] for k in sorted(found)]


@pytest.fixture
def mixed(model):
    """Greedy, sampled and beam searches of 1 to 12 tokens."""
    rng = random.Random(0)
    kinds = ({}, {"temperature": 1.2}, {"n_beams": 3}, {"n_logprobs": 2})
    return [GenerationSettings(max_new_tokens=rng.randint(1, 12), seed=k, **kinds[k % 4]) for k in range(12)]


@pytest.mark.parametrize(("max_rows", "every", "read_tokens"), [(None, 1, 128), (3, 1, 5), (6, 3, 5), (4, 2, 128)])
def test_answers_are_the_same_whatever_shares_their_steps(model, mixed, max_rows, every, read_tokens):
    expected = [answers(Engine(model), [sequence])[0] for sequence in sequences(model, mixed)]
    engine = Engine(model, max_rows=max_rows, read_tokens=read_tokens)
    found = answers(engine, sequences(model, mixed), every=every)
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]
    for one, other in zip(found, expected, strict=True):
        assert [s.token_id for s in one.scores] == [s.token_id for s in other.scores]
        np.testing.assert_allclose([s.logprob for s in one.scores], [s.logprob for s in other.scores], atol=0.2)


def test_answers_under_way_share_one_step(model, monkeypatch):
    """Eight answers of eight tokens that began one after the other: fewer calls than four of them alone take."""
    calls, read = [], OnnxModel.read
    monkeypatch.setattr(
        OnnxModel, "read", lambda self, *given, **how: calls.append(given[1].shape) or read(self, *given, **how)
    )
    settings = [GenerationSettings(max_new_tokens=8)] * 8
    files = model.files
    answers(Engine(model), sequences(model, settings, files=dataclasses.replace(files, end_ids=())))
    assert len(calls) < 4 * 8
    assert max(rows for rows, _ in calls) == 7  # the first one ends when the last one has its first token


def test_a_short_answer_does_not_wait_for_a_long_one(model):
    engine = Engine(model)
    files = dataclasses.replace(model.files, end_ids=())
    long, short = sequences(model, [GenerationSettings(max_new_tokens=n) for n in (60, 1)], files=files)
    engine.add(long)
    for _ in range(10):
        engine.step()
    engine.add(short)
    news = [piece.completion for _ in range(3) for sequence, piece in engine.step() if sequence is short]
    assert news[-1] is not None


def test_a_sequence_waits_for_rows_and_memory_in_the_order_of_arrival(model):
    settings = [GenerationSettings(max_new_tokens=4)] * 4
    one = sequences(model, settings[:1])[0]
    budget = 2 * Engine(model)._planned_bytes([one])
    for engine in (Engine(model, max_rows=2), Engine(model, cache_bytes=budget)):
        waiting = sequences(model, settings)
        for sequence in waiting:
            engine.add(sequence)
        order, most = [], 0
        while not engine.is_idle:
            order += [sequence.index for sequence, piece in engine.step() if piece.completion]
            most = max(most, engine.n_running)
        assert (sorted(order), most <= 2) == ([0, 1, 2, 3], True)


def test_what_never_fits_is_refused_by_name(model):
    [sequence] = sequences(model, [GenerationSettings(max_new_tokens=50, n_beams=4)])
    with pytest.raises(InvalidInput, match="n_beams: expected at most 3, the size of a batch, received 4"):
        Engine(model, max_rows=3).check(sequence)
    with pytest.raises(InvalidInput, match=r"max_tokens: \d+ tokens of prompt and 50 of answer may take"):
        Engine(model, cache_bytes=1000).check(sequence)


def test_caches_stay_below_what_was_planned(model, mixed):
    """In bytes, measured at every step; the plan counts the decoder's caches twice, as a step holds them."""
    engine, limit = Engine(model, max_rows=6), 0
    arrivals = sequences(model, mixed)
    while arrivals or not engine.is_idle:
        if arrivals:
            engine.add(arrivals.pop(0))
        engine.step()
        running = [s for lane in engine._lanes for s in lane.rows]
        if running:
            limit = max(limit, engine._planned_bytes(running))
            held = sum(view(v).nbytes for lane in engine._lanes for v in lane.state.past.values())
            assert held <= 2 * limit


def test_a_step_that_fails_costs_the_largest_answer_alone(model, monkeypatch):
    """As when memory is out: the others go on, and give the tokens that they would have given."""
    settings = [GenerationSettings(max_new_tokens=6, n_beams=2)] + [GenerationSettings(max_new_tokens=6)] * 2
    expected = [answers(Engine(model), [s])[0] for s in sequences(model, settings)]
    read = OnnxModel.read

    def fail(self, state, tokens, new_mask, **how):
        if state.n_rows == 4:
            raise MemoryError("no room")
        return read(self, state, tokens, new_mask, **how)

    monkeypatch.setattr(OnnxModel, "read", fail)
    engine = Engine(model)
    found = answers(engine, sequences(model, settings))
    assert isinstance(found[0], MemoryError)
    assert [c.token_ids for c in found[1:]] == [c.token_ids for c in expected[1:]]


def test_a_prompt_is_scored_as_torch_scores_it(folders):
    """Each token's log-probability, whether the prompt is read in one part or in several, alone or beside others."""
    model = OnnxModel(folders["llama"], n_threads=1)
    prompts = [model.files.encode(text) for text in (TEXTS[0], " ".join(TEXTS))]
    settings = GenerationSettings(max_new_tokens=0, n_logprobs=3, scores_prompt=True)
    for read_tokens in (4, 1000):
        made = [new_sequence(k, model.files, prompt, settings) for k, prompt in enumerate(prompts)]
        engine = Engine(model, read_tokens=read_tokens)
        for completion, prompt in zip(answers(engine, made), prompts, strict=True):
            _, logits = model.begin([prompt[:1]], np.array([prompt[1:]], np.int64))
            shifted = logits[0] - logits[0].max(-1, keepdims=True)
            logprobs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
            assert [s.token_id for s in completion.prompt_scores] == prompt
            assert completion.prompt_scores[0].logprob is None
            found = [s.logprob for s in completion.prompt_scores[1:]]
            np.testing.assert_allclose(found, [row[t] for row, t in zip(logprobs, prompt[1:], strict=False)], atol=0.1)
            assert completion.token_ids == ()


def test_rows_are_aligned_at_their_ends(model):
    """Two states of different length become one; each row's caches are as they were, with zeros in front."""
    ids = [model.files.encode(text) for text in (TEXTS[0], " ".join(TEXTS))]
    states = [model.begin([prompt])[0] for prompt in ids]
    model.step(states[1], np.ones((1, 1), np.int64))
    together = of_rows([(states[0], [0]), (states[1], [0, 0])])
    assert together.n_rows == 3
    for row, state in enumerate((states[0], states[1], states[1])):
        used = int(state.mask.sum())
        assert together.mask[row].sum() == used
        for name, value in together.past.items():
            own, found = view(state.past[name])[0], view(value)[row]
            if ".encoder." in name:
                assert (found[:, : own.shape[1]] == own).all()
                assert not found[:, own.shape[1] :].any()
            else:
                assert (found[:, -used:] == own[:, -used:]).all()
                assert not found[:, :-used].any()
