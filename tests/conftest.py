"""Settings and fixtures that all tests share: tiny models and modules, made once per session."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests import tiny

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


@pytest.fixture
def example_file(tmp_path: Path) -> Path:
    """A JSONL file of six examples."""
    path = tmp_path / "task.jsonl"
    path.write_text("".join(json.dumps({"input": i, "target": t}) + "\n" for i, t in tiny.ROWS))
    return path
