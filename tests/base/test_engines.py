"""Engines are chosen by the error that they make: among the cases a model with channels far above the rest."""

import pytest
import torch

from lorahub_edge.base import load_base
from lorahub_edge.base.engines import MOST_ONE_PART_ERROR, cheapest_engine, one_part_errors
from lorahub_edge.base.int8 import Int8Linear, Int8Weight, int8_matmul_available
from tests import tiny

pytestmark = pytest.mark.skipif(
    not int8_matmul_available(torch.device("cpu")), reason="needs a CPU with fast int8 products"
)


def outlier_model(folder):
    """A T5 whose first feed-forward layer has two channels a thousand times above the rest, with weights to match."""
    model = tiny.make_model("t5")
    with torch.no_grad():
        model.encoder.block[0].layer[1].DenseReluDense.wi_1.weight[:2] *= 1000
        model.encoder.block[0].layer[1].DenseReluDense.wo.weight[:, :2] /= 1000
    return tiny.save_model(model, folder / "outliers", "t5")


def layers_of(base):
    return {name: m for name, m in base.model.named_modules() if isinstance(m, Int8Linear)}


def inputs_of(base, n_tokens, n_padding):
    ids = torch.arange(n_tokens)[None] % base.model.config.vocab_size
    padding = torch.zeros(1, n_padding, dtype=torch.int64)
    mask = torch.cat([torch.ones_like(ids), padding], dim=1)
    return {"input_ids": torch.cat([ids, padding], dim=1), "attention_mask": mask, "labels": ids[:, :7]}


def test_only_the_layer_behind_the_outliers_is_split(tmp_path):
    base = load_base(str(outlier_model(tmp_path)), device="cpu")
    split = {name for name, layer in layers_of(base).items() if layer.engine == "int8-split"}
    assert "encoder.block.0.layer.1.DenseReluDense.wo" in split
    assert "encoder.block.0.layer.1.DenseReluDense.wi_0" not in split
    assert base.layer_engines["int8-split"] == len(split) < len(layers_of(base))


@pytest.mark.parametrize(("n_tokens", "n_padding"), [(9, 0), (9, 23), (1100, 0), (1100, 100)])
def test_loss_with_outliers_is_near_that_of_float_products(tmp_path, n_tokens, n_padding):
    """Also on long and on padded inputs; and one part everywhere is not near, so the choice is what makes it so.

    Each layer may be off by 2 % of its output. Layers err independently, so what reaches the logits is off by the root
    of their number times that, in units of the logits' own spread; the loss, a mean over labels, by no more.
    """
    base = load_base(str(outlier_model(tmp_path)), device="cpu")
    layers = layers_of(base)
    chosen = {name: layer.engine for name, layer in layers.items()}

    def output(engine=None):
        for name, layer in layers.items():
            layer.engine = engine or chosen[name]
        with torch.inference_mode():
            return base.model(**inputs_of(base, n_tokens, n_padding))

    exact = output("dequantize")
    bound = MOST_ONE_PART_ERROR * len(layers) ** 0.5 * float(exact.logits.std())
    errors = {engine: abs(float(output(engine).loss - exact.loss)) for engine in (None, "int8", "int8-split")}
    assert errors[None] < bound < errors["int8"]
    assert errors["int8-split"] < bound


def test_errors_are_measured_against_the_float_product():
    layer = Int8Linear(Int8Weight.from_float(torch.randn(32, 128)), engine="dequantize")
    plain = torch.randn(5, 128)
    outlier = plain.clone()
    outlier[3, 7] = 1e3
    for error in one_part_errors({"a": layer}, lambda: layer(plain))["a"].values():
        assert 0.002 < error < MOST_ONE_PART_ERROR
    # one step of the row with the outlier is 8, larger than all its other values, which are lost in the sum
    layer.codes[:, 7] = 0
    errors = one_part_errors({"a": layer}, lambda: layer(outlier))["a"]
    assert errors["int8"] > 0.9
    assert 0.5 < errors["int8-blocks"] < 0.9  # of one block of two
    assert layer.engine == "dequantize"


def test_a_layer_whose_width_is_no_number_of_blocks_has_none():
    layer = Int8Linear(Int8Weight.from_float(torch.randn(32, 65)), engine="dequantize")
    assert one_part_errors({"a": layer}, lambda: layer(torch.randn(5, 65)))["a"].keys() == {"int8"}


def test_the_cheapest_engine_within_the_limit_is_chosen():
    most = MOST_ONE_PART_ERROR
    assert cheapest_engine({"int8": most, "int8-blocks": most / 2}) == "int8"
    assert cheapest_engine({"int8": most * 1.01, "int8-blocks": most}) == "int8-blocks"
    assert cheapest_engine({"int8": most * 1.01, "int8-blocks": most * 1.01}) == "int8-split"
    assert cheapest_engine({"int8": most * 1.01}) == "int8-split"
    assert cheapest_engine({}) == "int8-split"  # a layer that the probe does not reach


def test_pocket_has_layers_of_both_kinds():
    """Its `wo`, behind a gate, have tails that one scale per row cannot hold."""
    engines = {name: layer.engine for name, layer in layers_of(load_base("pocket", device="cpu")).items()}
    assert set(engines.values()) == {"int8", "int8-blocks"}
    assert all(name.endswith(".wo") for name, engine in engines.items() if engine == "int8-blocks")
