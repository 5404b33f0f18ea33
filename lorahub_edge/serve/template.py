"""ChatTemplate: a base's own program that makes one prompt of a chat's messages, rendered by `rendering.py`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorahub_edge.errors import InvalidInput, UnsupportedFormat
from lorahub_edge.sources import read_json

LIMIT_S = 2.0  # of processor time, to compile a template or to render it once
_MAX_SOURCE_BYTES = 1 << 20
_PROGRAM = str(Path(__file__).with_name("rendering.py"))
# -I: neither variables of Python's nor the current folder say what is imported there; what is, is what is here
_START = "import runpy, sys; sys.path[:] = sys.argv[2:]; runpy.run_path(sys.argv[1], run_name='__main__')"

Message = Mapping[str, Any]


class ChatTemplate:
    """A template, compiled. It works in a process of its own, with limits to its time and its memory.

    Args:
        source: its text.
        marks: names of special tokens, such as "bos_token", -> their texts.

    Raises:
        UnsupportedFormat: jinja2 cannot read it.
    """

    def __init__(self, source: str, marks: Mapping[str, str]) -> None:
        self._source = source
        self._marks = dict(marks)
        self._lock = threading.Lock()
        self._process = self._start()

    @classmethod
    def of_folder(cls, folder: Path) -> ChatTemplate | None:
        """The template in a folder, or None if there is none.

        Raises:
            UnsupportedFormat: it cannot be read.
        """
        path, config_path = folder / "chat_template.jinja", folder / "tokenizer_config.json"
        config = read_json(config_path) if config_path.is_file() else {}
        found = _read(path) if path.is_file() else config.get("chat_template")
        if isinstance(found, list):  # several, by name
            named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
            found = named.get("default")
        if not isinstance(found, str):
            return None
        marks = {name: _mark(value) for name, value in config.items() if name.endswith("_token")}
        return cls(found, {name: text for name, text in marks.items() if text is not None})

    def render(self, messages: Sequence[Message]) -> str:
        """One prompt, with the beginning of the assistant's turn behind it.

        Raises:
            InvalidInput: the template refuses these messages, fails on them or does not end.
        """
        given = {**self._marks, "messages": [dict(m) for m in messages], "add_generation_prompt": True}
        given |= {"tools": None, "documents": None, "enable_thinking": False}
        with self._lock:
            if self._process.poll() is not None:
                self._process = self._start()
            reply = _ask(self._process, given=given)
        if "error" in reply:
            raise InvalidInput(f"messages: the model's chat template refuses them ({reply['error']})")
        return reply["text"]

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, _PROGRAM, *filter(None, sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the service, which finishes its answers first
        )
        weakref.finalize(self, _end, process)
        reply = _ask(process, source=self._source)
        if "error" in reply:
            raise UnsupportedFormat(f"chat template: jinja2 cannot read it ({reply['error']})")
        return process


def _ask(process: subprocess.Popen[str], **asked: Any) -> dict[str, str]:
    """One line to the process and its reply, or why there is none: the process ends itself at its limit."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps({"limit_s": LIMIT_S, **asked}) + "\n")
        process.stdin.flush()
        if text := process.stdout.readline():
            return dict(json.loads(text))
    except BrokenPipeError:
        pass
    status = process.wait()
    return {"error": "it has not ended in time" if status == -signal.SIGPROF else f"its process ended by {status}"}


def _end(process: subprocess.Popen[str]) -> None:
    with process:  # closes the pipes, and waits
        process.kill()


def _read(path: Path) -> str:
    with open(path, "rb") as file:
        content = file.read(_MAX_SOURCE_BYTES + 1)
    if len(content) > _MAX_SOURCE_BYTES:
        raise UnsupportedFormat(f"{path}: expected at most {_MAX_SOURCE_BYTES} bytes")
    return content.decode("utf-8", "replace")


def _mark(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None
