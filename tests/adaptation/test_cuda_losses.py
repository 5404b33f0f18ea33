"""The losses of the embedded base's candidates by the CUDA kernels, beside those by the CPU's.

Both sides get the engines of a GPU, which has no scales per block, and float32, where a GPU would take bfloat16.
"""

import numpy as np
import pytest
import torch

from lorahub_edge.adaptation import PopulationForward
from lorahub_edge.base import load_base, open
from lorahub_edge.base.engines import layer_engines, set_engines
from lorahub_edge.kernels import routes
from lorahub_edge.modules import ModuleStack, load_modules
from lorahub_edge.tasks import Example, PromptFormat
from tests.kernels.cuda_helpers import needs_gpu

pytestmark = needs_gpu

EXAMPLES = [Example(f"the number {n}", f"{n} it is") for n in range(2)]
N_MODULES = 4


@pytest.fixture(autouse=True)
def _one_float_type(monkeypatch):
    monkeypatch.setattr(open, "_float_dtype", lambda *_: torch.float32)
    monkeypatch.setenv("LORAHUB_EDGE_CUDA_GRAPHS", "off")


def losses(device, stack_dtype, coefficients, *, composition="factors", evaluate_by="side"):
    base = load_base("pocket", precision="int8", device=device)
    engines = layer_engines(base.model)
    set_engines(base.model, {name: engine.replace("int8-blocks", "int8-split") for name, engine in engines.items()})
    modules = load_modules("pocket")[:N_MODULES]
    stack = ModuleStack.build(modules, base, dtype=stack_dtype).composed_by(composition)
    encoded = PromptFormat.for_base(base).encode_all(EXAMPLES)
    with PopulationForward(base, stack, encoded, evaluate_by=evaluate_by).ready() as forward:
        return forward.negative_log_likelihoods(coefficients).numpy()


@pytest.mark.parametrize(
    ("stack_dtype", "composition", "evaluate_by"),
    [
        ("bf16", "factors", "side"),
        ("int8", "factors", "side"),
        ("bf16", "deltas", "side"),
        ("int8", "factors", "inject"),
    ],
)
def test_cuda_gives_the_cpus_losses(stack_dtype, composition, evaluate_by):
    assert routes.route("cuda") == "native-cuda"
    rng = np.random.default_rng(0)
    coefficients = torch.from_numpy(np.concatenate([np.zeros((1, N_MODULES)), rng.uniform(-1.5, 1.5, (2, N_MODULES))]))
    options = {"composition": composition, "evaluate_by": evaluate_by}
    expected = losses("cpu", stack_dtype, coefficients, **options)
    got = losses("cuda", stack_dtype, coefficients, **options)
    # as in test_population.py: the last bit of a float can carry an int8 layer's input over to its next code
    np.testing.assert_allclose(got, expected, rtol=1 / 127, atol=2e-4)
    assert expected.std(axis=0).min() > 0.1, "the candidates must differ, or nothing is compared"
