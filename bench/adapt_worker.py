"""One contender of bench.adapt, in a process of its own: load, warm up, measure, print JSON.

Runs in each contender's own environment, so it imports nothing of this repository but for `ours` and `int-mm`.

python adapt_worker.py CONTENDER BASE MODULES TASK --threads 2 --candidates 12 --repeats 3
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

# Evaluates so many candidates and returns the losses it saw, one each.
Evaluate = Callable[[int], "list[float]"]

_UNTIL_EXIT = ExitStack()


def ours(options: argparse.Namespace, rows: list[dict[str, str]]) -> Evaluate:
    """A generation through the population forward, with LoRA, as `adapt --max-memory` would set it up.

    As "ours-float" with float products in place of int8 ones: what a processor without fast int8 products gets.
    """
    import torch

    from lorahub_edge.adaptation import PopulationForward
    from lorahub_edge.base import load_base
    from lorahub_edge.base.engines import layer_engines, set_engines
    from lorahub_edge.cache import default_cache
    from lorahub_edge.modules import find_modules, load_stack
    from lorahub_edge.search import load_optimisers
    from lorahub_edge.tasks import Example, PromptFormat

    load_optimisers()  # part of every search, and of its memory
    base = load_base(options.base, device=options.device, cache=default_cache())
    if options.contender == "ours-float":
        set_engines(base.model, dict.fromkeys(layer_engines(base.model), "dequantize"))
    stack = load_stack(find_modules(options.modules), base, dtype=options.stack_dtype, cache=default_cache())
    encoded = PromptFormat.for_base(base).encode_all([Example(row["input"], row["target"]) for row in rows])
    forward = _UNTIL_EXIT.enter_context(PopulationForward(base, stack, encoded).ready())
    rng = torch.Generator().manual_seed(0)

    def evaluate(n: int) -> list[float]:
        coefficients = torch.rand(n, len(stack.names), generator=rng, dtype=torch.float64) - 0.5
        nll = forward.negative_log_likelihoods(coefficients)
        losses: list[float] = (nll.sum(dim=1) / forward.n_target_tokens.sum()).tolist()
        return losses

    evaluate.facts = lambda: {"cuda_graphs": forward.recordings()}  # type: ignore[attr-defined]
    return evaluate


def lorahub(options: argparse.Namespace, rows: list[dict[str, str]]) -> Evaluate:
    """The package lorahub 0.1.0: float32, one candidate at a time, its own loss; on a GPU where there is one."""
    from lorahub import algorithm

    paths = sorted(str(path) for path in Path(options.modules).iterdir())
    model, tokenizer, cache = algorithm.load_base_model_and_lora_modules(paths, options.base)
    dataset = algorithm.load_dataset([r["input"] for r in rows], [r["target"] for r in rows], tokenizer)
    parts = (algorithm.default_get_loss, algorithm.default_l1_regularization)
    rng = random.Random(0)

    def evaluate(n: int) -> list[float]:
        points = [[rng.uniform(-0.5, 0.5) for _ in paths] for _ in range(n)]
        return [float(algorithm.get_score(c, model, cache, dataset, len(rows), *parts)) for c in points]

    return evaluate


def bitsandbytes(options: argparse.Namespace, rows: list[dict[str, str]]) -> Evaluate:
    """transformers with bitsandbytes' int8 linears; no LoRA."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, BitsAndBytesConfig

    settings = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    model = AutoModelForSeq2SeqLM.from_pretrained(options.base, quantization_config=settings, device_map=options.device)
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    inputs = tokenizer([r["input"] for r in rows], return_tensors="pt", padding=True).to(options.device)
    labels = tokenizer([r["target"] for r in rows], return_tensors="pt", padding=True).input_ids.to(options.device)
    inputs.pop("token_type_ids", None)

    def evaluate(n: int) -> list[float]:
        with torch.inference_mode():
            return [float(model(**inputs, labels=labels, use_cache=False).loss) for _ in range(n)]

    return evaluate


