"""Graphs whose rows have adapters of their own, or are of different age: each row is computed as if alone.

The graphs are fed by onnxruntime itself, so that this holds for any client.
"""

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load_file

from lorahub_edge.serve import open_folder
from lorahub_edge.serve.adapter import SCALE_INPUT

PROMPTS = [[6, 11, 4, 9, 1], [12, 5, 7, 8, 1], [20, 9, 4, 6, 1]]
TOKENS = [[8, 21, 13], [9, 9, 4], [5, 17, 6]]


class Graphs:
    """The sessions of an exported folder, fed with what its graphs take."""

    def __init__(self, folder, tensors=()):
        self.sessions = {
            name: onnxruntime.InferenceSession(path)
            for name, path in open_folder(folder, adapter="none").graphs.items()
        }
        self.tensors = dict(tensors)

    def run(self, graph, feeds):
        """Output name -> array."""
        session = self.sessions[graph]
        optional = {i.name for i in session.get_overridable_initializers()}
        taken = {i.name for i in session.get_inputs()} | optional
        feeds = {name: np.asarray(value) for name, value in {**self.tensors, **feeds}.items() if name in taken}
        return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))

    def no_past(self, graph, n_rows):
        """Empty caches."""
        shapes = {i.name: i.shape for i in self.sessions[graph].get_inputs() if i.name.startswith("past")}
        return {name: np.zeros((n_rows, s[1], 0, s[3]), np.float32) for name, s in shapes.items()}

    def begin(self, prompts, answers):
        """The first call's outputs: `answers` are read at once, behind T5's start token or the prompts."""
        if "encoder" in self.sessions:
            hidden = self.run("encoder", {"input_ids": prompts, "attention_mask": np.ones_like(prompts)})
            feeds = of_encoder(prompts, hidden["last_hidden_state"]) | self.no_past("decoder", len(prompts))
            ids = [[0, *answer] for answer in answers]
            outputs = self.run("decoder", {**feeds, "input_ids": ids, "use_cache_branch": [False]})
            return {**outputs, "last_hidden_state": hidden["last_hidden_state"]}
        ids = np.concatenate([prompts, answers], 1)
        places = np.tile(np.arange(ids.shape[1]), (len(ids), 1))
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": places}
        return self.run("model", {**feeds, **self.no_past("model", len(ids))})


def of_encoder(prompts, hidden):
    return {"encoder_attention_mask": np.ones_like(prompts), "encoder_hidden_states": hidden}


def past_of(outputs):
    """What the next call takes."""
    return {
        name.replace("present", "past_key_values"): value
        for name, value in outputs.items()
        if name.startswith("present")
    }


def beside_each_other(rows):
    """Factors stacked along a rank common to all, with room to spare, and scales that give each row its own adapter."""
    filled = [k for k, row in enumerate(rows) if row]
    n = max(min(tensor.shape) for k in filled for tensor in rows[k].values()) + 1
    stacked = {
        name: np.concatenate([padded(rows[k][name], n) for k in filled], int(name.endswith("_B")))
        for name in rows[filled[0]]
    }
    scales = np.zeros((len(rows), 1, n * len(filled)), np.float32)
    for place, k in enumerate(filled):
        scales[k, 0, place * n : (place + 1) * n] = 1
    return {**stacked, SCALE_INPUT: scales}


def padded(factor, n):
    """A as (n, in_features), or B as (out_features, n)."""
    return np.pad(factor, [(0, n - size if size == min(factor.shape) else 0) for size in factor.shape])


