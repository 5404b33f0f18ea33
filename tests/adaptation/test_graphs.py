"""Recordings of calls: made at a shape's first call, and kept where they are right.

The stand-in for CUDA keeps the function and computes again what it is to replay, into one and the same tensor. So what
a recording may read, and when its result has to be read, is tested without a GPU too.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lorahub_edge.adaptation import PopulationForward, population
from lorahub_edge.adaptation.graphs import CallGraphs, CallShape, graphs_on
from lorahub_edge.base import load_base
from lorahub_edge.base.engines import layer_engines, set_engines
from lorahub_edge.errors import InvalidInput
from lorahub_edge.modules import ModuleStack, load_modules
from lorahub_edge.tasks import Example, PromptFormat
from tests import tiny

EXAMPLES = [Example(*row) for row in tiny.ROWS]
SHAPE = CallShape(2, (0, 1), 4096, 128)


class StandIn:
    """Records without computing; replays may be wrong by `error`."""

    def __init__(self, error=0.0):
        self.error = error
        self.n_replays = 0

    def __call__(self, compute):
        result = None

        def replay():
            nonlocal result
            self.n_replays += 1
            now = compute() + self.error
            result = now if result is None else result.copy_(now)
            return result

        return replay


def test_a_shape_is_recorded_at_its_first_call_and_replayed_from_then_on():
    recorder, value = StandIn(), torch.zeros(1)
    calls = CallGraphs(recorder)
    replays = []
    for number in range(1, 5):
        value.fill_(number)
        assert calls.run(SHAPE, lambda: value * 10) == number * 10
        replays.append(recorder.n_replays)
    assert replays == [1, 2, 3, 4]
    (record,) = calls.as_record()
    assert record.pop("recorded_s") > 0
    assert record == {"candidates": 2, "examples": 2, "calls": 4, "replayed": True, "refused": None}


def test_a_recording_that_is_wrong_is_dropped():
    recorder = StandIn(error=0.5)
    calls = CallGraphs(recorder)
    assert [float(calls.run(SHAPE, lambda: torch.ones(1))) for _ in range(4)] == [1.0] * 4
    assert recorder.n_replays == 1
    (record,) = calls.as_record()
    assert (record["refused"], record["replayed"]) == ("its replay differs by up to 0.5", False)


def test_what_cannot_be_recorded_is_computed_and_says_why():
    def record(compute):
        raise RuntimeError("operation not permitted when stream is capturing\nand much more")

    calls = CallGraphs(record)
    assert [float(calls.run(SHAPE, lambda: torch.ones(1))) for _ in range(4)] == [1.0] * 4
    assert calls.as_record()[0]["refused"] == ("cannot be recorded: operation not permitted when stream is capturing")


def test_recordings_make_room_where_memory_runs_out():
    other = replace(SHAPE, n_candidates=9)
    calls = CallGraphs(StandIn())
    for _ in range(4):
        calls.run(SHAPE, lambda: torch.ones(1))
    attempts = []

    def compute():
        attempts.append(1)
        if len(attempts) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.ones(1)

    assert calls.run(other, compute) == 1
    assert [record["refused"] for record in calls.as_record()] == ["its memory was needed", None]
    attempts.clear()
    with pytest.raises(torch.OutOfMemoryError):  # nothing is left to give back
        calls.run(other, compute)


def test_calls_are_recorded_on_cuda_and_can_be_told_not_to(monkeypatch):
    assert graphs_on("cpu") is None
    assert isinstance(graphs_on("cuda"), CallGraphs)
    monkeypatch.setenv("LORAHUB_EDGE_CUDA_GRAPHS", "off")
    assert graphs_on("cuda") is None
    monkeypatch.setenv("LORAHUB_EDGE_CUDA_GRAPHS", "on")
    with pytest.raises(InvalidInput, match="LORAHUB_EDGE_CUDA_GRAPHS: expected 'off' or nothing, received 'on'"):
        graphs_on("cuda")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("kind", ["t5", "llama"])
@pytest.mark.parametrize("composition", ["factors", "deltas"])
def test_replays_see_the_candidates_of_their_own_call(composition, kind, precision, bases, module_folders, monkeypatch):
    """Whole calls and smaller ones in turns: what was recorded of an earlier call must find the later one's factors."""
    base = load_base(str(bases[kind]), precision=precision, device="cpu")
    stack = ModuleStack.build(load_modules(module_folders[kind]), base).composed_by(composition)
    encoded = PromptFormat.for_base(base).encode_all(EXAMPLES)
    rng = np.random.default_rng(0)
    points = [torch.from_numpy(rng.uniform(-1.5, 1.5, (n, 4))) for n in (3, 2, 3, 2, 3)]
    with PopulationForward(base, stack, encoded).ready() as forward:
        expected = [forward.negative_log_likelihoods(c) for c in points]
    recorder = StandIn()
    monkeypatch.setattr(population, "graphs_on", lambda *_: CallGraphs(recorder))
    with PopulationForward(base, stack, encoded).ready() as forward:
        got = [forward.negative_log_likelihoods(c) for c in points]
    assert recorder.n_replays == 3 + 2  # the first of a shape is the check
    assert [record["replayed"] for record in forward.recordings()] == [True, True]
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_route_inject_is_recorded_where_all_layers_are_injected_at_once(bases, module_folders, monkeypatch):
    base = load_base(str(bases["t5"]), precision="int8", device="cpu")
    stack = ModuleStack.build(load_modules(module_folders["t5"]), base)
    asked = []
    monkeypatch.setattr(population, "graphs_on", lambda *of: asked.append(of))
    PopulationForward(base, stack, PromptFormat.for_base(base).encode_all(EXAMPLES), evaluate_by="inject")
    assert asked == [("cpu", "inject", "factors")]
    assert graphs_on("cuda", "inject", "factors") is not None
    assert graphs_on("cuda", "inject", "deltas") is None
    assert graphs_on("cpu", "inject", "factors") is None


