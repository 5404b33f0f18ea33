"""Every command through the parser: what it prints, where, and with which exit code."""

import json
import re
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from lorahub_edge import terminal
from lorahub_edge.cli import app
from tests import tiny

COMMANDS = [
    "adapt", "bench", "doctor", "evaluate", "export", "hub", "merge", "modules", "plan", "predict", "serve", "sweep",
    "tasks", "train", "verify",
]  # fmt: skip


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Run the command line in an empty folder, 200 columns wide."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal.answers, "_width", 200)
    return lambda *arguments, **options: CliRunner().invoke(app, [str(a) for a in arguments], **options)


@pytest.fixture
def adapt(call, bases, module_folders, example_file):
    """`adapt` on a tiny base; further arguments win."""

    def run(*arguments):
        return call(
            "adapt", "--base", bases["t5"], "--modules", module_folders["t5"], "--examples", example_file,
            "--budget", 8, "--n-examples", 4, "--device", "cpu", *arguments,
        )  # fmt: skip

    return run


def test_help_names_every_command_and_every_option_has_help(call):
    text = call("--help").stdout
    commands = dict(typer.main.get_command(app).commands)
    assert sorted(commands) == sorted(COMMANDS)
    for command in COMMANDS:
        assert command in text
    for group in ("bench", "hub"):
        commands |= {f"{group} {name}": command for name, command in commands.pop(group).commands.items()}
    for command in commands:
        assert "Example: " in call(*command.split(), "--help").stdout
    assert [p.name for c in commands.values() for p in c.params if p.name != "help" and not p.help] == []
    assert call("bench", "quality", "-h").stdout == call("bench", "quality", "--help").stdout
    assert call("--version").stdout.startswith("lorahub-edge 0.")


@pytest.mark.parametrize(("command", "n"), [("tasks", 8), ("modules", 27)])
def test_what_is_embedded_is_listed_by_the_names_that_adapt_takes(call, command, n):
    headline, _, *lines = call(command).stdout.splitlines()
    listed = [line.split()[0] for line in lines if line.startswith("pocket/")]
    found = json.loads(call(command, "--json").stdout)
    assert headline.startswith(f"{n} {command}; adapt")
    assert listed == [row[command[:-1]] for row in found]
    assert len(set(listed)) == n
    assert all(all(row.values()) for row in found)


def test_adapt_answers_first_then_the_table_then_where_the_files_are(adapt, example_file):
    result = adapt("--test", example_file, "--out", "run")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("adapted to task in 8 evaluations: loss ")
    names = ["constant answer", "zero-shot", "best single module", "uniform mean", "mean of the best"]
    names += ["random-LoRA null", "adapted"]
    assert [name for line in lines for name in names if line.startswith(f"{name}  ")] == names
    assert lines[-1].startswith("run folder: ")
    assert Path("run/report.html").exists()


def test_json_is_the_only_thing_on_stdout(adapt):
    result = adapt("--json", "--no-null-control")
    report = json.loads(result.stdout)
    assert [r["name"] for r in report["table"]] == [
        "zero-shot",
        "best single module",
        "uniform mean",
        "mean of the best",
        "adapted",
    ]
    assert Path(report["folder"]).parent.name == "runs"


