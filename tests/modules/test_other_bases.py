"""A module that names another base than the one in use is warned of, and stands in the manifest."""

from pathlib import Path

import pytest

import lorahub_edge
from lorahub_edge.modules import LoraModule, OtherBase, other_bases
from lorahub_edge.sources import Source
from tests import tiny


@pytest.mark.parametrize(
    ("named", "spec", "is_other"),
    [
        ("google/flan-t5-base", "google/flan-t5-base@v1", False),
        ("google/flan-t5-base", "/models/Flan-T5-Base/", False),
        ("/home/me/flan-t5-base", "google/flan-t5-base", False),
        ("C:\\models\\flan-t5-base", "google/flan-t5-base", False),
        ("/cache/models--google--flan-t5-base/snapshots/0123", "google/flan-t5-base", False),
        ("Org/SmolLM2-135M", "/models/smollm2-135m-q8_0.gguf", False),
        (None, "google/flan-t5-base", False),
        ("", "google/flan-t5-base", False),
        ("google/t5-v1_1-base", "google/flan-t5-base", True),
        ("google/flan-t5-large", "google/flan-t5-base", True),
        ("Org/SmolLM2-360M", "/models/smollm2-135m-q8_0.gguf", True),
    ],
)
def test_names_are_compared_by_their_last_part(named, spec, is_other):
    module = LoraModule("m", {}, base_name=named)
    assert other_bases([module], Source(spec, Path("/snapshots/abc"))) == ({"m": named} if is_other else {})


def test_a_folder_is_known_by_its_own_name_too():
    assert not other_bases([LoraModule("m", {}, base_name="org/beta")], Source(".", Path("/models/beta")))


def test_one_warning_counts_them_and_the_manifest_names_each(bases, tmp_path):
    names = ["org/alpha-base", "org/alpha-base", "gamma", "delta", "org/T5@v1", ""]
    for k, name in enumerate(names):
        tiny.save_module(bases["t5"], tmp_path / f"m{k}", "t5", seed=k, base_name=name)
    counted = r"4 of 6 modules .* \(org/alpha-base: m0, org/alpha-base: m1, gamma: m2, \.\.\.\), not '.*/t5'"
    with pytest.warns(OtherBase, match=counted):
        run = lorahub_edge.adapt(bases["t5"], tmp_path, tiny.ROWS, budget=4, null_control=False)
    assert [m["base"] for m in run.manifest["modules"]] == [name or None for name in names]
