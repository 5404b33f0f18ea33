"""Write docs/demo.svg: the terminal after `make demo`, from a run of the command that it runs."""

from __future__ import annotations

import html
import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).parent / "demo.svg"
COLUMNS = 100


def output() -> str:
    """What `lorahub-edge adapt` prints on a terminal of COLUMNS columns; its progress bar has gone by then.

    Raises:
        subprocess.CalledProcessError: the command failed.
    """
    terminal = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "TTY_INTERACTIVE": "0", "COLUMNS": str(COLUMNS)}
    with tempfile.TemporaryDirectory(prefix="demo-") as folder:  # the run folder goes there
        result = subprocess.run(
            [sys.executable, "-m", "lorahub_edge.cli", "adapt"],
            cwd=folder,
            env={**os.environ, **terminal},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
    return result.stdout


def picture(printed: str) -> str:
    """The terminal with that output, with its colours if it has some, as rich draws it."""
    screen = Console(record=True, width=COLUMNS, file=io.StringIO())
    screen.print("$ make demo")
    screen.print(Text.from_ansi(printed))
    svg = screen.export_svg(title="lorahub-edge adapt")
    svg = re.sub(r"\s+@font-face {.*?}", "", svg, flags=re.DOTALL)  # a picture on a page may fetch no fonts
    return svg.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace")


def words(svg: str) -> str:
    """The text of a picture without what differs from run to run: numbers, and where the run folder is."""
    pieces = re.findall(r"<text [^>]*>(.*?)</text>", svg)
    text = " ".join(html.unescape(" ".join(pieces)).split())  # a no-break space is a blank to split(), too
    return re.sub(r"[+-]?\d[\d.]*", "#", re.sub(r"\S*runs/\S*", "RUN", text))


if __name__ == "__main__":
    PICTURE.write_text(picture(output()), encoding="utf-8")
