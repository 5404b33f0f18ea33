"""verify: onnxruntime's answers beside those of our torch model, case by case.

Logits are compared with what the stored weights mean, no layer's input rounded, by norm(difference) / norm(logits -
their mean): all answer tokens in one call and token by token through the cache. onnxruntime may be no farther from them
than torch is when it rounds the same inputs; that distance, the noise, was measured at export and is in the reference.
Greedy answers must agree token for token. Only where the two candidates' logits are closer together than the tolerance
can tell, the other token is a tie; ties are counted and reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from lorahub_edge.errors import LorahubEdgeError, UnsupportedFormat
from lorahub_edge.exporting.adapters import adapter_names, adapter_paths, check_adapters
from lorahub_edge.exporting.reference import relative_errors
from lorahub_edge.integrity import check_files
from lorahub_edge.json_text import to_json
from lorahub_edge.outputs import write_text
from lorahub_edge.serve import ExportFolder, OnnxModel
from lorahub_edge.serve.adapter import NO_ADAPTER
from lorahub_edge.serve.folder import REFERENCE, VERIFICATION, open_folder, read_record
from lorahub_edge.sources import local_path

# What is left where no input is rounded: float32 sums in another order. Measured: up to 4e-5.
FLOAT_TOLERANCE = 1e-3
# onnxruntime rounds the same values as torch, but where the two differ in the last bit of a float some fall on the
# other side, so its distance from the exact logits is another sample of the same noise. The ratio of the two, averaged
# over all positions, is near 1 for a right graph, whatever the model (0.94 to 1.11 were seen); a graph that is off adds
# its own error everywhere. The worst position is a sample of its own and may differ more. Figures: docs/log.md.
MAX_RATIO, WORST_FACTOR = 1.4, 2.0
# Where answers part, two logits of each side are off by the noise: their difference has twice its spread. Three of
# those.
TIE_FACTOR = 6.0


class VerificationFailed(LorahubEdgeError):
    """The ONNX folder does not answer as the torch model does. Carries the report as `report`."""

    def __init__(self, message: str, report: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.report = report


@dataclass(frozen=True)
class CaseResult:
    """One case.

    Attributes:
        adapter: the module beside the base, or None.
        kind: "example", "examples in one batch" or "random".
        batch_size, n_prompt_tokens: the longest prompt's length.
        logits_error: largest relative error of a position's logits, the whole answer in one call.
        cached_error: the same token by token.
        noise: the same of torch with inputs rounded.
        n_tokens: greedy tokens compared.
        ties: answers that part where torch's two candidates are as good as equal.
        mismatches: answers that part elsewhere.
    """

    adapter: str | None
    kind: str
    batch_size: int
    n_prompt_tokens: int
    logits_error: float
    cached_error: float
    noise: float
    n_tokens: int
    ties: int
    mismatches: int


@dataclass(frozen=True)
class ModelResult:
    """All cases of the base alone or with one adapter, by relative errors of single positions' logits.

    Attributes:
        adapter: the module beside the base, or None.
        ratio: geometric mean of error / noise, FLOAT_TOLERANCE added to both.
        median_error, median_noise: of onnxruntime and of torch.
        worst_error, worst_noise: the largest.
    """

    adapter: str | None
    ratio: float
    median_error: float
    median_noise: float
    worst_error: float
    worst_noise: float

    @classmethod
    def of(cls, adapter: str | None, error: NDArray[np.float64], noise: NDArray[np.float64]) -> ModelResult:
        """From the errors of all positions, (n,) each."""
        with np.errstate(over="ignore"):
            ratio = np.exp(np.mean(np.log(error + FLOAT_TOLERANCE) - np.log(noise + FLOAT_TOLERANCE)))
        values = (ratio, np.median(error), np.median(noise), error.max(), noise.max())
        return cls(adapter, *map(float, values))

    @property
    def is_near(self) -> bool:
        """Whether onnxruntime is as near to the exact logits as torch is."""
        return self.ratio <= MAX_RATIO and self.worst_error <= FLOAT_TOLERANCE + WORST_FACTOR * self.worst_noise


def verify(folder: str | Path) -> dict[str, Any]:
    """Check an exported folder's files against their hashes and its answers against the reference in it.

    The report is written to verification.json there.

    Returns:
        The report: "passed", counts, every model (the base, each adapter) and every case.

    Raises:
        VerificationFailed: a logit or an answer differs; the report is in the folder all the same.
        InvalidInput, UnsupportedFormat: not an export, one that cannot be loaded, or a file that is not what was
            exported; nothing is written.
    """
    folder = local_path(folder)
    check_export(folder)
    report = compare(folder)
    write_text(folder / VERIFICATION, to_json(report) + "\n")
    if not report["passed"]:
        raise VerificationFailed(f"{folder}: {headline(report)}; see {VERIFICATION}", report)
    return report


def check_export(folder: Path) -> dict[str, Any]:
    """Compare all files of an exported folder with their hashes, before anything slow; returns its record.

    Raises:
        InvalidInput, UnsupportedFormat: see `verify`.
    """
    record = read_record(folder)
    check_files(folder, record["files"], "exported")
    if record.get("adapter") is not None:
        check_adapters(folder, record)
    return record


def compare(folder: Path) -> dict[str, Any]:
    """The report of `verify`, without writing it: the base, then each adapter beside it. Hashes are left aside."""
    names = adapter_names(folder)
    checks = [_compare_all(open_folder(folder, adapter=NO_ADAPTER, is_checked=True), folder / REFERENCE)]
    for name in names:
        path, reference = adapter_paths(folder, name)
        checks.append(_compare_all(open_folder(folder, adapter=path, is_checked=True), reference))
    models, cases = [model for model, _ in checks], [case for _, cases in checks for case in cases]
    mismatches = sum(case.mismatches for case in cases)
    return {
        "passed": mismatches == 0 and all(model.is_near for model in models),
        "n_answers": sum(case.batch_size for case in cases),
        "n_tokens": sum(case.n_tokens for case in cases),
        "ties": sum(case.ties for case in cases),
        "mismatches": mismatches,
        "onnxruntime": onnxruntime.__version__,
        "models": [asdict(model) for model in models],
        "cases": [asdict(case) for case in cases],
    }


def headline(report: Mapping[str, Any]) -> str:
    """The report in one line."""
    verdict = "verified" if report["passed"] else "verification failed"
    ties = f", {report['ties']} parting at a tie" if report["ties"] else ""
    n_same = report["n_answers"] - report["mismatches"] - report["ties"]
    model = max(report["models"], key=lambda model: model["ratio"])
    return (
        f"{verdict}: logits {model['median_error']:.2g} from what the weights mean, at worst "
        f"{model['worst_error']:.2g} (torch with inputs rounded alike: {model['median_noise']:.2g}, "
        f"{model['worst_noise']:.2g}; ratio {model['ratio']:.2f}, allowed {MAX_RATIO:g}), "
        f"{n_same} of {report['n_answers']} greedy answers the same token for token{ties}"
    )


def _compare_all(files: ExportFolder, path: Path) -> tuple[ModelResult, list[CaseResult]]:
    arrays = _read_reference(path)
    model = OnnxModel(files)
    cases = [
        {field: arrays[f"{number}.{field}"] for field in _CASE_FIELDS}
        for number in range(sum(name.endswith(".kind") for name in arrays))
    ]
    name = None if files.adapter is None else files.adapter.name
    try:
        compared = [_compare_case(model, case) for case in cases]
        errors = np.concatenate([errors for _, errors in compared])
        noise = np.concatenate([np.tile(case["noise"].ravel(), 2) for case in cases])
        return ModelResult.of(name, errors, noise), [result for result, _ in compared]
    except Exception as error:  # numpy and onnxruntime raise whatever arrays of another kind make them stumble over
        raise UnsupportedFormat(f"{path}: does not fit the exported model ({error}); export again") from error


_CASE_FIELDS = ("kind", "prompts", "prefix", "logits", "noise", "greedy")


def _read_reference(path: Path) -> dict[str, NDArray[Any]]:
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


def _compare_case(model: OnnxModel, case: Mapping[str, NDArray[Any]]) -> tuple[CaseResult, NDArray[np.float64]]:
    """The result, and the errors of all positions: in one call, then through the cache."""
    prompts = [row[row >= 0].tolist() for row in case["prompts"]]
    prefix, expected = case["prefix"], case["logits"]
    _, together = model.begin(prompts, prefix)
    state, first = model.begin(prompts)
    parts = [first] + [model.step(state, prefix[:, k : k + 1]) for k in range(prefix.shape[1])]
    at_once, cached = _errors(together, expected), _errors(np.concatenate(parts, 1), expected)
    greedy = [row[row >= 0] for row in case["greedy"]]
    spread = expected.std(-1).mean(-1)
    margins = (FLOAT_TOLERANCE + TIE_FACTOR * np.sqrt(np.mean(case["noise"] ** 2, -1))) * spread
    outcomes = [
        _same_answer(model, prompt, wanted, margin)
        for prompt, wanted, margin in zip(prompts, greedy, margins.tolist(), strict=True)
    ]
    result = CaseResult(
        None if model.files.adapter is None else model.files.adapter.name,
        str(case["kind"]),
        len(prompts),
        max(map(len, prompts)),
        float(at_once.max()),
        float(cached.max()),
        float(case["noise"].max()),
        sum(map(len, greedy)),
        outcomes.count("tie"),
        outcomes.count("mismatch"),
    )
    return result, np.concatenate([at_once.ravel(), cached.ravel()])


def _same_answer(model: OnnxModel, prompt: list[int], wanted: NDArray[np.int64], tie_margin: float) -> str:
    """ "same", "tie" or "mismatch": onnxruntime's greedy choice behind each token of torch's greedy answer.

    At a tie onnxruntime's logits for both tokens differ by at most `tie_margin`.
    """
    _, logits = model.begin([prompt], wanted[None, :-1])
    for place, token in enumerate(wanted):
        chosen = logits[0, place].argmax()
        if chosen != token:
            margin = float(logits[0, place, chosen] - logits[0, place, token])
            return "tie" if margin <= tie_margin else "mismatch"
    return "same"


def _errors(found: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float64]:
    if found.shape != expected.shape:
        return np.full(expected.shape[:-1], np.inf)
    return relative_errors(found, expected)
