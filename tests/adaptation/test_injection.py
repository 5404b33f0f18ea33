"""Route "inject" is the same objective as route "side", but for what rounding the delta into int8 rows costs."""

import numpy as np
import pytest
import torch

import lorahub_edge
from lorahub_edge.adaptation import PopulationForward, injection
from lorahub_edge.adaptation.injection import Injection
from lorahub_edge.adaptation.population import ROUTES
from lorahub_edge.base import load_base
from lorahub_edge.errors import InvalidInput
from lorahub_edge.modules import ModuleStack, find_modules
from lorahub_edge.tasks import Example, PromptFormat
from tests import tiny

EXAMPLES = [Example(*row) for row in tiny.ROWS]
COEFFICIENTS = torch.from_numpy(np.random.default_rng(0).uniform(-2, 2, (6, 4)))


@pytest.fixture(params=["t5", "llama"])
def parts(request, bases, module_folders):
    base = load_base(str(bases[request.param]), device="cpu")
    return base, find_modules(module_folders[request.param]), PromptFormat.for_base(base).encode_all(EXAMPLES)


def losses(base, stack, encoded, coefficients, route):
    with PopulationForward(base, stack, encoded, evaluate_by=route).ready() as forward:
        return forward.negative_log_likelihoods(coefficients)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_both_routes_agree_within_the_rounding_that_inject_reports(parts, dtype):
    """The bound is what random noise of the reported size does to the losses, three times over.

    The noise goes into the delta of the side path: for every row, error * norm(delta) in a random direction.
    """
    base, modules, encoded = parts
    stack = ModuleStack.build(modules, base, dtype=dtype)
    off, effect = [], []
    zero = losses(base, stack, encoded, torch.zeros(1, 4), "side")
    for c in COEFFICIENTS:
        side = losses(base, stack, encoded, c[None], "side")
        injected = losses(base, stack, encoded, c[None], "inject")
        assert not torch.equal(side, injected), "one route must not stand in for the other"
        noisy = torch.cat([losses_with_noise(base, stack, encoded, c, seed) for seed in range(4)])
        spread = (noisy - side).abs().max()
        assert (injected - side).abs().max() <= 3 * spread
        off.append((injected - side).abs().mean())
        effect.append((side - zero).abs().mean())
    assert sum(off) < 0.3 * sum(effect), "rounding must be small beside what the modules do, or nothing is compared"


def losses_with_noise(base, stack, encoded, c, seed):
    rng = torch.Generator().manual_seed(seed)
    route = Injection(base, stack)
    with route.active(route.prepare(c[None])) as reports:
        errors = [report.error for report in reports]
    handles = []
    module = stack.composed_module(c, "composed")
    for target, error in zip(stack.targets, errors, strict=True):
        delta = module.factors[target.name].delta()
        noise = torch.randn(delta.shape, generator=rng)
        noise *= (error * delta.norm(dim=1) / noise.norm(dim=1))[:, None]
        layer = base.model.get_submodule(target.name)
        handles.append(layer.register_forward_hook(lambda _, x, y, noise=noise: y + x[0] @ noise.T))
    try:
        return losses(base, stack, encoded, c[None], "side")
    finally:
        for handle in handles:
            handle.remove()


def test_zero_coefficients_are_the_base_and_the_base_stays_untouched(parts):
    base, modules, encoded = parts
    stack = ModuleStack.build(modules, base)
    before = {n: b.clone() for n, b in base.model.named_buffers()}
    zero = torch.zeros(1, 4)
    assert torch.equal(losses(base, stack, encoded, zero, "inject"), losses(base, stack, encoded, zero, "side"))
    losses(base, stack, encoded, COEFFICIENTS, "inject")
    assert all(torch.equal(b, before[n]) for n, b in base.model.named_buffers())


def test_a_candidate_does_not_depend_on_those_before_it(parts):
    base, modules, encoded = parts
    stack = ModuleStack.build(modules, base)
    together = losses(base, stack, encoded, COEFFICIENTS, "inject")
    assert torch.equal(losses(base, stack, encoded, COEFFICIENTS[3:4], "inject")[0], together[3])


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_layers_injected_together_give_what_they_give_one_by_one(parts, dtype, monkeypatch):
    """As on a GPU: composed at once into one place, and injected from there."""
    base, modules, encoded = parts
    stack = ModuleStack.build(modules, base, dtype=dtype)
    one_by_one = losses(base, stack, encoded, COEFFICIENTS, "inject")
    monkeypatch.setattr(injection, "injects_together", lambda device, composition: True)
    assert torch.equal(losses(base, stack, encoded, COEFFICIENTS, "inject"), one_by_one)


def test_a_float_base_is_refused_and_an_unknown_route_named(bases, module_folders, example_file):
    arguments = (str(bases["t5"]), module_folders["t5"], example_file)
    with pytest.raises(InvalidInput, match="expected an int8 base"):
        lorahub_edge.adapt(*arguments, precision="fp32", evaluate_by="inject", budget=2)
    with pytest.raises(InvalidInput, match="evaluate_by: expected one of side, inject, received 'merge'"):
        lorahub_edge.adapt(*arguments, evaluate_by="merge")
    assert set(ROUTES) == {"side", "inject"}
