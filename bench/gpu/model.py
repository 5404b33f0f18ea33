"""Writes the random model of FLAN-T5-large's shape, its modules and its task, which the other steps read."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.workers import Workplace


def main() -> None:
    """Write what is not there yet."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.model", description=__doc__)
    parser.add_argument("work", type=Path)
    place = Workplace(parser.parse_args().work)
    place.model("large", 20)
    place.task()


if __name__ == "__main__":
    main()
