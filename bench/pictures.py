"""Pictures of the results, and a page that shows them: docs/bench/*.png and docs/bench/index.html.

python -m bench.pictures        # needs matplotlib: pip install 'lorahub-edge[bench]'
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from bench.records import RESULTS, ROOT, Record, read
from bench.tables_adapt import CROSSING, CURVES, MERGE_EXPORT_NAMES, NAMES

FOLDER = ROOT / "docs" / "bench"
OURS, PEER, FLOOR = "#1b6ca8", "#9aa5b1", "#d9822b"


def main() -> None:
    """Draw what has been measured."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 150})
    drawn = [(name, title, note) for name, (draw, title, note) in PICTURES.items() if _save(name, draw)]
    (FOLDER / "index.html").write_text(_page(drawn), encoding="utf-8")


def _save(name: str, draw: Callable[[], Any]) -> bool:
    """False if there is nothing to draw yet."""
    figure = draw()
    if figure is None:
        return False
    figure.tight_layout()
    figure.savefig(FOLDER / f"{name}.png", metadata={"Software": None})
    plt.close(figure)
    return True


def evaluation() -> Any:
    """Seconds and peak memory of every contender, as bars."""
    records = _of_shape(read(RESULTS / "adapt-t5-large.jsonl"), "large", "evaluation")
    return _time_and_memory([(r, NAMES[r["setup"]["contender"]]) for r in records], "seconds per candidate")


def merge_export() -> Any:
    """Seconds and peak memory of merging and exporting, as bars."""
    records = read(RESULTS / "merge-export-t5.jsonl")
    rows = [*_of_shape(records, "large", "export"), *_of_shape(records, "large", "merge")]
    names = [MERGE_EXPORT_NAMES[r["setup"]["part"], r["setup"]["contender"]] for r in rows]
    return _time_and_memory(list(zip(rows, names, strict=True)), "seconds, start to exit")


def _of_shape(records: Sequence[Record], shape: str, part: str) -> list[Record]:
    """Those of one part, the fastest first."""
    found = [r for r in records if r["setup"]["shape"] == shape and r["setup"]["part"] == part]
    return sorted(found, key=lambda r: float(r["metrics"]["median_s"]))


def _time_and_memory(rows: Sequence[tuple[Record, str]], label: str) -> Any:
    if not rows:
        return None
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 0.6 + 0.4 * len(rows)), sharey=True)
    _bars(left, rows, [r["metrics"]["median_s"] for r, _ in rows], label, "{:.2f}")
    _bars(right, rows, [r["metrics"]["peak_bytes"] / 1e9 for r, _ in rows], "peak memory, GB", "{:.2f}")
    return figure


def _bars(axes: Axes, rows: Sequence[tuple[Record, str]], values: Sequence[float], label: str, form: str) -> None:
    contenders = [r["setup"]["contender"] for r, _ in rows]
    colors = [OURS if c.startswith("ours") else FLOOR if c == "int-mm" else PEER for c in contenders]
    bars = axes.barh([name.replace("`", "") for _, name in rows], values, color=colors)
    axes.bar_label(bars, [form.format(v) for v in values], padding=3)
    axes.set_xlabel(label)
    axes.margins(x=0.15)


def curves_time() -> Any:
    """Milliseconds over each setting."""
    return _curves("median_s", 1e3, "ms per candidate")


def curves_memory() -> Any:
    """MB over each setting."""
    return _curves("peak_bytes", 1e-6, "peak memory, MB")


def _curves(metric: str, factor: float, label: str) -> Any:
    records = read(RESULTS / "curves-t5-small.jsonl")
    if not records:
        return None
    figure, all_axes = plt.subplots(1, len(CURVES), figsize=(11, 2.8), sharey=True)
    for axes, (name, words) in zip(all_axes, CURVES.items(), strict=True):
        for contender, color in (("lorahub", PEER), ("ours", OURS)):
            line = sorted(
                (r["setup"][name], factor * r["metrics"][metric])
                for r in records
                if r["setup"]["contender"] == contender and _on_curve(r, name)
            )
            if len(line) > 1:
                axes.plot(*zip(*line, strict=True), "o-", color=color, label=contender, markersize=3)
        axes.set(xlabel=words, xscale="log", yscale="log")
        axes.set_xticks(ticks := sorted({r["setup"][name] for r in records}), [str(t) for t in ticks])
        axes.minorticks_off()
    all_axes[0].set_ylabel(label)
    all_axes[0].legend(frameon=False)
    return figure


def _on_curve(record: Record, name: str) -> bool:
    return all(record["setup"][other] == value for other, value in CROSSING.items() if other != name)


def serving() -> Any:
    """Seconds of an answer, the first token apart."""
    records = {r["setup"]["contender"]: r["metrics"] for r in read(RESULTS / "serve-t5-large.jsonl")}
    if not records:
        return None
    names = sorted(records, key=lambda n: records[n]["total_s"]["median"])
    figure, axes = plt.subplots(figsize=(9, 2.4))
    first = [records[n]["first_token_s"]["median"] for n in names]
    total = [records[n]["total_s"]["median"] for n in names]
    axes.barh(names, total, color=[OURS if n.startswith("ours") else PEER for n in names])
    axes.barh(names, first, color="black", alpha=0.25, label="until the first token")
    axes.set_xlabel("seconds per answer")
    axes.legend(frameon=False)
    return figure


PICTURES: dict[str, tuple[Callable[[], Any], str, str]] = {
    "evaluation": (
        evaluation,
        "One evaluation on FLAN-T5-large's shape",
        "20 modules, five examples of 81 tokens. Blue: ours. Orange: what the int8 products alone take.",
    ),
    "curves-time": (
        curves_time,
        "How an evaluation's time grows",
        "FLAN-T5-small's shape; each picture changes one setting. Both axes are logarithmic.",
    ),
    "curves-memory": (curves_memory, "How its memory grows", "Peak of the whole process, Python and torch included."),
    "merge-export": (
        merge_export,
        "Merging and exporting on FLAN-T5-large's shape",
        "From start to exit; PEFT also reads and adds up the modules, which ours did while adapting.",
    ),
    "serving": (serving, "Serving on FLAN-T5-large's shape", "81 tokens in, 32 out, one answer at a time."),
}


def _page(drawn: Sequence[tuple[str, str, str]]) -> str:
    figures = "\n".join(
        f'<figure><h2>{html.escape(title)}</h2><img src="{name}.png" alt="{html.escape(title)}">'
        f"<figcaption>{html.escape(note)}</figcaption></figure>"
        for name, title, note in drawn
    )
    style = "body{font:16px/1.5 system-ui;max-width:70rem;margin:2rem auto;padding:0 1rem}img{max-width:100%}"
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>lorahub_edge: benchmarks</title>'
        f"<style>{style}figcaption{{color:#555}}</style>\n<h1>Benchmarks</h1>\n"
        "<p>Drawn by <code>python -m bench.pictures</code> from <code>bench/results/</code>; machine and commit are in "
        f'the records and the tables of <a href="../benchmarks.md">the benchmarks page</a>.</p>\n{figures}\n</html>\n'
    )


if __name__ == "__main__":
    main()
