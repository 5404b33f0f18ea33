"""table.html: one self-contained page with a sweep's tables, each point a link to its report."""

from __future__ import annotations

from urllib.parse import quote

from lorahub_edge.adaptation.controls import ADAPTED, ZERO_SHOT
from lorahub_edge.adaptation.figures import text
from lorahub_edge.adaptation.report import STYLE
from lorahub_edge.adaptation.run_folder import REPORT_HTML
from lorahub_edge.sweeping.table import COLUMNS, Row, Swept, Table
from lorahub_edge.tasks.score import loss_text

LEGEND = "% exact match on test rows: mean ± standard error over the seeds; in the last line, over the tasks"


def page_html(swept: Swept) -> str:
    """The page; `swept.folder` is where it will lie."""
    name = text(swept.folder.name)
    failures = "".join(f"<tr><td>{text(n)}</td><td class='d'>{text(r)}</td></tr>" for n, r in swept.failures.items())
    failed = f"<h2>Failures</h2><table>{failures}</table>" if failures else ""
    heads = "".join(f'<th class="n">{column}</th>' for column in COLUMNS)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name} - lorahub-edge</title><style>{STYLE} body {{ max-width: 1100px; }}</style></head><body>
<h1>{name}: {len(swept.rows)} points, {len(swept.failures)} failures</h1>
<p>{LEGEND}</p>
{"".join(_table(table, heads) for table in swept.tables())}
{failed}
<h2>Points</h2>
<table><tr><th></th><th class="n">zero-shot loss</th><th class="n">loss</th><th class="n">exact match</th>
<th class="n">evaluations</th><th class="n">seconds</th></tr>{"".join(map(_point, swept.rows))}</table>
</body></html>
"""


def _table(table: Table, heads: str) -> str:
    rows = "".join(
        f"<tr><td>{text(task)}</td>{''.join(f'<td class=n>{cell}</td>' for cell in cells.values())}</tr>"
        for task, cells in table.rows.items()
    )
    return (
        f"<h2>pool {text(table.pool)}, preset {text(table.preset)}</h2><table><tr><th></th>{heads}</tr>{rows}</table>"
    )


def _point(row: Row) -> str:
    """A line with a link to the run's own report."""
    results = row["results"]
    score = results[ADAPTED]["exact_match"]
    cells = (
        loss_text(results[ZERO_SHOT]["loss"]),
        loss_text(results[ADAPTED]["loss"]),
        "-" if score is None else f"{score:.1f}",
        str(row["evaluations"]),
        f"{row['costs']['seconds']:.1f}",
    )
    name = f"{row['task']}, {row['pool']}, {row['preset']}, seed {row['seed']}"
    link = f'<a href="runs/{quote(row["folder"])}/{REPORT_HTML}">{text(name)}</a>'
    return f"<tr><td>{link}</td>{''.join(f'<td class=n>{cell}</td>' for cell in cells)}</tr>"
