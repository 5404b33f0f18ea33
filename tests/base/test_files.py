"""Which files of a folder or a Hub repository are a base: nothing is fetched that is not read."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lorahub_edge.base.files import choose_base_files, choose_weights
from lorahub_edge.errors import InvalidInput
from tests import gguf_files
from tests.hub import hub

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = "model.safetensors.index.json"
NEVER = [
    "consolidated.safetensors",
    "model.fp16.safetensors",
    "pytorch_model.fp16.bin",
    "tf_model.h5",
    "training_args.bin",
]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ([*NEVER, "model.safetensors", INDEX, *SHARDS, "pytorch_model.bin", "a.gguf"], ["model.safetensors"]),
        ([*NEVER, INDEX, *SHARDS, "pytorch_model.bin"], [INDEX, *SHARDS]),
        ([*NEVER, "pytorch_model.bin", "pytorch_model.bin.index.json", "a.gguf"], ["pytorch_model.bin"]),
        (["a.gguf", "mmproj-a.gguf"], ["a.gguf"]),
        (NEVER, []),
    ],
)
def test_one_form_of_the_weights_is_chosen(names, chosen):
    assert choose_weights(names) == chosen


@pytest.mark.parametrize(
    ("pick", "chosen"),
    [
        ("q8_0", "m-Q8_0.gguf"),
        ("Q4_K_M", "m.Q4_K_M.gguf"),
        ("m-Q8_0.gguf", "m-Q8_0.gguf"),
        ("8_0", None),
        ("Q4", None),
        ("F16", None),
    ],
)
def test_a_pick_names_one_gguf_file(pick, chosen):
    names = ["m-Q8_0.gguf", "m.Q4_K_M.gguf", "m-IQ8_0.gguf", "m-F16-00001-of-00002.gguf", "model.safetensors"]
    if chosen is None:
        with pytest.raises(
            InvalidInput, match=rf"none of its whole GGUF files is '{pick}' .*m-Q8_0\.gguf.*org/name:Q8_0"
        ):
            choose_weights(names, pick)
    else:
        assert choose_weights(names, pick) == [chosen]


def test_side_files_are_those_that_are_read():
    names = [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
        "LICENSE",
        "onnx/model.onnx",
        "merges.txt",
    ]
    assert choose_base_files(names) == ["model.safetensors", "config.json", "tokenizer.json", "merges.txt"]


SCRIPT = """
import sys
from lorahub_edge.base import open_base
from lorahub_edge.errors import InvalidInput
for spec in sys.argv[1:]:
    try:
        opened = open_base(spec, precision="int8", device="cpu")
        print(opened.source.spec, len(opened.source.revision), *(p.name for p in opened.checkpoint.files))
    except InvalidInput as error:
        print(error)
"""


def test_from_a_repository_one_file_is_fetched(bases, tmp_path):
    files = tmp_path / "gguf"
    files.mkdir()
    gguf_files.write(files, "llama", name="m-Q8_0.gguf", quantisation="Q8_0")
    shutil.copyfile(files / "m-Q8_0.gguf", files / "m-Q4_0.gguf")
    mixed = Path(shutil.copytree(bases["llama"], tmp_path / "mixed"))
    for name in (INDEX, *SHARDS, *NEVER, "README.md"):
        (mixed / name).write_bytes(b"never wanted")
    specs = ["org/gguf", "org/gguf:Q2_K", "org/gguf:Q8_0", "org/gguf/m-Q4_0.gguf@v1", "org/gguf:Q8_0@v1", "org/mixed"]

    def run(endpoint: str, *specs: str, **settings: str) -> list[str]:
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), **settings}
        command = [sys.executable, "-c", SCRIPT, *specs]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.splitlines()

    with hub({"org/gguf": files, "org/mixed": mixed}) as (endpoint, requested):
        lines = run(endpoint, *specs, HF_HUB_DISABLE_XET="1")
    assert "2 GGUF files (m-Q4_0.gguf, m-Q8_0.gguf); name one" in lines[0]
    assert "none of its whole GGUF files is 'Q2_K' (m-Q4_0.gguf, m-Q8_0.gguf)" in lines[1]
    assert lines[2:] == [
        "org/gguf:Q8_0 40 m-Q8_0.gguf",
        "org/gguf/m-Q4_0.gguf@v1 40 m-Q4_0.gguf",
        "org/gguf:Q8_0@v1 40 m-Q8_0.gguf",
        "org/mixed 40 model.safetensors",
    ]
    fetched = {path.rpartition("/")[2] for path in requested if "/resolve/" in path}
    assert not fetched & {INDEX, *SHARDS, *NEVER, "README.md"}
    # from the cache alone, where both files are by now
    assert run("http://127.0.0.1:9", "org/gguf:Q8_0", HF_HUB_OFFLINE="1") == ["org/gguf:Q8_0 40 m-Q8_0.gguf"]
