"""The Dockerfile: its pieces exist, its service is not root's. test_server.py runs its health check."""

import json
import re
from pathlib import Path

from typer.testing import CliRunner

from lorahub_edge.cli import app

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "Dockerfile").read_text().replace("\\\n", "")


def only(pattern: str) -> str:
    (found,) = re.findall(pattern, TEXT, re.MULTILINE)
    return found


def test_copied_files_exist_and_are_not_ignored() -> None:
    sources = [source for line in re.findall(r"^COPY (.*) \S+$", TEXT, re.MULTILINE) for source in line.split()]
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == set(sources)
    assert all((ROOT / source).exists() for source in sources)


def test_the_service_is_no_users_of_the_machine() -> None:
    assert int(only(r"^USER (\d+):\d+$")) >= 10_000
    assert TEXT.index("\nUSER ") > TEXT.rindex("\nRUN ")


def test_the_entry_point_is_a_command_of_ours() -> None:
    program, *arguments = json.loads(only(r"^ENTRYPOINT (.*)$"))
    assert program == "lorahub-edge"
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, "/model" in result.output) == (1, True)  # 2 would be wrong usage
    port = arguments[arguments.index("--port") + 1]
    assert only(r"^EXPOSE (\d+)$") == port
    check = only(r"^HEALTHCHECK .*CMD (.*)$")
    assert f"'127.0.0.1', {port}," in check
    assert "'/livez'" in check  # /health says 503 while answers are finished
