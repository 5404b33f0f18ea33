"""The tables of serving: one request at a time on a large T5, and many at once on a decoder-only model."""

from __future__ import annotations

from collections.abc import Iterable

from bench.records import RESULTS, Record, read
from bench.tables_adapt import NOTHING


def serve_t5_large() -> str:
    """Serving: every contender of the run measured last."""
    records = {r["setup"]["contender"]: r for r in read(RESULTS / "serve-t5-large.jsonl")}
    if "ours" not in records:
        return NOTHING
    ours = records["ours"]
    setup, machine = ours["setup"], ours["machine"]
    commit = (ours["commit"] or "unknown")[:10] + (", dirty" if ours["dirty"] else "")
    lines = [
        f"{setup['tokens_in']} tokens in, {setup['tokens_out']} out, batch 1 (tokens per second: batch "
        f"{setup['batch']}), {setup['threads']} threads; median of {setup['rounds'] * setup['repeats']} answers, "
        f"95th percentile in brackets; {machine['cpu']}; commit {commit}.",
        "",
        "| | answer, s | first token, ms | next tokens, ms | tokens/s | peak memory, MB | folder, MB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, record in sorted(records.items(), key=lambda item: item[1]["metrics"]["total_s"]["median"]):
        m = record["metrics"]
        first, later = (f"{1e3 * m[k]['median']:.0f} ({1e3 * m[k]['p95']:.0f})" for k in ("first_token_s", "token_s"))
        lines.append(
            f"| {_SERVERS[name]} | {m['total_s']['median']:.2f} ({m['total_s']['p95']:.2f}) | {first} | {later} | "
            f"{m['batch_tokens_per_s']:.0f} | {m['peak_memory_bytes'] / 1e6:.0f} | {m['folder_bytes'] / 1e6:.0f} |"
        )
    return "\n".join(lines)


def serve_many() -> str:
    """Many clients at once: every contender of the newest measurement of each number of clients."""
    newest: dict[tuple[int, str], Record] = {}
    for record in read(RESULTS / "serve-many.jsonl"):
        newest[record["setup"]["clients"], record["setup"]["contender"]] = record
    if not newest:
        return NOTHING
    last = list(newest.values())[-1]
    low, high = last["setup"]["tokens_out"]
    commits = sorted({(r["commit"] or "unknown")[:10] for r in newest.values()})
    lines = [
        f"SmolLM2-135M; answers of {low} to {high} tokens; {last['setup']['threads']} threads; each client "
        f"asks again as soon as it is answered; {last['machine']['cpu']}; commit {'; '.join(commits)}.",
        "",
        "| clients | | tokens/s | first token, s | 95th percentile | further tokens, ms | peak memory, MB |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for (clients, name), record in sorted(newest.items(), key=lambda i: (i[0][0], -i[1]["metrics"]["tokens_per_s"])):
        m = record["metrics"]
        first = m["first_token_s"]
        lines.append(
            f"| {clients} | {_MANY[name]} | {m['tokens_per_s']:.0f} | {first['median']:.2f} | {first['p95']:.2f} | "
            f"{1e3 * m['token_s']['median']:.0f} | {m['peak_memory_bytes'] / 1e6:.0f} |"
        )
    return "\n".join(lines)


def serve_adapters() -> str:
    """Memory by number of adapters, and steps whose rows have adapters of their own."""
    newest = {(r["setup"].get("adapters"), r["setup"].get("rows")): r for r in read(RESULTS / "serve-adapters.jsonl")}
    if not newest:
        return NOTHING
    last = list(newest.values())[-1]
    lines = [
        f"SmolLM2-135M, adapters of rank 16 for q and v, {last['setup']['threads']} threads; {last['machine']['cpu']}; "
        f"commit {(last['commit'] or 'unknown')[:10]}.",
        "",
        "| adapters | ready after, s | memory when ready, MB | peak once all have answered, MB |",
        "|---:|---:|---:|---:|",
    ]
    for record in _part(newest.values(), "memory", "adapters"):
        m, ready = record["metrics"], record["metrics"]["ready"]
        cells = (
            f"{m['start_s']:.1f}",
            _mb(ready["RssAnon_bytes"] + ready["RssFile_bytes"]),
            _mb(m["used"]["VmHWM_bytes"]),
        )
        lines.append(f"| {record['setup']['adapters']} | {' | '.join(cells)} |")
    lines += [
        "",
        f"| rows, each with its own adapter | {' | '.join(_WAYS.values())} |",
        f"|---:|{'---:|' * len(_WAYS)}",
    ]
    for record in _part(newest.values(), "step", "rows"):
        cells = tuple(f"{record['metrics'][f'{way}_ms']:.1f}" for way in _WAYS)
        lines.append(f"| {record['setup']['rows']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _part(records: Iterable[Record], part: str, by: str) -> list[Record]:
    return sorted((r for r in records if r["setup"]["part"] == part), key=lambda r: int(r["setup"][by]))


def _mb(n_bytes: float) -> str:
    return f"{n_bytes / 1e6:.0f}"


_WAYS = {
    "none": "no adapter",
    "one": "one for all",
    "stack": "stacked (ours)",
    "groups": "a call per adapter",
    "side stack": "side path alone, stacked",
    "side gather": "side path alone, gathered",
}

_MANY = {
    "ours": "`lorahub-edge serve`, int8",
    "before": "`lorahub-edge serve` before continuous batching, int8",
    "ctranslate2": "CTranslate2, int8, whatever waits as one batch",
    "optimum": "Optimum on our graphs, whatever waits as one batch, told when all are done",
    "llama.cpp": "llama.cpp's server, Q4_1",
}

_SERVERS = {
    "ours": "`lorahub_edge.serve`, int8",
    "ours-spinning": "`lorahub_edge.serve`, int8, onnxruntime's threads spinning",
    "optimum": "Optimum's export, fp32, on onnxruntime",
    "optimum-spinning": "Optimum's export, fp32, onnxruntime's threads spinning",
    "ctranslate2": "CTranslate2, int8",
}
