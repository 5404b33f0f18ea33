"""A load test on loopback: many clients at once, some of which hang up, talk nonsense or ask for too much.

The service runs as `lorahub-edge serve` in a process of its own. What is recorded: how each kind of request was
answered, latencies of those that were, the service's memory before and after, and whether it answers as before and
stops when told.

python -m bench.serve_load FOLDER --clients 32 --requests 600
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import http.client
import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.records import RESULTS, append, make_record
from lorahub_edge.serve import open_folder

BENCH = "serve-load"
# kind -> how often, and the answers that are right; a full queue answers 429 to whatever it would have to read
KINDS = {"whole": 8, "stream": 6, "hang up": 3, "malformed": 1, "unknown field": 1, "too long": 1, "too large": 1}
RIGHT = {
    "whole": {200, 429},
    "stream": {200, 429},
    "hang up": {0, 429},
    "malformed": {400},
    "unknown field": {400},
    "too long": {400, 429},
    "too large": {413, -1},  # refused before it was all sent: the answer may be lost with the connection
}
MAX_BODY_BYTES = 1 << 20
JSON = {"Content-Type": "application/json"}
# after its shutdown uvicorn ends by the signal that it was sent
STOPPED = (0, -signal.SIGTERM)


@dataclass(frozen=True)
class Outcome:
    """One request: its kind, the status it got (0: we hung up; -1: no whole answer), seconds until it was over."""

    kind: str
    status: int
    seconds: float


def load(port: int, prompts: Sequence[str], *, n_clients: int, n_requests: int, max_tokens: int) -> list[Outcome]:
    """Send requests of all kinds from many clients at once.

    Args:
        port: of the service on loopback.
        prompts: texts to ask.
        n_clients: at the same time, one connection each.
        n_requests: in all, in an order that is always the same.
        max_tokens: of an answer.
    """
    rng = random.Random(0)
    kinds = rng.choices(list(KINDS), list(KINDS.values()), k=n_requests)
    asked = [rng.choice(prompts) for _ in kinds]
    with concurrent.futures.ThreadPoolExecutor(n_clients) as pool:
        return list(pool.map(lambda pair: _request(port, *pair, max_tokens), zip(kinds, asked, strict=True)))


def _request(port: int, kind: str, prompt: str, max_tokens: int) -> Outcome:
    started = time.perf_counter()
    body: bytes | dict[str, Any] = {"prompt": prompt, "max_tokens": max_tokens, "stream": kind in ("stream", "hang up")}
    if kind == "malformed":
        body = b'{"prompt": '
    elif kind == "unknown field":
        body = {"prompt": prompt, "promt": prompt}
    elif kind == "too long":
        body = {"prompt": f"{prompt} " * 3000}
    elif kind == "too large":
        body = {"prompt": "x" * (MAX_BODY_BYTES + 1)}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
        try:
            raw = body if isinstance(body, bytes) else json.dumps(body)
            connection.request("POST", "/v1/completions", raw, JSON)
            response = connection.getresponse()
        except OSError:
            return Outcome(kind, -1, time.perf_counter() - started)
        if kind == "hang up" and response.status == 200:
            response.readline()
            return Outcome(kind, 0, time.perf_counter() - started)
        data = response.read()
        whole = response.status != 200 or kind != "stream" or data.rstrip().endswith(b"data: [DONE]")
        return Outcome(kind, response.status if whole else -1, time.perf_counter() - started)


def wrong(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Requests that were not answered as their kind must be."""
    return [outcome for outcome in outcomes if outcome.status not in RIGHT[outcome.kind]]


@contextlib.contextmanager
def service(folder: Path, *options: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """`lorahub-edge serve` on a free port of loopback, until the block ends."""
    command = [str(Path(sys.executable).with_name("lorahub-edge")), "serve", str(folder), "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", said)
        if found is None:
            raise SystemExit(f"serve did not start: {said}")
        port = int(found.group(1))
        threading.Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would stop the service
        yield port, process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def peak_bytes(pid: int) -> int:
    """The most memory that a process has held; 0 where the system does not say."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found.group(1)) * 1024 if found else 0


def ask(port: int, prompt: str, max_tokens: int, **fields: str) -> str:
    """The text of one whole answer; fields are the request's others, such as its model."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
        raw = json.dumps({"prompt": prompt, "max_tokens": max_tokens, **fields})
        connection.request("POST", "/v1/completions", raw, JSON)
        return str(json.loads(connection.getresponse().read())["choices"][0]["text"])


def main() -> None:
    """Load a service and record how it fared; exit code 1 if a request was answered wrongly."""
    parser = argparse.ArgumentParser(prog="python -m bench.serve_load", description=__doc__)
    parser.add_argument("folder", type=Path)
    for name, default in (("clients", 32), ("requests", 600), ("max-tokens", 16), ("max-waiting", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=RESULTS / f"{BENCH}.jsonl")
    options = parser.parse_args()
    words = sorted(open_folder(options.folder).tokenizer.get_vocab())[:200]
    prompts = [" ".join(random.Random(k).choices(words, k=20)) for k in range(50)]
    with service(options.folder, "--max-waiting", str(options.max_waiting), "--threads", "2") as (port, process):
        before, memory_before = ask(port, prompts[0], options.max_tokens), peak_bytes(process.pid)
        started = time.perf_counter()
        outcomes = load(
            port, prompts, n_clients=options.clients, n_requests=options.requests, max_tokens=options.max_tokens
        )
        seconds = time.perf_counter() - started
        same = ask(port, prompts[0], options.max_tokens) == before
        memory_after = peak_bytes(process.pid)
        process.send_signal(signal.SIGTERM)
        exit_code = process.wait(60)
    metrics = {
        **_metrics(outcomes, seconds),
        "same_answer_afterwards": same,
        "peak_memory_bytes": {"before": memory_before, "after": memory_after},
        "exit_code": exit_code,
    }
    setup = {name: getattr(options, name) for name in ("clients", "requests", "max_tokens", "max_waiting")}
    append(options.out, make_record(BENCH, {"folder": options.folder.name, **setup}, metrics))
    sys.stderr.write(f"{json.dumps(metrics['answers'])}: {metrics['answered_per_s']:.1f} answers a second\n")
    if wrong(outcomes) or not same or exit_code not in STOPPED:
        raise SystemExit(f"{len(wrong(outcomes))} wrong answers, same afterwards: {same}, exit code {exit_code}")


def _metrics(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    answered = [o.seconds for o in outcomes if o.status == 200]
    counts = Counter(f"{o.kind}: {o.status or 'gone'}" for o in outcomes)
    p50, p95 = np.percentile(answered, [50, 95]).tolist() if answered else (0.0, 0.0)
    return {
        "answers": dict(sorted(counts.items())),
        "n_wrong": len(wrong(outcomes)),
        "seconds": seconds,
        "answered_per_s": len(answered) / seconds,
        "answer_s": {"p50": p50, "p95": p95},
    }


if __name__ == "__main__":
    main()
