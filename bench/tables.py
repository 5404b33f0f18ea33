"""Write the pages' tables from the result files, between their markers; no number in them is typed by hand.

python -m bench.tables            # write
python -m bench.tables --check    # exit 1 if a page is stale
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from bench.records import ROOT
from bench.tables_adapt import adapt_table, avx2_table, curves_table, memory_table, merge_export_table, shapes_table
from bench.tables_headline import headline
from bench.tables_ops import ops_table
from bench.tables_quality import leave_out, plain_base, quality_pocket
from bench.tables_serve import serve_adapters, serve_many, serve_t5_large
from bench.tables_studies import (
    ablations,
    gradient,
    harmful_development,
    harmful_heldout,
    ranks,
    search_development,
    search_heldout,
    wtq,
)
from lorahub_edge.adaptation import FORMS, PRESETS


def main() -> None:
    """Write the tables, or say which are stale."""
    parser = argparse.ArgumentParser(prog="python -m bench.tables", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a table is stale")
    options = parser.parse_args()
    for page, tables in PAGES.items():
        old = page.read_text(encoding="utf-8")
        check_markers(page.name, old, tables)
        new = old
        for name, make in tables.items():
            new = put_between_markers(new, name, make())
        if new != old and options.check:
            sys.exit(f"{page.name}: a table is stale; run python -m bench.tables")
        if new != old:
            page.write_text(new, encoding="utf-8")


def check_markers(page: str, text: str, names: Iterable[str]) -> None:
    """Whether the page has the markers of these tables and no others: nobody would write to those.

    Raises:
        SystemExit: it has others, or lacks one.
    """
    found, expected = sorted(re.findall(r"<!-- begin:(\S+) -->", text)), sorted(names)
    if found != expected:
        sys.exit(f"{page}: expected the tables {', '.join(expected)}; received the markers {', '.join(found)}")


def put_between_markers(text: str, name: str, table: str) -> str:
    """The text with everything between a table's two markers replaced.

    Raises:
        SystemExit: the markers are not there, once each and in order.
    """
    begin, end = f"<!-- begin:{name} -->", f"<!-- end:{name} -->"
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        sys.exit(f"expected the markers {begin} and {end}")
    return f"{before}{begin}\n{table}\n{end}{after}"


def presets() -> str:
    """What each preset runs, from the code that runs it."""
    lines = ["| `--preset` | search | objective | box | evaluations |", "|---|---|---|---|---|"]
    for preset in PRESETS.values():
        formula = FORMS[preset.objective_form].formula.replace("alpha", f"{preset.alpha:g}").replace("|", r"\|")
        budget = f"{preset.budget}" + (" + one per module" if preset.budget_per_module else "")
        lines.append(f"| `{preset.name}` | {preset.meaning} | {formula} | ±{preset.bound:g} | {budget} |")
    return "\n".join(lines)


PAGES: dict[Path, dict[str, Callable[[], str]]] = {
    ROOT / "README.md": {"headline": headline},
    ROOT / "docs" / "guide.md": {"presets": presets},
    ROOT / "docs" / "benchmarks.md": {
        "adapt-t5-large": adapt_table,
        "shapes": shapes_table,
        "serve-adapters": serve_adapters,
        "avx2": avx2_table,
        "serve-t5-large": serve_t5_large,
        "serve-many": serve_many,
        "merge-export": merge_export_table,
        "memory": memory_table,
        "curves": curves_table,
        "ops": ops_table,
    },
    ROOT / "docs" / "quality.md": {
        "quality-pocket": quality_pocket,
        "leave-out": leave_out,
        "search-development": search_development,
        "search-heldout": search_heldout,
        "harmful-development": harmful_development,
        "harmful-heldout": harmful_heldout,
        "ablations": ablations,
        "ranks": ranks,
        "gradient": gradient,
        "plain-base": plain_base,
        "wtq": wtq,
    },
}


if __name__ == "__main__":
    main()