def off(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_rows_of_one_call_have_adapters_of_their_own(shared, beside_llama, family):
    """T5's cross-attention, which is in a branch, among them."""
    folder = {"t5": shared, "llama": beside_llama}[family]
    adapter = load_file(folder / "adapters" / f"{open_folder(folder).adapter.name}.safetensors")
    other = {name: value * -2 if name.endswith("_B") else value for name, value in adapter.items()}
    rows = [adapter, {}, other]
    together = Graphs(folder, beside_each_other(rows)).begin(PROMPTS, TOKENS)["logits"]
    for logits, row, prompt, answer in zip(together, rows, PROMPTS, TOKENS, strict=True):
        assert off(logits, Graphs(folder, row).begin([prompt], [answer])["logits"][0]) < 1e-4
        for wrong in rows:
            assert wrong is row or off(logits, Graphs(folder, wrong).begin([prompt], [answer])["logits"][0]) > 1e-2
    doubled = Graphs(folder, {**adapter, SCALE_INPUT: np.full((1, 1, 1), -2, np.float32)}).begin(PROMPTS, TOKENS)
    assert off(doubled["logits"], Graphs(folder, other).begin(PROMPTS, TOKENS)["logits"]) < 1e-4


def test_rows_of_different_age_share_a_step_of_t5s_decoder(exported):
    """A shorter cache has anything in front, and mask 0 there; distances are counted from the end."""
    graphs, rng = Graphs(exported), np.random.default_rng(0)
    answers, new = [TOKENS[0], TOKENS[1][:1], []], [[4, 7], [15, 22], [6, 5]]
    begun = [graphs.begin([prompt], [answer]) for prompt, answer in zip(PROMPTS, answers, strict=True)]
    hidden = np.concatenate([outputs["last_hidden_state"] for outputs in begun])

    def step(rows, past, **feeds):
        feeds |= of_encoder([PROMPTS[row] for row in rows], hidden[rows])
        ids = [new[row] for row in rows]
        return graphs.run("decoder", {**feeds, **past, "input_ids": ids, "use_cache_branch": [True]})["logits"]

    def aligned(name):
        values = [past_of(outputs)[name] for outputs in begun]
        longest = max(value.shape[2] for value in values)
        whole = rng.normal(0, 50, (len(values), *values[0].shape[1:2], longest, values[0].shape[3]))
        for row, value in enumerate(values):
            whole[row, :, longest - value.shape[2] :] = value[0]
        return whole.astype(np.float32)

    past = {name: aligned(name) for name in past_of(begun[0])}
    mask = [[1] * 6, [0, 0, *[1] * 4], [0, 0, 0, *[1] * 3]]
    together, unmasked = step([0, 1, 2], past, decoder_attention_mask=mask), step([0, 1, 2], past)
    for row, outputs in enumerate(begun):
        alone = step([row], past_of(outputs))[0]
        assert off(together[row], alone) < 1e-4
        assert row == 0 or off(unmasked[row], alone) > 1e-2
    assert np.array_equal(step([0, 1, 2], past, decoder_attention_mask=[[1] * 6]), unmasked)


@pytest.mark.parametrize(("first", "left"), [(0, slice(None)), (5, slice(5, None)), (-1, slice(-1, None))])
def test_logits_of_earlier_positions_can_be_left_out(beside_llama, first, left):
    whole = Graphs(beside_llama).begin(PROMPTS, TOKENS)
    part = Graphs(beside_llama, {"logits_from": [first]}).begin(PROMPTS, TOKENS)
    assert whole["logits"].shape[1] == len(PROMPTS[0]) + len(TOKENS[0])
    assert part["logits"].shape == whole["logits"][:, left].shape
    assert off(part["logits"], whole["logits"][:, left]) < 1e-6
    assert all(np.array_equal(part[name], whole[name]) for name in whole if name != "logits")


def test_clients_that_know_nothing_of_it_are_asked_for_nothing_more(shared, exported, beside_llama):
    seq2seq = {"encoder_attention_mask", "input_ids", "encoder_hidden_states", "use_cache_branch"}
    causal = {"input_ids", "attention_mask", "position_ids"}
    for folder, graph, asked, optional in (
        (exported, "decoder", seq2seq, {"decoder_attention_mask"}),
        (shared, "decoder", seq2seq, {"decoder_attention_mask", SCALE_INPUT}),
        (beside_llama, "model", causal, {"logits_from", SCALE_INPUT}),
    ):
        session = Graphs(folder).sessions[graph]
        assert {i.name for i in session.get_inputs() if not i.name.startswith("past_key_values.")} == asked
        assert {i.name for i in session.get_overridable_initializers() if ".lora_" not in i.name} == optional
