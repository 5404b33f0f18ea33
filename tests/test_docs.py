"""What the documents say is what the code does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "bench" / "README.md"]


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [("docs/make_cli.py", "--check"), ("-m", "bench.tables", "--check")])
def test_generated_pages_are_current(arguments):
    result = run(*arguments)
    assert result.returncode == 0, result.stderr


def test_the_readmes_example_runs_as_it_stands(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    result = run("-c", example, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "my_run" / "report.html").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+?)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_a_light_import_stays_light():
    """--help must not wait for torch."""
    result = run(
        "-c", "import sys, lorahub_edge.cli; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    assert result.stdout.strip() == "[]"
