"""export: the folder answers as torch does, holds the codes that were merged, and tells when it does not."""

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

import lorahub_edge
from lorahub_edge.base import Int8Linear
from lorahub_edge.errors import InvalidInput, OutputExists, UnsupportedFormat
from lorahub_edge.exporting import VerificationFailed
from lorahub_edge.exporting import forms as export_forms
from lorahub_edge.exporting.folder import SUFFIXES
from lorahub_edge.exporting.forms import MAX_ROWS_ERROR, LayerForm
from lorahub_edge.exporting.reference import as_in_graph, relative_errors
from lorahub_edge.serve import OnnxModel, generate, open_folder
from tests import tiny
from tests.resealed import reseal

KINDS = ["t5", "t5-tied", "llama", "llama-tied", "gemma2", "gemma3"]


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        *((kind, "int8") for kind in KINDS),
        ("t5", "fp32"),
        ("t5-tied", "fp16"),
        ("llama", "fp32"),
        ("llama-tied", "fp16"),
    ],
)
def test_every_family_answers_as_torch_does(export_base, kind, precision):
    exported = export_base(kind, precision)
    assert exported.report["passed"]
    assert {c["kind"] for c in exported.report["cases"]} == {"random"}
    stem = "encoder_model" if kind.startswith("t5") else "model"
    assert (exported.folder / "onnx" / f"{stem}{SUFFIXES[precision]}.onnx").is_file()


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_round_as_torch_does(bases, export_base, kind):
    """Far stricter than verification can be: most positions of a model this small see no value fall on another side."""
    folder = export_base(kind).folder
    base = lorahub_edge.load_base(str(bases[kind]), device="cpu")
    model = OnnxModel(folder)
    errors = []
    forms = {path: LayerForm(**form) for path, form in model.files.record["forms"].items()}
    with as_in_graph(base, forms), torch.inference_mode():
        for prompt in ([6, 11, 4, 9, 1], [12], list(range(4, 23)), [5, 5, 7, 22], [20, 9, 4]):
            ids, answer = torch.tensor([prompt]), torch.tensor([[8, 21, 13]])
            if base.family.is_seq2seq:
                start = torch.tensor([[model.files.start_id]])
                expected = base.model(input_ids=ids, decoder_input_ids=torch.cat([start, answer], 1)).logits
            else:
                expected = base.model(input_ids=torch.cat([ids, answer], 1)).logits[:, len(prompt) - 1 :]
            errors.append(relative_errors(model.begin([prompt], answer.numpy())[1], expected.numpy()))
    assert np.median(errors) < 1e-4


def test_a_decoder_only_export_says_what_genai_must_know(export_base):
    """tests/clients/test_genai.py runs it."""
    folder = export_base("llama").folder
    record = open_folder(folder).record
    config = json.loads((folder / "genai_config.json").read_text())
    model, decoder = config["model"], config["model"]["decoder"]
    assert (model["type"], model["eos_token_id"]) == ("llama", record["generation"]["end_ids"])
    assert config["search"]["max_length"] == min(
        model["context_length"], record["prompt"]["max_input_tokens"] + record["generation"]["max_new_tokens"]
    )
    graph = onnxruntime.InferenceSession(folder / decoder["filename"])
    for names, side in ((decoder["inputs"], graph.get_inputs()), (decoder["outputs"], graph.get_outputs())):
        layers = range(decoder["num_hidden_layers"])
        assert {name.replace("%d", str(layer)) for name in names.values() for layer in layers} == {i.name for i in side}
    assert "genai_config.json" in record["files"]
    assert not (export_base("t5").folder / "genai_config.json").exists()


def test_heads_of_a_group_read_the_cache_as_it_is(export_base):
    """Repeated for every head, it would be copied in each step."""
    graph = onnx.load(export_base("llama").folder / "onnx" / "model_int8.onnx").graph
    readers = [node.op_type for node in graph.node for name in node.input if name.startswith("present.")]
    assert sorted(readers) == ["MatMul"] * 2 + ["Transpose"] * 2


@pytest.mark.parametrize(
    ("kind", "stem"), [("t5", "encoder_model"), ("t5", "decoder_model_merged"), ("llama", "model")]
)
def test_an_int8_product_and_its_scales_are_one_operation_of_onnxruntime(export_base, tmp_path, kind, stem):
    """Also in the branch of the cross-attention, and with inputs in one part (T5) and in two (Llama)."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(export_base(kind).folder / "onnx" / f"{stem}_int8.onnx", options)
    operations = [node.op_type for node in all_nodes(onnx.load(tmp_path / "optimised.onnx").graph)]
    assert operations.count("MatMulIntegerToFloat") > 0
    assert "MatMulInteger" not in operations


def all_nodes(graph):
    """A graph's nodes, and those of its branches."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from all_nodes(attribute.g)


