"""Settings and fixtures that all tests share: tiny models and modules, made once per session."""

from __future__ import annotations

import copy
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import settings

import lorahub_edge
from tests import tiny

if TYPE_CHECKING:
    from lorahub_edge.exporting import Exported

# Examples are small, but the machine may be shared: no deadline, and the same examples in every run.
settings.register_profile("lorahub_edge", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("lorahub_edge")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests leave nothing in the user's cache, and find nothing there."""
    os.environ["LORAHUB_EDGE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread_per_core() -> None:
    """Tiny products gain nothing from threads and lose much to waiting for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The project's shared test data, which a stranger's clone does not have."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the shared data folder beside the checkout")
    return folder


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind -> folder of a tiny base; "t5" is untied like FLAN-T5, "t5-tied" like the first T5."""
    root = tmp_path_factory.mktemp("bases")
    kinds = {"t5": False, "t5-tied": True, "llama": False, "llama-tied": True, "gemma2": True, "gemma3": True}
    folders = {}
    for name, tied in kinds.items():
        kind = name.partition("-")[0]
        folders[name] = tiny.save_model(tiny.make_model(kind, tied=tied), root / name, kind, tied=tied)
    return folders


@pytest.fixture(scope="session")
def module_folders(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind -> a folder of four PEFT modules for the base of that kind."""
    root = tmp_path_factory.mktemp("modules")
    for kind in ("t5", "llama", "gemma2", "gemma3"):
        for k in range(4):
            tiny.save_module(bases[kind], root / kind / f"m{k}", kind, seed=k)
    return {kind: root / kind for kind in ("t5", "llama", "gemma2", "gemma3")}


def traced_once(trace: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A tracer that remembers: a graph depends on a skeleton's config and small tensors only, and takes seconds."""
    known: dict[Any, Any] = {}

    def remembered(skeleton: Any) -> Any:
        tensors = ((name, tensor.numpy().tobytes()) for name, tensor in skeleton.named_parameters())
        key = (skeleton.config.to_json_string(), *tensors)
        if key not in known:
            known[key] = trace(skeleton)
        return copy.deepcopy(known[key])

    return remembered


@pytest.fixture(scope="session")
def fast_export() -> Any:
    """`lorahub_edge.export` that traces equal models once."""
    from lorahub_edge.exporting import folder

    with pytest.MonkeyPatch.context() as patch:
        for name in ("trace_encoder", "trace_decoder", "trace_causal"):
            patch.setattr(folder, name, traced_once(getattr(folder, name)))
        yield lorahub_edge.export


@pytest.fixture(scope="session")
def export_base(
    bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, fast_export: Any
) -> Callable[..., Exported]:
    """Exports a base of a kind, once for each kind and precision."""
    root = tmp_path_factory.mktemp("exports")

    @functools.cache
    def export(kind: str, precision: str) -> Exported:
        return fast_export(str(bases[kind]), root / precision / kind, precision=precision)

    return lambda kind, precision="int8": export(kind, precision)


@pytest.fixture
def example_file(tmp_path: Path) -> Path:
    """A JSONL file of six examples."""
    path = tmp_path / "task.jsonl"
    path.write_text("".join(json.dumps({"input": i, "target": t}) + "\n" for i, t in tiny.ROWS))
    return path