def test_evaluate_and_predict_open_the_run_again(adapt, call, example_file):
    assert adapt("--out", "run").exit_code == 0
    score = json.loads(call("evaluate", "run", "--data", example_file, "--json").stdout)
    assert score["n"] == len(tiny.ROWS)
    shown = call("evaluate", "run", "--data", example_file).stdout
    assert shown.startswith(f"exact match {score['exact_match']:.1f} %")
    assert f"most frequent answer {score['most_frequent']:.1f} %, valid form {score['valid_form']:.1f} %" in shown
    assert "strict" not in shown
    data = Path("capitals.jsonl")
    rows = [
        {"input": i, "target": answer.upper() or "X"}
        for (i, _), answer in zip(tiny.ROWS, score["answers"], strict=True)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    capitals = json.loads(call("evaluate", "run", "--data", data, "--json").stdout)
    assert capitals["exact_match"] > capitals["strict_match"] == 0
    assert "strict 0.0 %. Exact match as LoRAHub counts it ignores" in call("evaluate", "run", "--data", data).stdout
    inputs = [i for i, _ in tiny.ROWS]
    questions = "".join(f"{i}\n" for i in inputs) + "\n"
    assert call("predict", "run", "--batch-size", 4, input=questions).stdout.splitlines() == [*score["answers"], ""]
    answers = [json.loads(line) for line in call("predict", "run", "--json", input=questions).stdout.splitlines()]
    assert [a["input"] for a in answers] == [*inputs, ""]


def test_predict_answers_line_by_line_and_a_blank_line_with_a_blank_one(adapt, call):
    assert adapt("--out", "run", "--no-null-control").exit_code == 0
    (first, second), nothing = [i for i, _ in tiny.ROWS[:2]], ""
    answers = call("predict", "run", input=f"{first}\n{second}\n").stdout.splitlines()
    lines = ["", first, " ", "", second, ""]
    for batch_size in (1, 2, 4):
        result = call("predict", "run", "--batch-size", batch_size, input="\r\n".join(lines) + "\r\n")
        assert result.stdout.split("\n")[:-1] == [nothing, answers[0], nothing, nothing, answers[1], nothing]
    torn = call("predict", "run", "--json", input=f"{first}\r{second}\n").stdout.splitlines()
    assert [json.loads(line)["input"] for line in torn] == [f"{first}\r{second}"]


def test_train_makes_a_module_that_adapt_takes(call, adapt, bases, example_file):
    result = call(
        "train", example_file, "--base", bases["t5"], "--out", "hub/skill", "--max-steps", 2, "--device", "cpu"
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "trained module skill" in result.stdout
    assert adapt("--modules", "hub", "--out", "run").exit_code == 0
    assert "skill" in json.loads(Path("run/coefficients.json").read_text())


def test_bench_quality_prints_its_tables_and_goes_on_where_it_was(call, bases, module_folders, example_file):
    arguments = [
        "bench", "quality", "--base", bases["t5"], "--modules", module_folders["t5"], "--tasks", example_file,
        "--n-examples", 3, "--seeds", 1, "--device", "cpu", "--out", "q.jsonl",
    ]  # fmt: skip
    first = call(*arguments, "--methods", "zero-shot", "--methods", "uniform", "--against", "uniform")
    assert first.exit_code == 0, first.output
    assert "| method | exact match | difference to `uniform` | strict match |" in first.stdout
    assert "| task | zero-shot | uniform |" in first.stdout
    second = call(*arguments, "--methods", "uniform", "--methods", "best-single", "--json")
    assert [r["setup"]["method"]["name"] for r in json.loads(second.stdout)] == ["best-single", "uniform"]
    assert "uniform: exact match" in second.stderr
    assert "on record" in second.stderr
    assert len(Path("q.jsonl").read_text().splitlines()) == 3
    refused = call(*arguments, "--methods", "sgd")
    assert refused.exit_code == 1
    assert "method 'sgd' is not known" in refused.stderr
    refused = call(*arguments, "--methods", "uniform", "--against", "edge")
    assert refused.exit_code == 1
    assert "against 'edge': it is not measured; expected one of uniform" in refused.stderr


def test_merge_says_what_survived_then_where_the_folder_is(adapt, call):
    assert adapt("--out", "run", "--no-null-control").exit_code == 0
    lines = call("merge", "run", "--out", "merged").stdout.splitlines()
    assert lines[0].startswith("merged: ")
    assert "% of the delta survived in" in lines[0]
    assert lines[-1].startswith("merged folder: ")
    record = json.loads(call("merge", "run", "--out", "in-place", "--in-place-int8", "--json").stdout)
    assert record["survival"]["survived"] > 0.9
    assert call("merge", "run", "--out", "merged").exit_code == 1


def test_export_says_what_was_verified_and_verify_says_it_again(adapt, call, example_file, fast_export):
    assert adapt("--out", "run", "--no-null-control").exit_code == 0
    lines = call("export", "run", "--out", "onnx", "--test", example_file).stdout.splitlines()
    assert lines[0].startswith("exported int8, ")
    assert lines[1].startswith("verified: logits ")
    assert lines[-1].startswith("exported folder: ")
    assert re.fullmatch(r"test: \d of 6 answers as the run's; exact match .* % \(run\), .* % \(export\)", lines[-2])
    score = json.loads(call("evaluate", "onnx", "--data", example_file, "--json").stdout)
    assert (score["loss"], score["n"]) == (None, 6)
    questions = "".join(f"{i}\n" for i, _ in tiny.ROWS)
    assert call("predict", "onnx", input=questions).stdout.splitlines() == score["answers"]
    assert re.match(r"exact match .* % on 6 rows\n", call("evaluate", "onnx", "--data", example_file).stdout)
    assert call("verify", "onnx").stdout.startswith("verified: ")
    assert json.loads(call("verify", "onnx", "--json").stdout)["passed"]
    Path("onnx/tokenizer.json").write_text(Path("onnx/tokenizer.json").read_text().replace("dog", "god"))
    for command in ("verify", "serve"):
        result = call(command, "onnx")
        assert result.exit_code == 1
        assert re.fullmatch(r"error: .*tokenizer.json is not what was exported .*; export again\n", result.stderr)
    result = call("verify", "run")
    assert result.exit_code == 1
    assert "run is not an exported folder" in result.stderr


def test_export_writes_a_file_for_llama_cpp_alone_or_beside_the_folder(adapt, call, fast_export):
    assert adapt("--out", "run", "--no-null-control").exit_code == 0
    lines = call("export", "run", "--gguf-adapter", "a.gguf").stdout.splitlines()
    assert re.fullmatch(r"wrote a LoRA file for llama.cpp \(t5\), 12 targets of rank 4, 0.0 MB", lines[0])
    place = Path("a.gguf").absolute()
    assert lines[1] == f"llama.cpp: llama-completion -no-cnv -p PROMPT -m BASE.gguf --lora {place}"
    assert lines[2].startswith("prompt: as the run had it: '")
    assert [path.name for path in Path().glob("*.gguf")] == ["a.gguf"]
    record = json.loads(call("export", "run", "--gguf-adapter", "new/b.gguf", "--out", "onnx", "--json").stdout)
    assert record["verification"]["passed"]
    assert Path("onnx/lorahub_edge.json").is_file()
    assert Path(record["gguf_adapter"]["path"]).read_bytes() == place.read_bytes()
    assert record["gguf_adapter"]["rank"] == 4
    result = call("export", "run", "--gguf-adapter", "a.gguf", "--out", "second")
    assert result.exit_code == 1
    assert re.fullmatch(r"error: output .*a.gguf exists; name a new one\n", result.stderr)
    for arguments, message in (
        ([], "name --out, --gguf-adapter or both"),
        (["--gguf-adapter", "c.gguf", "--with-adapter"], "--with-adapter is about the ONNX folder"),
        (["--gguf-adapter", "c.gguf", "--precision", "int8"], "--precision is about the ONNX folder"),
        (["--gguf-adapter", "second/c.gguf", "--out", "second"], "is in the new folder --out"),
    ):
        result = call("export", "run", *arguments)
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.split())
    assert not Path("c.gguf").exists()
    assert not Path("second").exists()


def test_runs_share_a_base_and_serve_takes_one_of_their_adapters(adapt, call, fast_export, monkeypatch):
    from lorahub_edge.serve import server

    assert adapt("--out", "run", "--no-null-control").exit_code == 0
    shutil.copytree("run", "other")
    for run in ("run", "other"):
        assert call("export", run, "--with-adapter", "--out", "shared").exit_code == 0
    assert "other: example" in call("verify", "shared").stdout
    served = []
    monkeypatch.setattr(server.uvicorn.Server, "run", lambda _, sockets: served.append(sockets[0].getsockname()[1]))
    result = call("serve", "shared", "--adapter", "other", "--port", 0)
    assert result.exit_code == 0
    assert result.stderr == f"serving shared at http://127.0.0.1:{served[0]}/\n"
    for arguments, message in (
        (["serve", "shared", "--adapter", "third"], "adapter 'third': no such file"),
        (["serve", "run"], "run is not an exported folder"),
        (["serve", "shared", "--port", 99999], "serve: cannot listen on 127.0.0.1:99999"),
        (["serve", "shared", "--host", "no.such.host.invalid"], "serve: cannot listen on no.such.host.invalid"),
        (["serve", "shared", "--threads", 0], "threads: expected at least 1, received 0"),
        (["export", "run", "--with-adapter", "--out", "shared"], "run.safetensors exists"),
        (["export", "run", "--with-adapter", "--triton", "--out", "new"], "triton: its models take no adapter"),
        (["export", "shared", "--with-adapter", "--out", "new"], "shared is no run folder"),
    ):
        result = call(*arguments)
        assert result.exit_code == 1
        assert [message in line for line in result.stderr.splitlines()] == [True], result.stderr
    assert not Path("new").exists()


def bad_jsonl(text):
    path = Path("bad.jsonl")
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda: ["--examples", "none.jsonl"], "example file none.jsonl was not found"),
        (lambda: ["--examples", bad_jsonl("")], "bad.jsonl has no examples"),
        (lambda: ["--examples", bad_jsonl('{"input": "a", "target": "b"}\nno\n')], "bad.jsonl:2: not JSON"),
        (lambda: ["--examples", bad_jsonl('{"q": "a"}')], "bad.jsonl:1: expected keys input/target"),
        (lambda: ["--budget", 0], "budget: expected a whole number of at least 1 and at most 10000000, received 0"),
        (lambda: ["--modules", "no-such-folder"], "module 'no-such-folder' was not found"),
        (lambda: ["--base", "./no-such-base"], "base './no-such-base' was not found"),
        (lambda: ["--preset", "fast"], "preset 'fast' is not known; expected edge, paper, lorahub-code"),
        (lambda: ["--precision", "int4"], "precision: expected one of int8, bf16, fp32"),
        (lambda: ["--out", "."], "is not a run of lorahub-edge"),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_exit_code_1(adapt, arguments, message):
    Path("mine.txt").write_text("keep")
    result = adapt("--out", "run", *arguments())
    assert result.exit_code == 1
    assert result.stdout == ""
    first, error = result.stderr.splitlines()
    assert first.startswith("adapting ")
    assert error.startswith("error: ")
    assert message in error
    assert Path("mine.txt").read_text() == "keep"
    assert not Path("run").exists()