def ctranslate2(options: argparse.Namespace, rows: list[dict[str, str]]) -> Evaluate:
    """CTranslate2's int8 scoring of the examples; no LoRA. BASE is its converted folder."""
    import ctranslate2

    translator = ctranslate2.Translator(options.base, device="cpu", compute_type="int8", intra_threads=options.threads)
    source = [[*row["input"].split(), "</s>"] for row in rows]
    target = [row["target"].split() for row in rows]

    def evaluate(n: int) -> list[float]:
        losses = []
        for _ in range(n):
            results = translator.score_batch(source, target)
            logs = [p for result in results for p in result.log_probs]
            losses.append(-sum(logs) / len(logs))
        return losses

    return evaluate


def int_mm(options: argparse.Namespace, rows: list[dict[str, str]]) -> Evaluate:
    """The floor: nothing but the int8 products of one evaluation, one per linear layer, through torch._int_mm."""
    import torch

    from lorahub_edge.base import open_base

    n_inputs = sum(len(row["input"].split()) + 1 for row in rows)
    n_targets = sum(len(row["target"].split()) + 1 for row in rows)
    shapes = open_base(options.base, precision="int8", device="cpu").linear_shapes()
    calls = []
    for name, (out_features, in_features) in shapes.items():
        reads_inputs = name.startswith("encoder") or "EncDecAttention.k" in name or "EncDecAttention.v" in name
        x = torch.randint(-127, 128, (n_inputs if reads_inputs else n_targets, in_features), dtype=torch.int8)
        calls.append((x, torch.randint(-127, 128, (out_features, in_features), dtype=torch.int8).t()))

    def evaluate(n: int) -> list[float]:
        for _ in range(n):
            for x, weight in calls:
                torch._int_mm(x, weight)
        return [0.0] * n

    return evaluate


CONTENDERS = {
    "ours": ours,
    "ours-float": ours,
    "lorahub": lorahub,
    "bitsandbytes": bitsandbytes,
    "ctranslate2": ctranslate2,
    "int-mm": int_mm,
}


def main() -> None:
    """Measure one contender."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=CONTENDERS)
    for name in ("base", "modules", "task"):
        parser.add_argument(name)
    for name, default in (("threads", 2), ("candidates", 12), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--stack-dtype", default="bf16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    rows = [json.loads(line) for line in Path(options.task).read_text().splitlines()]
    with _UNTIL_EXIT:
        result = _measure(options, rows)
    sys.stdout.write(json.dumps(result) + "\n")


def _measure(options: argparse.Namespace, rows: list[dict[str, str]]) -> dict[str, Any]:
    started = time.perf_counter()
    evaluate = CONTENDERS[options.contender](options, rows)
    load_s = time.perf_counter() - started
    evaluate(1)
    samples, losses = [], []
    for _ in range(options.repeats):
        begun = time.perf_counter()
        losses += evaluate(options.candidates)
        samples.append((time.perf_counter() - begun) / options.candidates)
    result = {"load_s": load_s, "per_candidate_s": samples, "losses": losses, **_memory()}
    return result if options.device == "cpu" else {**result, **_on_the_gpu(evaluate, options.candidates)}


def _on_the_gpu(evaluate: Evaluate, n_candidates: int) -> dict[str, Any]:
    """Peak of its memory, seconds per candidate that it computes, the rest being Python's, and what CUDA graphs did."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    peak = torch.cuda.max_memory_allocated()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        evaluate(n_candidates)
    kernels = [e for e in recorded.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    busy_s = 1e-6 * sum(kernel.self_device_time_total for kernel in kernels) / n_candidates
    facts = getattr(evaluate, "facts", dict)()
    return {"max_memory_allocated_bytes": peak, "gpu_busy_s": busy_s, **facts}


def _memory() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {f"{name}_bytes": int(fields[name].split()[0]) * 1024 for name in ("VmHWM", "RssAnon", "RssFile")}


if __name__ == "__main__":
    main()