def test_a_run_is_verified_on_its_examples(exported):
    report = json.loads((exported / "verification.json").read_text())
    assert [c["kind"] for c in report["cases"]][:5] == ["example"] * 4 + ["examples in one batch"]
    assert report["mismatches"] == 0
    assert lorahub_edge.verify(exported)["passed"]


def test_the_codes_in_the_graph_are_those_that_were_merged(run, exported):
    merged = lorahub_edge.merge(run).base.model
    tensors = {}
    for path in (exported / "onnx").glob("*.onnx"):
        for tensor in onnx.load(path).graph.initializer:
            path_of, _, kind = tensor.name.rpartition(".")
            first, *others = path_of.split("+")  # "a.q+k+v": layers side by side
            names = [first, *(f"{first.rpartition('.')[0]}.{other}" for other in others)]
            values = numpy_helper.to_array(tensor)
            parts = np.split(values, len(names), axis=-1) if others else [values]
            tensors |= {f"{name}.{kind}": part for name, part in zip(names, parts, strict=True)}
    n_seen = 0
    for name, layer in merged.named_modules():
        if isinstance(layer, Int8Linear):
            assert np.array_equal(tensors[f"{name}.codes_t"].T, layer.codes.numpy()), name
            assert np.array_equal(tensors[f"{name}.row_scale"], layer.row_scale.numpy()), name
            n_seen += 1
    assert n_seen == 2 * 7 + 2 * 11 + 1
    assert np.array_equal(tensors["shared.codes"], merged.shared.codes.numpy())


def test_a_merged_folder_and_its_run_give_the_same_graphs(run, exported, tmp_path):
    merged = lorahub_edge.merge(run, tmp_path / "merged")
    again = lorahub_edge.export(merged.folder, tmp_path / "out").folder
    files = [json.loads((folder / "lorahub_edge.json").read_text())["files"] for folder in (exported, again)]
    assert files[0] == files[1]


def test_names_and_axes_are_what_other_clients_read(exported):
    decoder = onnx.load(exported / "onnx" / "decoder_model_merged_int8.onnx").graph
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in [*decoder.input, *decoder.output]
    }
    assert shapes["input_ids"] == ["batch_size", "decoder_sequence_length"]
    assert shapes["past_key_values.1.encoder.value"] == ["batch_size", 4, "encoder_sequence_length_out", 8]
    assert shapes["use_cache_branch"] == [1]
    assert {n.replace("past_key_values", "present") for n in shapes if n.startswith("past")} < set(shapes)
    assert sum(node.op_type == "If" for node in decoder.node) == 1
    assert {node.domain for node in decoder.node} == {""}
    config = json.loads((exported / "config.json").read_text())
    assert config["transformers.js_config"] == {"dtype": "int8"}
    assert config["tie_word_embeddings"] is False
    assert "quantization_config" not in config


def test_tokenizer_files_are_the_sources_byte_for_byte(bases, exported):
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (exported / name).read_bytes() == (bases["t5"] / name).read_bytes()


def test_a_tied_head_is_stored_once(bases, tmp_path):
    folder = lorahub_edge.export(str(bases["llama-tied"]), tmp_path / "out").folder
    names = {t.name for t in onnx.load(folder / "onnx" / "model_int8.onnx").graph.initializer}
    assert "model.embed_tokens.codes_t" in names
    assert not names & {"model.embed_tokens.codes", "lm_head.codes_t"}


def test_big_weights_go_to_a_file_of_their_own(run, exported, tmp_path):
    split = lorahub_edge.export(run, tmp_path / "out", inline_limit_bytes=0).folder
    assert sorted(p.name for p in (split / "onnx").iterdir()) == [
        "decoder_model_merged_int8.onnx", "decoder_model_merged_int8.onnx_data",
        "encoder_model_int8.onnx", "encoder_model_int8.onnx_data",
    ]  # fmt: skip
    config = json.loads((split / "config.json").read_text())
    assert config["transformers.js_config"]["use_external_data_format"] is True
    texts = [text for text, _ in tiny.ROWS]
    assert generate(OnnxModel(split), texts) == generate(OnnxModel(exported), texts)
    data = split / "onnx" / "encoder_model_int8.onnx_data"
    data.write_bytes(data.read_bytes()[:-1] + b"?")
    with pytest.raises(UnsupportedFormat, match=r"encoder_model_int8.onnx_data is not what was exported"):
        open_folder(split)


def test_an_answer_does_not_depend_on_its_batch(exported):
    """One scale per row of the input: onnxruntime's own dynamic quantisation has one per batch."""
    model = OnnxModel(exported)
    prompts = [model.files.encode(text) for text, _ in tiny.ROWS]
    _, together = model.begin(prompts)
    for row, prompt in enumerate(prompts):
        _, alone = model.begin([prompt])
        assert np.abs(alone[0] - together[row]).max() < 1e-4 * np.abs(together).max()


