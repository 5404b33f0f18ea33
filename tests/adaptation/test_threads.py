"""A Base may be shared by threads: each call answers as if it had been alone, and an error leaves nothing behind."""

from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch

import lorahub_edge
from lorahub_edge.adaptation import SidePath
from lorahub_edge.modules import ModuleStack, load_modules
from lorahub_edge.tasks import Example
from lorahub_edge.train.settings import TrainSettings
from lorahub_edge.train.tuning import tuned
from tests import tiny

INPUTS = [row[0] for row in tiny.ROWS] * 3


@pytest.fixture
def two_torch_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def models_of(base, modules):
    """Two models over one base that answer differently."""
    run = lorahub_edge.adapt(base, modules, tiny.ROWS, n_examples=4, budget=4, null_control=False)
    stack = ModuleStack.build(modules, base)
    far = torch.tensor([6.0, -6.0, 6.0, 6.0], dtype=torch.float64)
    other = lorahub_edge.AdaptedModel(base, stack, far, run.model.prompt, run.model.max_new_tokens)
    return run.model, other


@pytest.mark.parametrize("precision", ["int8", "fp32"])
@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_threads_that_share_a_base_answer_as_if_alone(bases, module_folders, kind, precision, two_torch_threads):
    base = lorahub_edge.load_base(str(bases[kind]), precision=precision, device="cpu")
    modules = load_modules(module_folders[kind])
    models = models_of(base, modules)
    expected = [model.predict(INPUTS) for model in models]
    losses = [model.loss(tiny.ROWS) for model in models]
    assert expected[0] != expected[1]

    def ask(number):
        which = number % 2
        assert models[which].loss(tiny.ROWS) == losses[which]
        return models[which].predict(INPUTS) == expected[which]

    with ThreadPoolExecutor(4) as pool:
        search = pool.submit(models_of, base, modules)
        assert all(pool.map(ask, range(16)))
        assert search.result()[0].predict(INPUTS) == expected[0]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_an_error_half_way_leaves_no_side_on_the_base(bases, module_folders, precision, monkeypatch):
    base = lorahub_edge.load_base(str(bases["t5"]), precision=precision, device="cpu")
    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "decoder_input_ids": torch.tensor([[0]])}
    before = base.model(**inputs).logits
    stack = ModuleStack.build(load_modules(module_folders["t5"]), base)
    path = SidePath(base, stack)
    composed = path.prepare(torch.ones(1, 4))

    def fails_for_the_last(self, rows):
        if self.name == stack.targets[-1].name:
            raise MemoryError
        return original(self, rows)

    original = type(stack.targets[0]).B
    monkeypatch.setattr(type(stack.targets[0]), "B", fails_for_the_last)
    with pytest.raises(MemoryError), path.active(composed):
        pytest.fail("not reached")
    assert torch.equal(base.model(**inputs).logits, before)
    assert base.turn.acquire(blocking=False)


def test_a_path_inside_another_gives_its_place_back(bases, module_folders):
    base = lorahub_edge.load_base(str(bases["t5"]), device="cpu")
    stack = ModuleStack.build(load_modules(module_folders["t5"]), base)
    outer, inner = SidePath(base, stack), SidePath(base, stack)
    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "decoder_input_ids": torch.tensor([[0]])}
    with outer.active(outer.prepare(torch.ones(1, 4))):
        expected = base.model(**inputs).logits
        with inner.active(inner.prepare(torch.zeros(1, 4))):
            assert not torch.equal(base.model(**inputs).logits, expected)
        assert torch.equal(base.model(**inputs).logits, expected)


@pytest.mark.parametrize("n_inputs", [1, 18])
def test_answers_beside_a_training_are_those_of_the_module(bases, module_folders, two_torch_threads, n_inputs):
    """PEFT puts layers of its own into the base while it trains; nobody may look layers up there meanwhile."""
    base = lorahub_edge.load_base(str(bases["t5"]), precision="fp32", device="cpu")
    model = models_of(base, load_modules(module_folders["t5"]))[1]
    inputs = INPUTS[:n_inputs]
    expected = model.predict(inputs)
    settings = TrainSettings(max_steps=3, epochs=1, batch_size=2)
    with ThreadPoolExecutor(2) as pool, tuned(base, [Example(*row) for row in tiny.ROWS], "lora", settings=settings):
        asked = pool.submit(model.predict, inputs)
        assert wait([asked], timeout=0.5).not_done, "it waits for the training to end"
    assert asked.result() == expected


def test_whoever_trains_may_evaluate_meanwhile(bases, module_folders, two_torch_threads):
    """The training holds the base's turn; the lanes that evaluate in its name must not wait for it."""
    base = lorahub_edge.load_base(str(bases["t5"]), precision="fp32", device="cpu")
    model = models_of(base, load_modules(module_folders["t5"]))[0]
    settings = TrainSettings(max_steps=1, epochs=1)
    with tuned(base, [Example(*row) for row in tiny.ROWS], "full", settings=settings):
        score = model.evaluate(tiny.ROWS)
    assert score.n_examples == len(tiny.ROWS)
