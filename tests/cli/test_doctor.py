"""doctor: what it reports with and without the CUDA extension, a GPU, a driver; and that settings do not stop it."""

import json
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from lorahub_edge.cli import app
from lorahub_edge.doctor import doctor
from lorahub_edge.kernels import routes


class Extension:
    """A CUDA extension that finds what it is told."""

    __name__ = "lorahub_edge_cuda._native_cuda"
    architectures = "80-real 90"

    def __init__(self, devices: list[dict[str, Any]] | str, driver: str = "13.1") -> None:
        self.found = devices
        self.driver = driver

    def runtime_version(self) -> str:
        return "13.0"

    def driver_version(self) -> str:
        return self.driver

    def devices(self) -> list[dict[str, Any]]:
        if isinstance(self.found, str):
            raise RuntimeError(self.found)
        return self.found


def gpu(index: int, problem: str = "") -> dict[str, Any]:
    return {
        "index": index,
        "name": "A GPU",
        "compute_capability": "9.0",
        "memory_bytes": 80 * 2**30,
        "problem": problem,
    }


@pytest.fixture(autouse=True)
def default_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LORAHUB_EDGE_KERNELS", raising=False)
    monkeypatch.delenv("LORAHUB_EDGE_ISA", raising=False)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put this in the place of the CUDA extension."""
    real = routes.import_extension

    def use(extension: Any) -> None:
        monkeypatch.setattr(routes, "import_extension", lambda kind: extension if kind == "cuda" else real(kind))

    return use


def test_cpu_kernels_are_named() -> None:
    diagnosis = doctor()
    assert diagnosis.cpu_route == "native-cpu"
    assert diagnosis.isa == diagnosis.runnable_isas[-1]
    assert diagnosis.runnable_isas[0] in ("baseline", "neon")
    assert diagnosis.versions["torch"] == torch.__version__
    assert diagnosis.machine["cpus"] >= 1


def test_missing_cuda_extension_has_a_reason_and_a_remedy(cuda: Any) -> None:
    cuda(ImportError("No module named 'that'"))
    diagnosis = doctor()
    assert diagnosis.cuda_build is None
    assert diagnosis.cuda_route == "torch-cuda"
    assert diagnosis.devices == ()
    note = next(note for note in diagnosis.notes if note.startswith("CUDA kernels: "))
    assert "(No module named 'that')" in note
    assert "nvcc on the PATH" in note
    assert ("CUDA kernels", "none; torch-cuda instead") in list(diagnosis.lines())


def test_missing_gpu_and_driver_are_told_apart(cuda: Any) -> None:
    cuda(Extension("no CUDA-capable device is detected"))
    diagnosis = doctor()
    assert diagnosis.cuda_build is not None
    assert diagnosis.cuda_build.architectures == ("80-real", "90")
    assert diagnosis.cuda_route == "native-cuda"
    assert any("(no CUDA-capable device is detected)" in note for note in diagnosis.notes)
    cuda(Extension("CUDA driver version is insufficient for CUDA runtime version", driver="0.0"))
    assert any("(no CUDA driver on this machine); they need one" in note for note in doctor().notes)


def test_gpus_are_listed_with_what_keeps_kernels_from_running(cuda: Any) -> None:
    cuda(Extension([gpu(0), gpu(1, "no kernel image is available")]))
    diagnosis = doctor()
    lines = list(diagnosis.lines())
    assert ("GPU 0", "A GPU, 9.0, 80 GiB: kernels run") in lines
    assert ("GPU 1", "A GPU, 9.0, 80 GiB: no kernel image is available") in lines
    assert any(note.startswith("GPU 1: kernels do not run there (no kernel image") for note in diagnosis.notes)
    assert any("is built without CUDA" in note for note in diagnosis.notes) == (torch.version.cuda is None)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("LORAHUB_EDGE_KERNELS", "fast", "LORAHUB_EDGE_KERNELS: expected 'native', 'reference' or nothing"),
        ("LORAHUB_EDGE_KERNELS", "native", "LORAHUB_EDGE_KERNELS=native: the extension"),
    ],
)
def test_wrong_settings_are_notes(
    cuda: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    cuda(ImportError("not built"))
    monkeypatch.setenv(name, value)
    diagnosis = doctor()
    assert diagnosis.cuda_route is None
    assert len([note for note in diagnosis.notes if note.startswith(message)]) == 1


def test_reference_route_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAHUB_EDGE_KERNELS", "reference")
    diagnosis = doctor()
    assert (diagnosis.cpu_route, diagnosis.isa) == ("reference", "numpy")


def test_command_prints_lines_or_json(cuda: Any) -> None:
    cuda(Extension([gpu(0)]))
    text = CliRunner().invoke(app, ["doctor"])
    assert text.exit_code == 0
    assert [line.split()[0] for line in text.stdout.splitlines()][:2] == ["versions", "machine"]
    assert "A GPU, 9.0, 80 GiB: kernels run" in text.stdout
    report = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert report["devices"] == [gpu(0)]
    assert report["cuda_build"]["architectures"] == ["80-real", "90"]
    assert report["cuda_build"]["module"] == "lorahub_edge_cuda._native_cuda"