def test_a_layer_gets_its_input_in_two_parts_where_one_part_is_not_enough(exported):
    forms = json.loads((exported / "lorahub_edge.json").read_text())["forms"]
    measured = [form for form in forms.values() if form["errors"]]
    assert measured
    for form in measured:
        assert form["errors"]["int8_split"] < max(form["errors"]["int8_rows"] / 50, 1e-6)  # float32 has no more
        assert form["form"] == "int8_split" or form["errors"]["int8_rows"] <= MAX_ROWS_ERROR


def damage(folder, change):
    """Overwrite one big tensor of the decoder."""
    path = folder / "onnx" / "decoder_model_merged_int8.onnx"
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "lm_head.codes_t":
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))
    onnx.save(model, path)


def test_a_damaged_graph_fails_and_its_report_is_kept(exported, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(exported, folder)
    damage(folder, lambda codes: np.roll(codes, 1, axis=1))
    reseal(folder)
    with pytest.raises(VerificationFailed, match=r"verification failed: logits .* see verification.json"):
        lorahub_edge.verify(folder)
    assert json.loads((folder / "verification.json").read_text())["passed"] is False


def test_an_export_that_does_not_verify_leaves_its_report_and_no_folder(bases, tmp_path, monkeypatch):
    from lorahub_edge.exporting import folder as export_folder

    write = export_folder.write_model

    def write_wrong(path, model, tensors, **options):
        return write(path, model, [*tensors[:-1], _shifted(tensors[-1])], **options)

    def _shifted(tensor):
        make = tensor.make
        return type(tensor)(tensor.name, tensor.data_type, tensor.dims, lambda: np.roll(make(), 1, axis=-1))

    monkeypatch.setattr(export_folder, "write_model", write_wrong)
    with pytest.raises(VerificationFailed, match="nothing was written but the report"):
        lorahub_edge.export(str(bases["t5"]), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out.verification.json"]


def test_what_is_no_export_is_refused(exported, tmp_path):
    with pytest.raises(InvalidInput, match="is not an exported folder"):
        lorahub_edge.verify(tmp_path)
    folder = tmp_path / "half"
    shutil.copytree(exported, folder)
    (folder / "onnx" / "encoder_model_int8.onnx").write_bytes(b"no graph")
    reseal(folder)
    with pytest.raises(UnsupportedFormat, match="cannot load it"):
        lorahub_edge.verify(folder)
    (folder / "reference.npz").write_bytes(b"PK")
    reseal(folder)
    with pytest.raises(UnsupportedFormat, match=r"reference.npz: cannot be read"):
        lorahub_edge.verify(folder)
    (folder / "onnx" / "encoder_model_int8.onnx").unlink()
    with pytest.raises(UnsupportedFormat, match=r"encoder_model_int8.onnx is missing"):
        open_folder(folder)


def test_bad_settings_and_an_existing_folder_are_refused(run, tmp_path):
    with pytest.raises(InvalidInput, match="precision: expected one of int8, fp16, fp32, received 'int4'"):
        lorahub_edge.export(run, tmp_path / "out", precision="int4")
    with pytest.raises(OutputExists):
        lorahub_edge.export(run, tmp_path)
    with pytest.raises(InvalidInput, match="is no run folder"):
        lorahub_edge.export("pocket", tmp_path / "out", in_place_int8=True)
    assert list(tmp_path.iterdir()) == []


def test_the_embedded_model_answers_as_its_run_does(tmp_path):
    modules = [f"pocket/{name}" for name in ("opposite", "as_thanks", "sound")]
    adapted = lorahub_edge.adapt(
        "pocket", modules, "pocket/opposite_in_thanks", test="pocket/opposite_in_thanks", n_test=40, device="cpu",
        budget=12, null_control=False, out=tmp_path / "run",
    )  # fmt: skip
    folder = lorahub_edge.export(tmp_path / "run", tmp_path / "out").folder
    texts = [example.input for example in adapted.task.test]
    answers = [completion.text.strip() for completion in generate(OnnxModel(folder), texts)]
    assert answers == lorahub_edge.load_adapted(tmp_path / "run", device="cpu").predict(texts)


def test_exporting_leaves_the_global_state_of_torch_alone(exported):
    assert torch.get_num_threads() == 1


def test_a_graph_with_every_input_in_two_parts_answers_as_torch_does(bases, tmp_path, monkeypatch):
    monkeypatch.setattr(export_forms, "MAX_ROWS_ERROR", 0.0)
    exported = lorahub_edge.export(str(bases["t5"]), tmp_path / "out")
    forms = json.loads((exported.folder / "lorahub_edge.json").read_text())["forms"]
    assert "int8_split" in {form["form"] for form in forms.values()}
