"""verify: graphs that are a little wrong fail, right ones pass, and what counts as a tie follows from the noise."""

import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import lorahub_edge
from lorahub_edge.exporting import VerificationFailed
from lorahub_edge.exporting.verification import ModelResult
from tests.resealed import reseal


def damaged(folder, copy, graph, change):
    """A copy of an exported folder with changed tensors: `change` maps name, values to values."""
    shutil.copytree(folder, copy)
    [path] = (copy / "onnx").glob(graph)
    model = onnx.load(path)
    n_changed = 0
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        changed = change(tensor.name, values.copy())
        if not np.array_equal(changed, values):
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
            n_changed += 1
    assert n_changed == 1
    onnx.save(model, path)
    return reseal(copy)


def at(wanted, change):
    return lambda name, values: change(values) if name == wanted else values


DOWN = "model.layers.0.mlp.down_proj"
WRONG = {
    "a layer's scales 10 % too large": at(f"{DOWN}.row_scale", lambda s: s * np.float32(1.1)),
    "outputs of a layer one row off": at(f"{DOWN}.row_scale", lambda s: np.roll(s, 1)),
    "inputs of a layer one column off": at(f"{DOWN}.codes_t", lambda c: np.roll(c, 1, axis=0)),
    "one channel of a layer lost": at(f"{DOWN}.codes_t", lambda c: c * (np.arange(c.shape[1]) != 3).astype(np.int8)),
    "two tokens swapped": at("model.embed_tokens.codes", lambda c: np.concatenate([c[:8], c[[9, 8]], c[10:]])),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_graph_that_is_a_little_wrong_fails(export_base, tmp_path, what):
    folder = damaged(export_base("llama").folder, tmp_path / "damaged", "*.onnx", WRONG[what])
    with pytest.raises(VerificationFailed):
        lorahub_edge.verify(folder)


def test_the_allowed_error_follows_the_noise_of_torch():
    rng = np.random.default_rng(0)
    for scale in (0.0, 0.01, 0.3):
        noise, error = scale * rng.lognormal(size=(2, 200))
        assert ModelResult.of(None, error, noise).is_near
        assert not ModelResult.of(None, np.hypot(error, 1e-3 + 2 * scale), noise).is_near  # wrong everywhere
        error[7] = 2e-3 + 2.1 * noise.max()
        assert not ModelResult.of(None, error, noise).is_near  # wrong at one position
    assert not ModelResult.of(None, np.array([np.inf, 0]), np.array([0.1, 0.1])).is_near


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_answers_that_part_are_ties_only_within_the_noise(export_base, tmp_path, precision):
    """The reference's answers with their second token replaced: no noise explains that."""
    folder = tmp_path / "other"
    shutil.copytree(export_base("llama", precision).folder, folder)
    path = folder / "reference.npz"
    with np.load(path) as arrays:
        changed = {name: arrays[name].copy() for name in arrays.files}
    changed["1.greedy"][0, 1] = changed["1.greedy"][0, 1] % 20 + 4
    np.savez_compressed(path, **changed)
    reseal(folder)
    with pytest.raises(VerificationFailed) as caught:
        lorahub_edge.verify(folder)
    assert (caught.value.report["mismatches"], caught.value.report["ties"]) == (1, 0)
