"""The page at /: its script runs in node, against a service, and shows what the service answers."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lorahub_edge.serve import open_folder
from lorahub_edge.serve.models import Models
from lorahub_edge.serve.page import PAGE
from tests import tiny
from tests.serve.conftest import running
from tests.serve.test_server import SlowModel, endless

TEXT, KEY = tiny.ROWS[0][0], "a-key"


@pytest.fixture
def slow(adapted_folders):
    """A model of three adapters that takes its time for each token and ends no answer by itself."""
    return endless(SlowModel(open_folder(adapted_folders["llama"], adapter="none"), n_threads=1))


def test_the_page_loads_no_further_file():
    assert not re.findall(r"(?:src|href)\s*=|@import|url\(|//[a-z]", PAGE)


def test_the_page_shows_models_answers_speed_and_errors(adapted_folders, slow):
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node")
    folder = adapted_folders["llama"]
    steps = [
        ("second", "text", "3"),
        ("third", "text", "3"),
        ("third", "chat", "3"),
        ("third", "chat", ""),
        ("x", "text", ""),
    ]
    steps = [dict(zip(("model", "kind", "tokens"), step, strict=True)) for step in steps]
    with running(slow, models=Models(folder), api_keys=(KEY,), shutdown_s=1) as client:
        address = f"http://127.0.0.1:{client.port}/"
        script = Path(__file__).with_name("page.mjs")
        command = [node, script, address, KEY, TEXT, json.dumps(steps)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout)
        key = {"Authorization": f"Bearer {KEY}"}
        body = {"prompt": TEXT, "max_tokens": 3}
        plain = [client.request("POST", "/v1/completions", {**body, "model": m}, **key)[1] for m in ("second", "third")]
    assert seen["isLocked"]
    assert seen["state"].startswith("this service wants its API key")
    assert seen["models"] == ["base (base)", "run", "second", "third"]
    assert seen["chosen"] == "run"
    second, third, chat, further, unknown = seen["answers"]
    for name, found, expected in (("second", second, plain[0]), ("third", third, plain[1]), ("third", chat, plain[1])):
        asked, text, note = found
        usage = expected["usage"]
        assert (asked, text) == (TEXT, expected["choices"][0]["text"])
        tokens = rf"{usage['prompt_tokens']} \+ {usage['completion_tokens']} tokens"
        match = re.fullmatch(rf"{name} · first text (\d+) ms · ([\d.]+) tokens/s · {tokens}", note)
        assert match, note
        # the first token needs no step of its own
        assert 0 < float(match[2]) < 3 / (2 * SlowModel.delay_s)
    assert further[2].endswith("takes one message of role user, received 3")  # the chat so far was sent with it
    assert unknown[1:] == ["", "model: 'x' is not served here; see /v1/models"]
    assert seen["stopped"] == ["Stop", "stopped", "Answer"]
    assert seen["n_left"] == 0
