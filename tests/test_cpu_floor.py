"""A CPU older than the dependencies' wheels: one line before any of them is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

import lorahub_edge
from lorahub_edge import cpu_floor
from lorahub_edge.errors import LorahubEdgeError

CORE2 = "processor\t: 0\nmodel name\t: an old one\nflags\t\t: fpu sse sse2 pni ssse3 cx16\n\nprocessor\t: 1\n"
# what a command does, on the machine whose /proc/cpuinfo is the first argument
COMMAND = """
import sys
from pathlib import Path
from lorahub_edge import cli, cpu_floor
cpu_floor.CPUINFO = Path(sys.argv.pop(1))
try:
    cli.main()
finally:
    print([name for name in ("numpy", "onnxruntime", "torch") if name in sys.modules])
"""


@pytest.fixture
def old_cpu(tmp_path: Path) -> Path:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(CORE2)
    return cpuinfo


@pytest.mark.parametrize(
    "text",
    [
        CORE2.replace("ssse3", "ssse3 sse4_1 sse4_2 popcnt"),
        "processor\t: 0\nFeatures\t: fp asimd evtstrm\n",  # ARM64
        "",
    ],
)
def test_other_machines_pass(tmp_path: Path, text: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text)
    assert cpu_floor.missing_features(cpuinfo) == ()
    assert cpu_floor.missing_features(tmp_path / "none") == ()


def test_python_gets_an_error_of_ours(old_cpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_floor, "CPUINFO", old_cpu)
    message = r"^this CPU: expected x86-64-v2, .* received one without sse4_1, sse4_2, popcnt; use a newer CPU$"
    with pytest.raises(LorahubEdgeError, match=message):
        _ = lorahub_edge.adapt


@pytest.mark.parametrize("command", [("doctor",), ("serve", "folder")])
def test_a_command_says_so_before_anything_is_imported(old_cpu: Path, command: tuple[str, ...]) -> None:
    result = subprocess.run(
        [sys.executable, "-c", COMMAND, old_cpu, *command], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stdout == "[]\n"
    assert result.stderr.startswith("error: this CPU: expected x86-64-v2")
    assert result.stderr.count("\n") == 1
