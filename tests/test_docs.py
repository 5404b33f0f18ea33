"""What the documents say is what the code does."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from docs import make_demo
from lorahub_edge import terminal
from lorahub_edge.cli import app

COMMANDS = typer.main.get_command(app)
ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "bench" / "README.md"]
TYPED = re.compile(r"^ *(?:Example: )?(?:[A-Z_]+=\S+ |[^|`\n]+\| )?lorahub-edge +(\S.*)$", re.MULTILINE)


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [("docs/make_cli.py", "--check"), ("-m", "bench.tables", "--check")])
def test_generated_pages_are_current(arguments):
    result = run(*arguments)
    assert result.returncode == 0, result.stderr


def test_the_picture_of_the_demo_shows_what_the_command_prints(tmp_path, monkeypatch):
    """But for numbers; a smaller budget and fewer test rows change nothing else."""
    monkeypatch.chdir(tmp_path)
    for console in (terminal.answers, terminal.messages):
        monkeypatch.setattr(console, "_width", make_demo.COLUMNS)
    result = CliRunner().invoke(app, ["adapt", "--budget", "40", "--n-test", "5"])
    shown = make_demo.words(make_demo.PICTURE.read_text(encoding="utf-8"))
    assert make_demo.words(make_demo.picture(result.output)) == shown, "run: python docs/make_demo.py"


def test_the_readmes_example_runs_as_it_stands(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    result = run("-c", example, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "my_run" / "report.html").exists()


def parse(line):
    """A command line as the program reads it, without running the command."""
    command, words = COMMANDS, shlex.split(line, comments=True)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context("lorahub-edge", words)


def typed_in(text):
    """What a text says to type behind `lorahub-edge`, without what a shell puts there."""
    return TYPED.findall(re.sub(r"\$\([^)]*\)", "", text.replace("\\\n", " ")))


def helps(command):
    """The help of a command and of all below it."""
    return [command.help, *(text for inner in getattr(command, "commands", {}).values() for text in helps(inner))]


def test_commands_on_the_pages_and_in_the_help_are_ones_that_the_program_takes():
    pages = [page for page in PAGES if page.name != "cli.md"]  # the help, but with its lines broken
    texts = [page.read_text(encoding="utf-8") for page in pages] + helps(COMMANDS)
    lines = [line for text in texts for line in typed_in(text)]
    assert len(lines) > 40
    for line in lines:
        try:
            parse(line)
        except Exception as error:
            pytest.fail(f"lorahub-edge {line}: {error}")


def test_a_command_with_a_wrong_option_is_found():
    (line,) = typed_in('    OMP_NUM_THREADS=1 lorahub-edge adapt --base "$BASE" \\\n  $(echo --x)--basis x # a comment')
    with pytest.raises(Exception, match="No such option: --basis"):
        parse(line)


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
