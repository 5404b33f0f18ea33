"""Names come from strangers: on the terminal they have no power, and they are shown as they are."""

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.table import Table
from typer.testing import CliRunner

import lorahub_edge
from lorahub_edge import terminal
from lorahub_edge.adaptation.report import report_html
from lorahub_edge.cli import app
from lorahub_edge.errors import InvalidInput
from lorahub_edge.exporting import GgufAdapter
from lorahub_edge.modules import LoraFactors, LoraModule, read_module
from lorahub_edge.terminal import place
from tests import tiny

HOSTILE = "a\x1b]0;title\x07b\x1b[2Jc\rd\ne\x9b1mf\u202eg\udcffh"
SHOWN = r"a\x1b]0;title\x07b\x1b[2Jc\rd\ne\x9b1mf\u202eg\udcffh"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (HOSTILE, SHOWN),
        ("[red]run[/red] [1:2] :smile:", None),
        ("[/]", None),
        ("grün β 漢 שלום", None),
        ("\\[x\\x1b", None),
    ],
)
@pytest.mark.parametrize("console", ["messages", "answers"])
def test_text_is_shown_as_it_is_but_for_control_characters(monkeypatch, console, text, shown):
    console, written = getattr(terminal, console), io.StringIO()
    monkeypatch.setattr(console, "_file", written)
    console.print(text, style="red", soft_wrap=True)
    table = Table(text, box=None, width=150)
    table.add_row(text, style="bold")
    console.print(table, width=150)
    assert [line.strip() for line in written.getvalue().splitlines()] == [shown or text] * 3


def test_a_terminal_without_unicode_shows_codes():
    console = terminal.PlainConsole()
    console.file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console.print("loss ±1, 漢")
    console.file.seek(0)
    assert console.file.read() == "loss \\xb11, \\u6f22\n"


@pytest.fixture
def call(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal.answers, "_width", 200)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


def test_brackets_in_names_are_no_markup(call, bases, module_folders, tmp_path):
    modules = tmp_path / "[bold]hub"
    shutil.copytree(module_folders["t5"] / "m0", modules / "m[red]0[bold]")
    task = tmp_path / "[link]task.jsonl"
    task.write_text("".join(json.dumps({"input": i, "target": t}) + "\n" for i, t in tiny.ROWS))
    base = ["--base", bases["t5"], "--device", "cpu"]
    result = call("adapt", *base, "--modules", modules, "--examples", task, "--out", "[run]", "--budget", 4)
    assert result.exit_code == 0, result.output
    assert "adapted to [link]task in 4 evaluations" in result.stdout
    assert "coefficients: m[red]0[bold] " in result.stdout
    assert "run folder: [run]  (report.html, adapter/)" in result.stdout
    result = call("train", task, *base, "--out", "[b]new", "--max-steps", 1)
    assert result.stdout == "trained module [b]new: 12 targets, rank 16\nmodule folder: [b]new\n"


def test_a_module_folder_with_control_characters_is_refused_in_one_line(call, bases, module_folders, tmp_path):
    hub = tmp_path / "hub"
    shutil.copytree(module_folders["t5"] / "m0", hub / "m\x1b[2J\n0")
    result = call("plan", "--base", bases["t5"], "--modules", hub)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (f"error: module folder {hub}/m\\x1b[2J\\n0: its name has control characters; rename it\n")


@pytest.mark.parametrize("length", [10, 10**6])
def test_an_error_of_ours_is_one_line_that_can_be_read(length):
    text = str(InvalidInput(f"{HOSTILE}{'x' * length}: remedy"))
    assert text.startswith(SHOWN)
    assert text.endswith(": remedy")
    assert len(text) < 2100


def test_a_report_has_no_control_characters(bases, module_folders, tmp_path):
    """Half a surrogate pair, which a file name may have, is no text that a file can hold."""
    factors = read_module(module_folders["t5"] / "m0").factors
    module = LoraModule(f"<b>{HOSTILE}", {t: LoraFactors(f.A, f.B, f.scaling) for t, f in factors.items()})
    run = lorahub_edge.adapt(
        bases["t5"], [module], tiny.ROWS, budget=3, null_control=False, device="cpu", out=tmp_path / "run"
    )
    assert run.folder is not None
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"&lt;b&gt;{SHOWN}"[:34] in page or SHOWN[-31:] in page
    assert "\x1b" not in page
    assert page == report_html(run.report(), [(e.value.mean_loss, e.value.objective) for e in run.journal])
    assert list(json.loads(Path(tmp_path / "run" / "coefficients.json").read_text())) == [module.name]


@pytest.mark.parametrize("is_chat", [True, False])
def test_a_lora_file_is_shown_with_the_commands_that_put_the_runs_prompt_around_a_question(
    is_chat, capsys, monkeypatch
):
    monkeypatch.setattr(terminal.answers, "_width", 200)
    terminal.print_gguf_adapter(
        GgufAdapter(
            Path("/a.gguf"), "llama", Path("/base.gguf"), 60, 32, 3_700_000, "<user>", "\n", is_seq2seq=False,
            is_chat=is_chat, note="the adapter has rank 32",
        )
    )  # fmt: skip
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "wrote a LoRA file for llama.cpp (llama), 60 targets of rank 32, 3.7 MB"
    program = "llama-cli" if is_chat else "llama-completion -no-cnv -p PROMPT"
    assert said[1] == f"llama.cpp: {program} -m /base.gguf --lora /a.gguf"
    ending = "" if is_chat else ' and TEMPLATE "{{ .Prompt }}"'
    assert said[2] == f"Ollama: a Modelfile with FROM /base.gguf and ADAPTER /a.gguf{ending}"
    whose = "the base's chat template" if is_chat else "as the run had it"
    assert said[3:] == [rf"prompt: {whose}: '<user>', question, '\n'", "the adapter has rank 32"]


def test_a_place_below_the_current_folder_is_told_from_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert place(tmp_path / "runs" / "a") == "runs/a"
    assert place("runs/a") == "runs/a"
    for elsewhere in (tmp_path, tmp_path.parent / "b"):
        assert place(elsewhere) == str(elsewhere)
