"""The tables of one evaluation, a whole adapt, merge, export and their memory.

From the records of bench.adapt, bench.curves and bench.merge_export.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from bench.curves import Point as CrossingPoint
from bench.records import RESULTS, Record, read
from bench.t5_large import SHAPES

NOTHING = "Not measured yet."
NAMES = {
    "ours": "lorahub_edge, int8, with LoRA",
    "ours-float": "lorahub_edge, float products, with LoRA",
    "lorahub": "lorahub 0.1.0, float32, with LoRA",
    "bitsandbytes": "transformers + bitsandbytes int8, no LoRA",
    "ctranslate2": "CTranslate2 int8, no LoRA",
    "int-mm": "the int8 products alone (`torch._int_mm`), the floor",
}
_PARTS = {"evaluation": "one candidate in a generation of 12", "whole": "`adapt` with 40 evaluations, start to exit"}


def adapt_table() -> str:
    """Time and peak memory of every contender on the large shape, with how many times ours each is."""
    records = [r for r in _adapt_records() if r["setup"]["part"] in _PARTS and r["setup"]["shape"] == "large"]
    if not records:
        return NOTHING
    lines = ["| | | seconds | times ours | peak memory, GB |", "|---|---|---:|---:|---:|"]
    for part, what in _PARTS.items():
        rows = {r["setup"]["contender"]: r for r in records if r["setup"]["part"] == part}
        for name, record in rows.items():
            seconds = f"{record['metrics']['median_s']:.2f}"
            lines.append(f"| {what} | {NAMES[name]} | {seconds} | {_beside(record, rows['ours'])} |")
    setup = records[-1]["setup"]
    caption = (
        f"FLAN-T5-large's shape, {setup['n_modules']} modules of rank 16, five examples of 81 tokens, "
        f"{setup['threads']} threads; medians, contenders in turns, each in a process of its own; {_where(records)}."
    )
    return "\n".join([caption, "", *lines])


def shapes_table() -> str:
    """One evaluation of every contender on every shape."""
    return _by_shape([r for r in _adapt_records() if r["setup"]["part"] == "evaluation"])


def avx2_table() -> str:
    """The same with every contender held to AVX2."""
    return _by_shape(read(RESULTS / "adapt-avx2.jsonl"))


def _by_shape(records: list[Record]) -> str:
    if not records:
        return NOTHING
    lines = ["| shape | | seconds | times ours | peak memory, GB |", "|---|---|---:|---:|---:|"]
    records.sort(key=_shape_order)
    ours = {r["setup"]["shape"]: r for r in records if r["setup"]["contender"] == "ours"}
    for record in records:
        name, shape, seconds = record["setup"]["contender"], record["setup"]["shape"], record["metrics"]["median_s"]
        lines.append(f"| {shape} | {NAMES[name]} | {seconds:.3g} | {_beside(record, ours[shape])} |")
    setup = records[-1]["setup"]
    caption = (
        f"One candidate in a generation of 12, {setup['n_modules']} modules of rank 16, five examples of 81 tokens, "
        f"{setup['threads']} threads; {_where(records)}."
    )
    return "\n".join([caption, "", *lines])


def _beside(record: Record, ours: Record) -> str:
    """How many times ours, and peak memory in GB: two cells."""
    m = record["metrics"]
    times = "" if record is ours else f"{m['median_s'] / ours['metrics']['median_s']:.2f}"
    return f"{times} | {m['peak_bytes'] / 1e9:.2f}"


MERGE_EXPORT_NAMES = {
    ("merge", "ours-fp32"): "`lorahub-edge merge`, float32",
    ("merge", "ours-bf16"): "`lorahub-edge merge`, bfloat16",
    ("merge", "ours-int8"): "`lorahub-edge merge`, int8",
    ("merge", "ours-int8-in-place"): "`lorahub-edge merge`, int8, in place",
    ("merge", "peft"): "PEFT, float32, adding up included",
    ("export", "ours"): "`lorahub-edge export`, int8, verified",
    ("export", "optimum"): "Optimum, ONNX, float32",
    ("export", "ctranslate2"): "CTranslate2's converter, int8",
}


def merge_export_table() -> str:
    """Seconds, peak memory and folder of every merge and export, shape by shape."""
    records = read(RESULTS / "merge-export-t5.jsonl")
    if not records:
        return NOTHING
    lines = ["| shape | | seconds | peak memory, GB | folder, MB |", "|---|---|---:|---:|---:|"]
    names = list(MERGE_EXPORT_NAMES)
    records.sort(key=lambda r: (_shape_order(r), names.index(_merge_export_key(r))))
    for record in records:
        m, name = record["metrics"], MERGE_EXPORT_NAMES[_merge_export_key(record)]
        sizes = f"{m['peak_bytes'] / 1e9:.2f} | {m['folder_bytes'] / 1e6:.0f}"
        lines.append(f"| {record['setup']['shape']} | {name} | {m['median_s']:.1f} | {sizes} |")
    setup = records[-1]["setup"]
    caption = (
        f"From start to exit, {setup['threads']} threads. Merge: a composed module of rank 16 for q and v; PEFT also "
        f"reads and adds up its {setup['n_modules']} modules. Export: the base alone; {_where(records)}."
    )
    return "\n".join([caption, "", *lines])


def _merge_export_key(record: Record) -> tuple[str, str]:
    return record["setup"]["part"], record["setup"]["contender"]


def _shape_order(record: Record) -> int:
    return list(SHAPES).index(record["setup"]["shape"])


def _adapt_records() -> list[Record]:
    return read(RESULTS / "adapt-t5-large.jsonl")


def memory_table() -> str:
    """Planned and measured peaks."""
    records = [r for r in _adapt_records() if "planned_bytes" in r["metrics"]]
    if not records:
        return NOTHING
    lines = ["| shape | modules | stored as | planned, GB | measured, GB | planned / measured |"]
    lines.append("|---|---:|---|---:|---:|---:|")
    for record in records:
        setup, m = record["setup"], record["metrics"]
        what = "whole adapt" if setup["part"] == "whole" else "evaluations"
        ratio = m["planned_bytes"] / m["peak_bytes"]
        lines.append(
            f"| {setup['shape']}, {what} | {setup['n_modules']} | {setup['stack_dtype']} | "
            f"{m['planned_bytes'] / 1e9:.2f} | {m['peak_bytes'] / 1e9:.2f} | {ratio:.2f} |"
        )
    return "\n".join([f"VmHWM of fresh processes, the cache warm; {_where(records)}.", "", *lines])


def curves_table() -> str:
    """How one evaluation grows: one line per value of each curve, milliseconds and MB."""
    records = read(RESULTS / "curves-t5-small.jsonl")
    if not records:
        return NOTHING
    found = {_point(r): r["metrics"] for r in records}
    lines = ["| | | ours, ms | lorahub, ms | ours, MB | lorahub, MB |", "|---|---:|---:|---:|---:|---:|"]
    for curve, value, ours, theirs in curve_points(records):
        cells = [f"{1e3 * found[p]['median_s']:.1f}" if p in found else "" for p in (ours, theirs)]
        cells += [f"{found[p]['peak_bytes'] / 1e6:.0f}" if p in found else "" for p in (ours, theirs)]
        lines.append(f"| {curve} | {value} | {' | '.join(cells)} |")
    caption = f"Per candidate, FLAN-T5-small's shape, {records[-1]['setup']['threads']} threads; {_where(records)}."
    return "\n".join([caption, "", *lines])


# The curves' settings, in a record's words and a reader's, and where the curves cross.
CURVES = {"n_modules": "modules", "n_candidates": "candidates per call", "n_tokens": "tokens per input", "rank": "rank"}
CROSSING = asdict(CrossingPoint())

Point = tuple[object, ...]


def curve_points(records: Sequence[Record]) -> list[tuple[str, int, Point, Point]]:
    """Curve, value, and the keys of our point and lorahub's, whose candidates always come one by one."""
    rows = []
    for name, words in CURVES.items():
        for value in sorted({r["setup"][name] for r in records}):
            setting = {**CROSSING, name: value}
            theirs = {**setting, "n_candidates": CROSSING["n_candidates"]}
            rows.append((words, value, ("ours", *setting.values()), ("lorahub", *theirs.values())))
    return rows


def _point(record: Record) -> Point:
    return (record["setup"]["contender"], *(record["setup"][name] for name in CROSSING))


def _where(records: Sequence[Record]) -> str:
    machine = records[-1]["machine"]
    commits = sorted({(r["commit"] or "unknown")[:10] + (", dirty" if r["dirty"] else "") for r in records})
    return f"{machine['cpu']}; commit {'; '.join(commits)}"
