"""verify: onnxruntime's answers beside those of our torch model, case by case.

Logits are compared by norm(difference) / norm(logits - their mean), all answer tokens in one call and token by token
through the cache. Greedy answers must agree token for token. Only where the two candidates' logits are closer together
than the tolerance can tell, the other token is a tie; ties are counted and reported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from lorahub_edge.errors import LorahubEdgeError, UnsupportedFormat
from lorahub_edge.serve import OnnxModel
from lorahub_edge.serve.folder import REFERENCE, VERIFICATION, open_folder
from lorahub_edge.sources import write_text_atomically

# fp32 and fp16: sums in another order (fp16 is how weights are stored; the reference computes with the same weights).
# int8: inputs of layers are rounded to whole steps, so a difference in the last bit of a float can move a code by one,
# and the next layers do the same with what comes out: two right computations differ by as much as the rounding itself,
# about 1 % a layer.
TOLERANCES = {"fp32": 1e-3, "fp16": 1e-3, "int8": 0.15}


class VerificationFailed(LorahubEdgeError):
    """The ONNX folder does not answer as the torch model does. Carries the report as `report`."""

    def __init__(self, message: str, report: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.report = report


@dataclass(frozen=True)
class CaseResult:
    """One case.

    Attributes:
        kind: "example", "examples in one batch" or "random".
        batch_size, n_prompt_tokens: the longest prompt's length.
        logits_error: relative error over the whole answer in one call.
        cached_error: the same token by token.
        n_tokens: greedy tokens compared.
        ties: answers that part where torch's two candidates are as good as equal.
        mismatches: answers that part elsewhere.
    """

    kind: str
    batch_size: int
    n_prompt_tokens: int
    logits_error: float
    cached_error: float
    n_tokens: int
    ties: int
    mismatches: int


def verify(folder: str | Path) -> dict[str, Any]:
    """Check an exported folder against the reference in it, and write verification.json there.

    Returns:
        The report: "passed", "tolerance", counts, and every case.

    Raises:
        VerificationFailed: a logit or an answer differs; the report is in the folder all the same.
        InvalidInput, UnsupportedFormat: not an export, or one that cannot be loaded.
    """
    report = compare(Path(folder).expanduser())
    write_text_atomically(Path(folder).expanduser() / VERIFICATION, json.dumps(report, indent=2) + "\n")
    if not report["passed"]:
        raise VerificationFailed(f"{folder}: {headline(report)}; see {VERIFICATION}", report)
    return report


def compare(folder: Path) -> dict[str, Any]:
    """The report of `verify`, without writing it."""
    files = open_folder(folder)
    arrays = _read_reference(folder)
    model = OnnxModel(files)
    tolerance = TOLERANCES[files.record["precision"]]
    results = []
    for number in range(sum(name.endswith(".kind") for name in arrays)):
        results.append(_compare_case(model, {k: arrays[f"{number}.{k}"] for k in _CASE_FIELDS}, tolerance))
    worst = max(max(r.logits_error, r.cached_error) for r in results)
    mismatches = sum(r.mismatches for r in results)
    return {
        "passed": bool(worst <= tolerance and mismatches == 0),
        "tolerance": tolerance,
        "worst_logits_error": worst,
        "n_answers": sum(r.batch_size for r in results),
        "n_tokens": sum(r.n_tokens for r in results),
        "ties": sum(r.ties for r in results),
        "mismatches": mismatches,
        "onnxruntime": onnxruntime.__version__,
        "cases": [asdict(r) for r in results],
    }


def headline(report: Mapping[str, Any]) -> str:
    """The report in one line."""
    verdict = "verified" if report["passed"] else "verification failed"
    ties = f", {report['ties']} parting at a tie" if report["ties"] else ""
    n_same = report["n_answers"] - report["mismatches"] - report["ties"]
    return (
        f"{verdict}: logits within {report['worst_logits_error']:.2g} of the torch model "
        f"(allowed {report['tolerance']:g}), {n_same} of {report['n_answers']} greedy answers the same "
        f"token for token{ties}"
    )


_CASE_FIELDS = ("kind", "prompts", "prefix", "logits", "greedy")


def _read_reference(folder: Path) -> dict[str, NDArray[Any]]:
    path = folder / REFERENCE
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        cases = [name for name in found if name.endswith(".kind")]
        complete = cases and all(f"{n}.{field}" in found for n in range(len(cases)) for field in _CASE_FIELDS)
    except Exception as error:  # numpy raises whatever a broken archive makes it stumble over
        raise UnsupportedFormat(f"{path}: cannot be read ({error}); export again") from error
    if not complete:
        raise UnsupportedFormat(f"{path}: holds no whole case; export again")
    return found


def _compare_case(model: OnnxModel, case: Mapping[str, NDArray[Any]], tolerance: float) -> CaseResult:
    prompts = [row[row >= 0].tolist() for row in case["prompts"]]
    prefix, expected = case["prefix"], case["logits"]
    _, together = model.begin(prompts, prefix)
    state, first = model.begin(prompts)
    parts = [first] + [model.step(state, prefix[:, k : k + 1]) for k in range(prefix.shape[1])]
    greedy = [row[row >= 0] for row in case["greedy"]]
    ties = mismatches = 0
    for row, wanted in enumerate(greedy):
        outcome = _same_answer(model, prompts[row], wanted, tolerance, spread=float(expected[row].std()))
        ties += outcome == "tie"
        mismatches += outcome == "mismatch"
    return CaseResult(
        str(case["kind"]),
        len(prompts),
        max(map(len, prompts)),
        _relative_error(together, expected),
        _relative_error(np.concatenate(parts, 1), expected),
        sum(map(len, greedy)),
        ties,
        mismatches,
    )


def _same_answer(
    model: OnnxModel, prompt: list[int], wanted: NDArray[np.int64], tolerance: float, *, spread: float
) -> str:
    """ "same", "tie" or "mismatch": onnxruntime's greedy choice behind each token of torch's greedy answer.

    At a tie onnxruntime's logits for both tokens differ by less than the tolerance allows two logits to move.
    """
    _, logits = model.begin([prompt], wanted[None, :-1])
    for place, token in enumerate(wanted):
        chosen = logits[0, place].argmax()
        if chosen != token:
            margin = float(logits[0, place, chosen] - logits[0, place, token])
            return "tie" if margin <= 2 * tolerance * spread else "mismatch"
    return "same"


def _relative_error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest of the rows', NaN counted as infinite."""
    if found.shape != expected.shape:
        return float("inf")
    off = np.linalg.norm((found - expected).astype(np.float64), axis=-1)
    scale = np.linalg.norm((expected - expected.mean(-1, keepdims=True)).astype(np.float64), axis=-1)
    worst = float(np.nan_to_num(off / np.maximum(scale, 1e-30), nan=np.inf, posinf=np.inf).max())
    return worst
