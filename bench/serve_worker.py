"""One contender of bench.serve, in a process of its own: load, warm up, measure, print JSON.

Runs in each contender's own environment, so it imports nothing of this repository but for `ours`.

python serve_worker.py ours|optimum|ctranslate2 FOLDER --tokens-in 81 --tokens-out 32 --threads 2 --repeats 3
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = Callable[[list[list[int]], int], "tuple[list[list[int]], list[float]]"]


def ours(folder: str, threads: int, *, spinning: bool) -> Answer:
    """lorahub_edge.serve; times of single tokens are measured as they come."""
    import numpy as np

    from lorahub_edge.serve import OnnxModel, open_folder

    files = open_folder(folder)
    if not json.loads((Path(folder) / "verification.json").read_text())["passed"]:
        raise SystemExit(f"{folder} is not verified; a wrong result is not timed")
    model = OnnxModel(dataclasses.replace(files, end_ids=()), n_threads=threads, allow_spinning=spinning)

    def answer(prompts: list[list[int]], n: int) -> tuple[list[list[int]], list[float]]:
        started = time.perf_counter()
        state, logits = model.begin(prompts)
        tokens, times = [logits[:, -1].argmax(-1)], [time.perf_counter() - started]
        while len(tokens) < n:
            before = time.perf_counter()
            tokens.append(model.step(state, tokens[-1][:, None])[:, -1].argmax(-1))
            times.append(time.perf_counter() - before)
        return np.stack(tokens, 1).tolist(), times

    return answer


def optimum(folder: str, threads: int, *, spinning: bool) -> Answer:
    """Optimum's own export and generate, on onnxruntime."""
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTModelForSeq2SeqLM
    from transformers.generation.streamers import BaseStreamer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    torch.set_num_threads(threads)
    model = ORTModelForSeq2SeqLM.from_pretrained(folder, session_options=options)

    class Clock(BaseStreamer):  # type: ignore[misc,no-any-unimported]
        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, value: Any) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    def answer(prompts: list[list[int]], n: int) -> tuple[list[list[int]], list[float]]:
        clock = Clock() if len(prompts) == 1 else None  # it takes no batches
        ids = torch.tensor(prompts)
        started = time.perf_counter()
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, min_new_tokens=n,
            do_sample=False, num_beams=1, streamer=clock,
        )  # fmt: skip
        ended = time.perf_counter()
        if clock is None:
            return output[:, 1 : n + 1].tolist(), [ended - started]
        marks = [started, *clock.times[1:]]  # the first is the start token
        return output[:, 1 : n + 1].tolist(), [b - a for a, b in itertools.pairwise(marks)]

    return answer


def ctranslate2(folder: str, threads: int, *, spinning: bool) -> Answer:
    """CTranslate2 in int8; it hands over tokens one by one through a callback. Spinning is onnxruntime's matter."""
    import ctranslate2

    translator = ctranslate2.Translator(folder, device="cpu", compute_type="int8", intra_threads=threads)
    words = json.loads((Path(folder) / "shared_vocabulary.json").read_text())
    index = {word: number for number, word in enumerate(words)}

    def answer(prompts: list[list[int]], n: int) -> tuple[list[list[int]], list[float]]:
        marks = [time.perf_counter()]

        def on_step(_: Any) -> bool:
            marks.append(time.perf_counter())
            return False

        results = translator.translate_batch(
            [[words[token] for token in prompt] for prompt in prompts], beam_size=1, max_decoding_length=n,
            min_decoding_length=n, callback=on_step if len(prompts) == 1 else None,
        )  # fmt: skip
        if len(prompts) > 1:
            marks.append(time.perf_counter())
        return [[index[word] for word in r.hypotheses[0]] for r in results], [
            b - a for a, b in itertools.pairwise(marks)
        ]

    return answer


CONTENDERS = {"ours": ours, "optimum": optimum, "ctranslate2": ctranslate2}


def main() -> None:
    """Measure one contender."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("folder")
    for name, default in (
        ("tokens-in", 81),
        ("tokens-out", 32),
        ("threads", 2),
        ("repeats", 3),
        ("batch", 8),
        ("vocabulary", 32000),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--spinning", action="store_true", help="let onnxruntime's threads spin between operators")
    options = parser.parse_args()
    started = time.perf_counter()
    answer = CONTENDERS[options.contender](options.folder, options.threads, spinning=options.spinning)
    load_s = time.perf_counter() - started
    rng = random.Random(0)
    prompts = [[rng.randrange(3, 32000) for _ in range(options.tokens_in - 1)] + [1] for _ in range(options.batch)]
    answer(prompts[:1], 4)
    samples = []
    for _ in range(options.repeats):
        begun = time.perf_counter()
        tokens, times = answer(prompts[:1], options.tokens_out)
        samples.append({"total_s": time.perf_counter() - begun, "token_s": times, "tokens": tokens[0]})
    batch_s = []
    for _ in range(options.repeats):
        begun = time.perf_counter()
        together, _ = answer(prompts, options.tokens_out)
        batch_s.append(time.perf_counter() - begun)
    if any(len(row) != options.tokens_out for row in [*together, *(s["tokens"] for s in samples)]):
        raise SystemExit(f"expected {options.tokens_out} tokens from every answer")
    status = Path("/proc/self/status").read_text()
    peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    sys.stdout.write(
        json.dumps({"load_s": load_s, "samples": samples, "batch_s": batch_s, "peak_memory_bytes": peak}) + "\n"
    )


if __name__ == "__main__":
    main()
