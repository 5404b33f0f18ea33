"""A chat template at work, in a process of its own that `template.py` starts. Run as a file; imports nothing of ours.

A template comes with a model, so it is a stranger's program. jinja2's sandbox keeps it from everything but texts and
lists; this process keeps it from filling the memory (one call such as `ljust` can) and from never ending.

It reads JSON lines and answers each by one: first {"limit_s": seconds, "source": text} -> {"text": ""}, then any number
of {"limit_s": seconds, "given": variables} -> {"text": what was rendered}; or {"error": why not}.
"""

from __future__ import annotations

import datetime
import json
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_MEMORY = 512 << 20  # bytes of address space; macOS sets no such limit
MAX_CHARACTERS = 4 << 20  # of a prompt


class _Generation(Extension):
    """{% generation %}...{% endgeneration %}, which marks what a training counts: the text within, as it is."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """See jinja2."""
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _compiled(source: str) -> Template:
    """A template in an environment like that of transformers."""
    extensions = [_Generation, loopcontrols]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    return environment.from_string(source)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    pair = None if separators is None else (separators[0], separators[1])
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=sort_keys)


def _refuse(message: object) -> None:
    raise TemplateError(str(message))


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _limited(work: Callable[[dict[str, Any]], str], asked: dict[str, Any]) -> dict[str, str]:
    """The reply to a line. The system ends this process if it takes more processor time."""
    signal.setitimer(signal.ITIMER_PROF, asked["limit_s"])
    try:
        text = work(asked)
        is_long = len(text) > MAX_CHARACTERS
        return {"error": f"more than {MAX_CHARACTERS} characters"} if is_long else {"text": text}
    except Exception as error:  # a program of the model's makers
        return {"error": f"{type(error).__name__}: {str(error)[:1000]}"}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    """Answer lines until there are no more."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    templates: list[Template] = []

    def work(asked: dict[str, Any]) -> str:
        if "given" in asked:
            return templates[0].render(asked["given"])
        templates.append(_compiled(asked["source"]))  # which computes what is constant in it
        return ""

    for line in sys.stdin:
        reply = _limited(work, json.loads(line))
        print(json.dumps(reply), flush=True)  # noqa: T201  # our side of the pipe


if __name__ == "__main__":
    main()
