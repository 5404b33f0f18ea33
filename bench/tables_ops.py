"""The kernels' table, from the records of bench.ops."""

from __future__ import annotations

from collections.abc import Sequence

from bench.records import RESULTS, Record, read

# What stands in a row: our contender, the peers beside it, and the floor that limits it.
ROWS = {
    "compose_factors": (
        ("ours, float32 stack", ("torch.mv", "torch.mm", "torch.mm, out given", "lorahub dict loop"), "float32"),
        ("ours, bfloat16 stack", ("torch.mv", "torch.mm", "torch.mm, out given", "lorahub dict loop"), "bfloat16"),
        ("ours, int8 stack", ("torch.mv", "torch.mm", "torch.mm, out given", "lorahub dict loop"), "int8"),
    ),
    "inject_delta": (("ours", ("plain torch", "PEFT merge into bitsandbytes int8"), ""),),
    "quantize_activations": (("ours", ("plain torch", "bitsandbytes (from float16)"), ""),),
    "int8_epilogue": (
        ("ours", ("plain torch", "bitsandbytes (to float16)"), ""),
        ("ours, with side path", ("plain torch, with side path",), ""),
    ),
    "int8_linear": (
        ("ours", ("torch._int_mm alone", "torch._int_mm, then int8_epilogue", "float32 product"), ""),
        ("ours, with side path", ("with side path",), ""),
        ("ours, 16 blocks", (), ""),
    ),
    "gated_activation": (
        ("ours", ("torch.nn.functional.gelu, then times", "transformers' formula, then times"), ""),
        ("ours, in the gate's place", (), ""),
    ),
    "attention": (("ours", ("torch.nn.functional.scaled_dot_product_attention", "products and softmax"), ""),),
}


def ops_table() -> str:
    """One row per case and form of ours: time, times of the peers and how often ours goes into them, floor."""
    records = [r for r in read(RESULTS / "ops.jsonl") if r["setup"]["threads"] == 1]
    if not records:
        return "Not measured yet."
    first = records[-1]
    caption = (
        f"Median milliseconds on one core of {first['machine']['cpu']} ({first['setup']['isa']}), all of a row in one "
        "run, in shuffled turns; in brackets, how many times ours. The floor is what the bytes take at the measured "
        "speed of reading, or the multiply-adds at that of a large float32 product, whichever is more."
    )
    lines = ["| kernel | ours | floor | peers |", "|---|---:|---:|---|"]
    for record in records:
        timings = record["metrics"]["timings"]
        lines += [_row(record, *form) for form in ROWS[record["setup"]["op"]] if form[0] in timings]
    return "\n".join([caption, "", *lines])


def _row(record: Record, ours: str, peers: Sequence[str], floor_kind: str) -> str:
    timings = record["metrics"]["timings"]
    mine = timings[ours]["median_ms"]
    times = {peer: timings[peer]["median_ms"] for peer in peers if peer in timings}
    beside = [f"{peer} {time:.3g} ({time / mine:.1f})" for peer, time in times.items()]
    floors = [v for k, v in record["metrics"]["floors_ms"].items() if floor_kind in k or "multiply" in k]
    floor = f"{max(floors):.3g}" if floors else ""
    return f"| {_name(record)}{_form(ours)} | {mine:.3g} | {floor} | {', '.join(beside)} |"


def _name(record: Record) -> str:
    setup = record["setup"]
    if setup["op"] == "compose_factors":
        n = setup["n_candidates"]
        return f"`compose_factors`, {n} candidate{'s' if n > 1 else ''} x {setup['n_modules']} modules"
    if setup["op"] == "attention":
        return f"`attention`, {setup['examples']} x {setup['tokens']} tokens"
    return f"`{setup['op']}`"


def _form(ours: str) -> str:
    return ours.removeprefix("ours")
