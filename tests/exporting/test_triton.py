"""export --triton: a model repository by the official schema, whose configuration says what the graphs are."""

import importlib.metadata
import importlib.util
import warnings

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format

import lorahub_edge
from lorahub_edge.errors import InvalidInput
from lorahub_edge.serve import OnnxModel, generate
from tests import tiny

TEXTS = [text for text, _ in tiny.ROWS]
ONNX_TYPES = {"tensor(int64)": "TYPE_INT64", "tensor(float)": "TYPE_FP32", "tensor(bool)": "TYPE_BOOL"}


@pytest.fixture(scope="module")
def schema():
    """ModelConfig as the server's makers publish it, without their client around it."""
    try:
        files = importlib.metadata.files("tritonclient") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the package tritonclient, which make test installs")
    [path] = [f.locate() for f in files if f.name == "model_config_pb2.py" and "tritonclient" in f.parts]
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # written for the protobuf before ours, which is allowed and remarked
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def repositories(run, bases, tmp_path_factory):
    root = tmp_path_factory.mktemp("triton")
    return {
        "t5": lorahub_edge.export(run, root / "seq", triton=True).folder,
        "llama": lorahub_edge.export(str(bases["llama"]), root / "causal", triton=True, inline_limit_bytes=0).folder,
    }


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_the_repository_has_the_documented_layout(repositories, kind):
    names = {"t5": ["seq-decoder", "seq-encoder"], "llama": ["causal-model"]}[kind]
    repository = repositories[kind] / "triton"
    assert sorted(p.name for p in repository.iterdir()) == names
    graphs = {"t5": ["model.onnx"], "llama": ["model.onnx", "model.onnx_data"]}[kind]
    for name in names:
        found = sorted(p.relative_to(repository / name).as_posix() for p in (repository / name).rglob("*"))
        assert found == ["1", *(f"1/{graph}" for graph in graphs), "config.pbtxt"]
    assert not (repositories[kind] / "genai_config.json").exists()  # it names a graph of the other layout


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_the_configuration_is_that_of_the_graph(repositories, schema, kind):
    for folder in (repositories[kind] / "triton").iterdir():
        config = text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())
        session = onnxruntime.InferenceSession(folder / "1" / "model.onnx")
        assert (config.name, config.backend, config.max_batch_size) == (folder.name, "onnxruntime", 0)
        for said, real in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
            assert {t.name: describe(schema, t) for t in said} == {
                t.name: (ONNX_TYPES[t.type], [d if isinstance(d, int) else -1 for d in t.shape]) for t in real
            }


def describe(schema, tensor):
    return schema.DataType.Name(tensor.data_type), list(tensor.dims)


def test_a_repository_is_verified_and_served_as_any_export(repositories, exported):
    assert lorahub_edge.verify(repositories["t5"])["passed"]
    assert generate(OnnxModel(repositories["t5"]), TEXTS) == generate(OnnxModel(exported), TEXTS)
    assert not (repositories["t5"] / "onnx").exists()


def greedy(run, inputs, step, n_tokens=8):
    """The loop that docs/serving.md describes to a client; `run` stands for a request to the server."""
    tokens = []
    while len(tokens) < n_tokens:
        outputs = run(inputs)
        tokens.append(int(outputs["logits"][0, -1].argmax()))
        inputs = step(inputs, outputs, tokens)
    return tokens


def server(repository, name):
    """What the server does with a request, by the configuration's names only, and without tensors of no size."""
    session = onnxruntime.InferenceSession(repository / "triton" / name / "1" / "model.onnx")

    def run(inputs):
        assert all(value.size for value in inputs.values())
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))

    return session, run


def empty_past(session, length=1):
    shapes = {i.name: i.shape for i in session.get_inputs() if i.name.startswith("past")}
    return {name: np.zeros((1, s[1], length, s[3]), np.float32) for name, s in shapes.items()}


def test_a_clients_loop_over_encoder_and_decoder_gives_our_tokens(repositories):
    model = OnnxModel(repositories["t5"])
    _, encode = server(repositories["t5"], "seq-encoder")
    session, decode = server(repositories["t5"], "seq-decoder")
    for text in TEXTS:
        ids = np.array([model.files.encode(text)])
        mask = np.ones_like(ids)
        fixed = {
            "encoder_hidden_states": encode({"input_ids": ids, "attention_mask": mask})["last_hidden_state"],
            "encoder_attention_mask": mask,
        }
        first = {
            **fixed,
            **empty_past(session),
            "input_ids": np.array([[model.files.start_id]]),
            "use_cache_branch": np.array([False]),
        }

        def step(inputs, outputs, tokens):
            past = {n: outputs[n.replace("past_key_values", "present")] for n in inputs if n.startswith("past")}
            kept = {n: v for n, v in inputs.items() if ".encoder." in n and inputs["use_cache_branch"][0]}
            return {
                **inputs,
                **past,
                **kept,
                "input_ids": np.array([tokens[-1:]]),
                "use_cache_branch": np.array([True]),
            }

        expected = list(generate(model, [text])[0].token_ids)[:8]
        assert greedy(decode, first, step, len(expected)) == expected


def test_a_clients_loop_over_a_decoder_only_model_gives_our_tokens(repositories):
    model = OnnxModel(repositories["llama"])
    session, run = server(repositories["llama"], "causal-model")
    for text in TEXTS:
        ids = np.array([model.files.encode(text)])
        n = ids.shape[1]
        first = {
            **empty_past(session),  # one position that the mask hides
            "input_ids": ids,
            "attention_mask": np.array([[0] + [1] * n]),
            "position_ids": np.arange(n)[None],
        }

        def step(inputs, outputs, tokens):
            past = {n: outputs[n.replace("past_key_values", "present")] for n in inputs if n.startswith("past")}
            mask = np.concatenate([inputs["attention_mask"], [[1]]], 1)
            ids = np.array([tokens[-1:]])
            return {**past, "input_ids": ids, "attention_mask": mask, "position_ids": mask.sum(1, keepdims=True) - 1}

        expected = list(generate(model, [text])[0].token_ids)[:8]
        assert greedy(run, first, step, len(expected)) == expected


def test_triton_takes_no_adapter(run, tmp_path):
    with pytest.raises(InvalidInput, match="triton: its models take no adapter"):
        lorahub_edge.export(run, tmp_path / "out", triton=True, with_adapter=True)
