"""Many clients at once on one decoder-only model: tokens per second, and how long each waits for its first token.

Every contender is an HTTP service in a process of its own with `POST /v1/completions` and streams. So many clients ask,
each the next request as soon as its last one is answered; prompts and lengths of answers are drawn once, and are the
same for all. End tokens are ignored, so that every answer has the length that was asked for.

    ours          this checkout's service on an exported folder
    before        another checkout's service on the same folder, by that checkout's Python
    ctranslate2   int8, behind a plain front: whatever waits is answered as one batch
    optimum       its own model class on onnxruntime, behind the same front
    llama.cpp     its own server on a GGUF file, which batches continuously

python -m bench.serve_many --ours FOLDER [--before-python PYTHON] [--ctranslate2 FOLDER] [--optimum FOLDER]
    [--peer-python PYTHON] [--gguf FILE --llama-python PYTHON]
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.records import RESULTS, append, make_record
from bench.serve import spread
from bench.serve_load import peak_bytes

BENCH = "serve-many"
WORKER = Path(__file__).with_name("serve_many_worker.py")
HEADERS = {"Content-Type": "application/json"}
_START_S = 120


@dataclass(frozen=True)
class Asked:
    """One request: its prompt and the tokens of its answer."""

    prompt: str
    n_tokens: int


@dataclass(frozen=True)
class Answered:
    """What became of it: seconds from its sending to its first text and to its end."""

    n_tokens: int
    first_s: float
    total_s: float


def workload(n: int, seed: int, lengths: tuple[int, int]) -> list[Asked]:
    """Prompts of 5 to 60 words, and answers of as many tokens as drawn."""
    rng = random.Random(seed)
    words = ("the", "a", "red", "blue", "city", "river", "seven", "house", "music", "water", "time", "people", "world")
    return [Asked(" ".join(rng.choices(words, k=rng.randint(5, 60))), rng.randint(*lengths)) for _ in range(n)]


def ask(port: int, asked: Asked) -> Answered:
    """Send one request and read its stream to the end."""
    body = {"prompt": asked.prompt, "max_tokens": asked.n_tokens, "stream": True, "temperature": 0}
    started = time.perf_counter()
    first_s = 0.0
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=1800)) as connection:
        connection.request("POST", "/v1/completions", json.dumps(body), HEADERS)
        response = connection.getresponse()
        if response.status != 200:
            raise SystemExit(f"answer {response.status}: {response.read()[:300]!r}")
        is_done = False
        for line in response:
            if not line.startswith(b"data: "):
                continue
            is_done = line.strip() == b"data: [DONE]"
            if not is_done and not first_s:
                first_s = time.perf_counter() - started
            if b'"error"' in line:
                raise SystemExit(f"a stream failed: {line!r}")
    if not is_done:
        raise SystemExit("a stream ended early")
    return Answered(asked.n_tokens, first_s, time.perf_counter() - started)


def load(port: int, requests: Sequence[Asked], n_clients: int) -> tuple[list[Answered], float]:
    """Ask everything from so many clients; answers, and the seconds that all took."""
    started = time.perf_counter()
    with ThreadPoolExecutor(n_clients) as pool:
        answers = list(pool.map(lambda asked: ask(port, asked), requests))
    return answers, time.perf_counter() - started


@contextlib.contextmanager
def service(command: Sequence[str], environment: dict[str, str], port: int) -> Iterator[int]:
    """A contender's process until the block ends; gives its process id once it listens."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said: list[bytes] = []
    stderr = process.stderr
    threading.Thread(target=lambda: said.extend(stderr), daemon=True).start()
    try:
        deadline = time.monotonic() + _START_S
        while not _is_ready(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command[2]} did not start: {b''.join(said[-3:]).decode(errors='replace')}")
            time.sleep(0.2)
        yield process.pid
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _is_ready(port: int) -> bool:
    """Whether it listens and has loaded its model; a front without /health has, once it listens."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status != 503
        except (OSError, http.client.HTTPException):
            return False


def measure(name: str, options: argparse.Namespace, n_clients: int) -> dict[str, Any]:
    """One contender under one number of clients."""
    command, environment = _command(name, options)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    n_requests = max(options.requests, n_clients)
    requests = workload(n_requests, options.seed, tuple(options.tokens_out))
    with service([*command, "--port", str(port), "--clients", str(n_clients)], environment, port) as pid:
        load(port, workload(2, options.seed + 1, (2, 4)), 1)
        answers, seconds = load(port, requests, n_clients)
        peak = peak_bytes(pid)
    n_tokens = sum(a.n_tokens for a in answers)
    between = [(a.total_s - a.first_s) / (a.n_tokens - 1) for a in answers if a.n_tokens > 1]
    return {
        "tokens_per_s": n_tokens / seconds,
        "first_token_s": spread([a.first_s for a in answers]),
        "token_s": spread(between),
        "request_s": spread([a.total_s for a in answers]),
        "seconds": seconds,
        "n_requests": n_requests,
        "peak_memory_bytes": peak,
    }


def _command(name: str, options: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    source, python = {
        "ours": (options.ours, sys.executable),
        "before": (options.ours, options.before_python),
        "ctranslate2": (options.ctranslate2, options.peer_python),
        "optimum": (options.optimum, options.peer_python),
        "llama.cpp": (options.gguf, options.llama_python),
    }[name]
    return [str(python), str(WORKER), name, str(source), "--threads", str(options.threads)], environment


def main() -> None:
    """Measure whoever was named, in an order drawn anew for each number of clients."""
    parser = argparse.ArgumentParser(prog="python -m bench.serve_many", description=__doc__)
    parser.add_argument("--ours", type=Path, required=True)
    for option in ("before-python", "ctranslate2", "optimum", "gguf", "peer-python", "llama-python"):
        parser.add_argument(f"--{option}", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--tokens-out", type=int, nargs=2, default=[50, 400])
    for option, value in (("requests", 24), ("threads", 2), ("seed", 0)):
        parser.add_argument(f"--{option}", type=int, default=value)
    parser.add_argument("--out", type=Path, default=RESULTS / f"{BENCH}.jsonl")
    options = parser.parse_args()
    sources = {"before": options.before_python, "ctranslate2": options.ctranslate2, "optimum": options.optimum}
    names = ["ours", *(n for n, path in {**sources, "llama.cpp": options.gguf}.items() if path is not None)]
    rng = random.Random(options.seed)
    for n_clients in options.clients:
        for name in rng.sample(names, len(names)):
            metrics = measure(name, options, n_clients)
            setup = {key: getattr(options, key) for key in ("threads", "tokens_out", "seed")}
            append(options.out, make_record(BENCH, {"contender": name, "clients": n_clients, **setup}, metrics))
            first = metrics["first_token_s"]["p95"]
            speed = f"{metrics['tokens_per_s']:.0f} tokens/s, first token {first:.2f} s (p95)"
            sys.stderr.write(f"{n_clients} clients, {name}: {speed}\n")


if __name__ == "__main__":
    main()