@pytest.mark.parametrize("arguments", [["adapt", "--no-such-option"], ["adapt", "--budget", "many"], ["nonsense"]])
def test_wrong_usage_is_exit_code_2(call, arguments):
    assert call(*arguments).exit_code == 2


def test_cut_examples_and_fewer_than_asked_for_are_warnings_on_stderr(adapt):
    result = adapt("--max-input-tokens", 2)
    assert result.exit_code == 0
    more = adapt("--n-examples", 10, "--no-null-control", "--budget", 4)
    assert more.exit_code == 0
    assert "warning: asked for 10 examples, " in more.stderr
    assert "has 6; all are used" in more.stderr
    assert "warning: 4 of 4 examples are longer than the model takes" in result.stderr


def test_plan_says_what_fits_and_exits_with_1_if_nothing_does(call, bases, module_folders, example_file):
    arguments = ("plan", "--base", bases["t5"], "--modules", module_folders["t5"], "--examples", example_file)
    fits = call(*arguments, "--max-memory", "100GiB")
    assert fits.exit_code == 0
    assert fits.stdout.startswith("fits 107.37 GB: needs ")
    assert "modules as fp32, resident" in fits.stdout
    assert "mmap" in fits.stdout
    too_much = call(*arguments, "--max-memory", "1MB", "--no-cache")
    assert too_much.exit_code == 1
    assert too_much.stdout.startswith("does not fit 1 MB: at least ")
    assert "mmap" not in too_much.stdout
    plans = json.loads(call(*arguments, "--json").stdout)
    assert plans[0]["stack_dtype"] == "fp32"
    assert plans[0]["fits"]


def test_adapt_says_in_one_line_that_it_cannot_keep_to_max_memory(adapt):
    result = adapt("--max-memory", "1MB")
    assert result.exit_code == 1
    _, error = result.stderr.splitlines()
    assert error.startswith("error: max_memory: the run does not fit 1 MB: at least ")
    assert "expected a size such as" in adapt("--max-memory", "lots").stderr


@pytest.mark.parametrize(("variable", "options"), [("", ()), ("right", ("--api-key", ""))])
def test_an_empty_key_is_refused_and_never_taken_for_none(call, monkeypatch, variable, options):
    monkeypatch.setenv("LORAHUB_EDGE_API_KEY", variable)
    result = call("serve", "folder", *options)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "api_key: expected printable ASCII characters without spaces, at least one" in result.stderr