class StaysThere(TorchDispatchMode):
    """Fails on what a CUDA graph cannot hold: tensors of the CPU; a look at a value fails by itself."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, torch.Tensor):
                assert leaf.device.type == "meta", f"{function} is on the CPU"
        return result


@pytest.mark.parametrize("composition", ["factors", "deltas"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("kind", ["t5", "llama", "gemma2", "gemma3"])
def test_a_call_never_waits_for_its_device(kind, precision, composition, bases, module_folders):
    """On torch's device "meta" there is nothing to wait for: whoever looks at a value fails."""
    base = load_base(str(bases[kind]), precision=precision, device="cpu")
    stack = ModuleStack.build(load_modules(module_folders[kind]), base).composed_by(composition)
    stack = stack if composition == "factors" else stack.to("meta")  # its factors are read as they are
    with PopulationForward(base, stack, PromptFormat.for_base(base).encode_all(EXAMPLES)).ready() as forward:
        (place,) = forward._places
        place.route.begin(torch.ones(3, 4))
        engines = layer_engines(base.model)  # there are no blocks on a GPU
        set_engines(base.model, {name: engine.replace("int8-blocks", "int8-split") for name, engine in engines.items()})
        base.model.to("meta")
        prepared = torch.empty(3, stack.n_composed or 4, device="meta")
        for bucket in forward._buckets:
            there = {name: value.to("meta") for name, value in bucket.model_inputs.items()}
            moved = replace(
                bucket, model_inputs=there, answers=bucket.answers.to("meta"), places=bucket.places.to("meta")
            )
            with torch.inference_mode(), place.route.active(prepared), StaysThere():
                losses = place._outputs_of(moved, 3)[0]
            assert losses.shape == (3, len(bucket.rows))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_cuda_records_and_replays_to_the_bit(precision):
    base = load_base("pocket", precision=precision, device="cuda")
    stack = ModuleStack.build(load_modules("pocket"), base)
    encoded = PromptFormat.for_base(base).encode_all([Example(f"the number {n}", f"{n} it is") for n in range(5)])
    rng = np.random.default_rng(0)
    points = [torch.from_numpy(rng.uniform(-1, 1, (4, len(stack.names)))) for _ in range(6)]
    with PopulationForward(base, stack, encoded).ready() as forward:
        got = [forward.negative_log_likelihoods(c) for c in points]
        (record,) = forward.recordings()
        forward._places = [replace(place, graphs=None) for place in forward._places]
        expected = [forward.negative_log_likelihoods(c) for c in points]
    assert (record["replayed"], record["refused"]) == (True, None)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
