"""The two distributions and the wheels' configuration: that their pieces fit each other."""

import re
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

import lorahub_edge
from lorahub_edge.doctor import doctor
from lorahub_edge.errors import KernelUnavailable
from lorahub_edge.kernels import routes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
CUDA = ROOT / "wheels" / "cuda"
OPTIONS = {"build", "skip", "archs", "build-frontend", "environment", "before-all", "test-command"}
IMAGES = {"manylinux-x86_64-image", "manylinux-aarch64-image"}


def read(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text())


def test_both_distributions_are_of_one_version() -> None:
    cpu, cuda = read(ROOT), read(CUDA)
    version = cpu["project"]["version"]
    assert lorahub_edge.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert cuda["project"]["version"] == version
    assert cuda["project"]["dependencies"] == [f"lorahub-edge=={version}"]
    assert runpy.run_path(str(CUDA / "lorahub_edge_cuda" / "__init__.py"))["__version__"] == version
    assert cuda["project"]["requires-python"] == cpu["project"]["requires-python"]
    assert cuda["build-system"] == cpu["build-system"]
    assert (CUDA / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_second_wheel_takes_one_target_of_the_same_cmake_file() -> None:
    built = read(CUDA)["tool"]["scikit-build"]
    source = (CUDA / built["cmake"]["source-dir"] / "CMakeLists.txt").read_text()
    assert f"pybind11_add_module({built['build']['targets'][0]} " in source
    assert f"COMPONENT {built['install']['components'][0]})" in source
    assert built["cmake"]["define"]["LORAHUB_EDGE_CUDA_PACKAGE"] in built["wheel"]["packages"]
    assert all(f"set({name} " in source for name in built["cmake"]["define"])


@pytest.fixture
def cuda_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """lorahub-edge-cuda beside a lorahub-edge that was built without CUDA."""
    shutil.copytree(CUDA / "lorahub_edge_cuda", tmp_path / "lorahub_edge_cuda")
    (tmp_path / "lorahub_edge_cuda" / "_native_cuda.py").write_text(
        "architectures = '90'\nruntime_version = driver_version = lambda: '13.0'\ndevices = list\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "lorahub_edge._native_cuda", None)  # type: ignore[arg-type]
    monkeypatch.setattr(routes, "import_extension", routes.import_extension.__wrapped__)
    monkeypatch.delenv("LORAHUB_EDGE_KERNELS", raising=False)
    yield
    for name in ("lorahub_edge_cuda", "lorahub_edge_cuda._native_cuda"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("cuda_wheel")
def test_kernels_from_the_second_wheel_are_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert routes.route("cuda") == "native-cuda"
    assert ("CUDA kernels", "lorahub_edge_cuda._native_cuda, CUDA 13.0, compute capabilities 90") in list(
        doctor().lines()
    )
    own = ModuleType("lorahub_edge._native_cuda")
    monkeypatch.setitem(sys.modules, own.__name__, own)
    assert routes.import_extension("cuda") is own


@pytest.mark.usefixtures("cuda_wheel")
def test_a_wheel_of_another_version_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lorahub_edge, "__version__", "9.9.9")
    assert routes.route("cuda") == "torch-cuda"
    with pytest.raises(KernelUnavailable) as caught:
        routes.need_native("an op", torch.device("cuda"), None)
    received = read(CUDA)["project"]["version"]
    reason = f"(lorahub-edge-cuda: expected the version of lorahub-edge, 9.9.9, received {received}); install "
    assert reason + "lorahub-edge-cuda of the same version as lorahub-edge" in str(caught.value)
    assert [note for note in doctor().notes if reason in note]


def test_an_extension_that_is_broken_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def broken(name: str) -> None:
        asked.append(name)
        raise ImportError("libsomething.so: cannot open shared object file")

    monkeypatch.setattr(routes.importlib, "import_module", broken)
    assert "libsomething" in str(routes.import_extension.__wrapped__("cuda"))
    assert asked == ["lorahub_edge._native_cuda"]


@pytest.mark.parametrize("folder", [ROOT, CUDA], ids=["cpu", "cuda"])
def test_wheels_are_built_for_every_python_from_the_first(folder: Path) -> None:
    pyproject = read(folder)
    options = pyproject["tool"]["cibuildwheel"]
    systems = {name: options.pop(name) for name in ("linux", "macos") if name in options}
    assert set(options) <= OPTIONS
    assert all(set(system) <= OPTIONS | IMAGES for system in systems.values())
    minors = [int(minor) for minor in re.findall(r"cp3(\d+)-\*", options["build"])]
    assert pyproject["project"]["requires-python"] == f">=3.{minors[0]}"
    assert minors == list(range(minors[0], minors[-1] + 1))
    assert {systems["linux"][name] for name in IMAGES & set(systems["linux"])} == {"manylinux_2_28"}


def test_the_wheels_check_is_there_and_passes() -> None:
    options = read(ROOT)["tool"]["cibuildwheel"]
    assert options["environment"] == {"LORAHUB_EDGE_CUDA": "OFF"}
    (script,) = re.findall(r"python \{project\}/(\S+)", options["test-command"])
    check = runpy.run_path(str(ROOT / script))
    check["check_kernels"]()
    with pytest.raises(SystemExit, match="expected an installed package, received the source tree"):
        check["check_build"]()


def test_the_workflow_builds_both() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "wheels.yml").read_text())
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    built = [re.match(r"python -m cibuildwheel (?:(?!--)(\S+))?", command) for command in commands]
    assert [ROOT / (match[1] or "") for match in built if match] == [ROOT, CUDA]
