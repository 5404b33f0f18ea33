"""ChatTemplate: a base's own program that makes one prompt of a chat's messages.

It comes with the model, so it is a stranger's: it runs in jinja2's sandbox, without what could fill the memory at one
stroke, and is stopped at its deadline.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lorahub_edge.errors import InvalidInput, UnsupportedFormat, first_line
from lorahub_edge.sources import read_json

RENDER_LIMIT_S = 2.0
_MAX_PRODUCT = 100_000  # items of a repeated text or list, and the largest number that a power may give
_WITHOUT = ("center", "format", "indent", "wordwrap")  # filters that make a text as long as they are told

Message = Mapping[str, Any]


class _Late(Exception):
    """The template has not ended in time."""


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(value) if isinstance(value, str | list | tuple) else value for value in (left, right)]
        if operator == "%" and isinstance(left, str):
            raise SecurityError("a text is formatted")
        if operator == "*" and abs(sizes[0] * sizes[1]) > _MAX_PRODUCT:
            raise SecurityError("a product is too large")
        if operator == "**" and (abs(left) > _MAX_PRODUCT or abs(right) > 8):
            raise SecurityError("a power is too large")
        return super().call_binop(context, operator, left, right)


class ChatTemplate:
    """A template, compiled.

    Args:
        source: its text.
        marks: names of special tokens, such as "bos_token", -> their texts.

    Raises:
        UnsupportedFormat: jinja2 cannot read it.
    """

    def __init__(self, source: str, marks: Mapping[str, str]) -> None:
        environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        for name in _WITHOUT:
            del environment.filters[name]
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        try:
            self._template = environment.from_string(source)
        except (TemplateError, RecursionError) as error:
            raise UnsupportedFormat(f"chat template: jinja2 cannot read it ({first_line(error)})") from error
        self._marks = dict(marks)

    @classmethod
    def of_folder(cls, folder: Path) -> ChatTemplate | None:
        """The template in a folder, or None if there is none.

        Raises:
            UnsupportedFormat: it cannot be read.
        """
        path, config_path = folder / "chat_template.jinja", folder / "tokenizer_config.json"
        config = read_json(config_path) if config_path.is_file() else {}
        found = path.read_text("utf-8", "replace") if path.is_file() else config.get("chat_template")
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
        try:
            return _until(time.monotonic() + RENDER_LIMIT_S, lambda: self._template.render(given))
        except _Late as error:
            raise InvalidInput(
                f"messages: the model's chat template has not ended within {RENDER_LIMIT_S:g} s"
            ) from error
        except Exception as error:  # a program of the model's makers
            raise InvalidInput(f"messages: the model's chat template refuses them ({first_line(error)})") from error


def _until(deadline: float, call: Callable[[], str]) -> str:
    """What a call of Python code returns; every line of it looks at the clock."""

    def look(_frame: FrameType, _event: str, _argument: Any) -> Any:
        if time.monotonic() > deadline:
            raise _Late
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        return call()
    finally:
        sys.settrace(before)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_others: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=None if indent is None else min(int(indent), 8))


def _refuse(message: object) -> None:
    raise TemplateError(str(message))


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(str(form)[:100])


def _mark(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None
