"""Bugs put into copies of the kernels, one at a time: is the harness worth anything? Each has to be found.

A bug is found where fuzz cases fail, the emulator complains, or a sanitizer ends the process.
`make emulate-all` runs them all.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.cuda_on_cpu.build import KINDS, ROOT, build


@dataclass(frozen=True)
class Bug:
    """What is wrong, in which file of csrc/kernels/cuda, and the replacement that makes it so."""

    name: str
    file: str
    right: str
    wrong: str


_COMPOSE, _INJECT, _EPILOGUE, _ROWS = "compose_factors.cu", "inject_rows.cuh", "int8_epilogue.cu", "int8_rows.cu"
_LAYERS, _LINEAR = "inject_layers.cu", "int8_linear.cu"
_REDUCE, _VALUES = "reduce.cuh", "values.cuh"
_BARRIER = "__syncthreads();"
_OLDER = f"{_BARRIER}  // until here others may still read what"
_STORED = "if (c < n_candidates) store_streaming"
_EXACT = "return __fadd_rn(base(r, w), delta[r][w]);"
_FUSED = "return fmaf(widened(codes[r].at[w]), row_scale[r], delta[r][w]);"
_JOINED = "values[i] = join(values[i], __shfl"
_HALF_TO_EVEN = "(bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16"

BUGS = (
    Bug("compose: no barrier after staging", _COMPOSE, f"coefficients);\n  {_BARRIER}", "coefficients);"),
    Bug("compose: later modules forget earlier sums", _COMPOSE, "if (part.first_module > 0)", "if (false)"),
    Bug("compose: wide at any address", _COMPOSE, "wide ? launch_for", "args.block % 4 == 0 ? launch_for"),
    Bug("compose: the next module's scale", _COMPOSE, "k], scales + k)", "k], scales + k + 1)"),
    Bug("compose: one candidate too many is stored", _COMPOSE, _STORED, _STORED.replace("<", "<=")),
    Bug("compose: strides twice as long", _COMPOSE, "chunk += step)", "chunk += 2 * step)"),
    Bug("inject: no barrier before staging", _INJECT, f"{_OLDER} was staged before", ""),
    Bug("inject: no barrier after staging", _INJECT, f"depth);\n      {_BARRIER}", "depth);"),
    Bug("inject: rows behind the last", _INJECT, "first + r < last ? first + r : last", "first + r"),
    Bug("inject: the key of another row", _INJECT, "(args.seed, row)", "(args.seed, row + 1)"),
    Bug("inject: base and delta fused", _INJECT, _EXACT, _FUSED),
    Bug("inject: repeated rows are stored too", _INJECT, "if (!rows.has(r)) continue;", ""),
    Bug("inject: repeated rows report too", _INJECT, "if (rows.has(r)) write", "write"),
    Bug("inject: one k too few", _INJECT, "for (int k = 0; k < depth; ++k) {", "for (int k = 1; k < depth; ++k) {"),
    Bug("inject: columns outside are not zero", _INJECT, "float columns[W] = {};", "float columns[W];"),
    Bug("inject: the table's first layer", _LAYERS, "table.layer_of_group[group]", "0"),
    Bug(
        "inject: a layer is overwritten in use",
        _LAYERS,
        f"{_BARRIER}  // until here others may still read the layer before",
        "",
    ),
    Bug("inject: a layer is read too early", _LAYERS, f"[group]];\n    {_BARRIER}", "[group]];"),
    Bug("linear: does not wait for copies", _LINEAR, "wait_for_copies<kSteps - 2>", "wait_for_copies<kSteps - 1>"),
    Bug("linear: fetches over what is read", _LINEAR, f"{_BARRIER}  // the step is there", "//"),
    Bug("linear: the side path over what is read", _LINEAR, f"      {_OLDER} was in this memory", ""),
    Bug("linear: a tile over what is read", _LINEAR, f"    {_OLDER} was in this memory", ""),
    Bug("linear: chunks in another order", _LINEAR, "(row >> 1 & 3)", "(row & 3 & number)"),
    Bug("linear: the first candidate's B", _LINEAR, "(group * args.out_features + tile", "(tile"),
    Bug("linear: a candidate's row too many", _LINEAR, "Of::row(r) >= end", "Of::row(r) > end"),
    Bug("linear: features behind the last", _LINEAR, "&& feature < in_features", ""),
    Bug("reduce: no barrier before the values", _REDUCE, f"{_OLDER} an earlier call left", ""),
    Bug("reduce: no barrier after the values", _REDUCE, f"  }}\n  {_BARRIER}\n", "  }\n"),
    Bug("reduce: one warp left out", _REDUCE, "warp < kWarps; ++warp", "warp < kWarps - 1; ++warp"),
    Bug("reduce: distance 1 left out", _REDUCE, "distance > 0; distance /= 2", "distance > 1; distance /= 2"),
    Bug("reduce: a thread leaves out shuffles", _REDUCE, _JOINED, f"if (threadIdx.x != 5) {_JOINED}"),
    Bug("epilogue: no barrier before staging", _EPILOGUE, f"{_OLDER} was staged before", ""),
    Bug("epilogue: no barrier after staging", _EPILOGUE, f"depth);\n      {_BARRIER}", "depth);"),
    Bug(
        "epilogue: a barrier only for some",
        _EPILOGUE,
        f"{_BARRIER}\n      add",
        f"if (part.n_rows > 0) {_BARRIER}\n add",
    ),
    Bug("epilogue: a column too many", _EPILOGUE, "W < tile.n_columns", "W <= tile.n_columns"),
    Bug("epilogue: B of the first group", _EPILOGUE, "tile.group * args.out_features + tile", "tile"),
    Bug("epilogue: a row of side too many", _EPILOGUE, "row < tile.n_rows ?", "row <= tile.n_rows ?"),
    Bug("epilogue: rows of side left unwritten", _EPILOGUE, "i < n_rows * kDepth", "i < tile.n_rows * kDepth"),
    Bug("quantize: a column too many", _ROWS, "column < n_columns;", "column <= n_columns;"),
    Bug("dequantize: the first row's scale", _ROWS, "__ldg(args.row_scale + row)", "__ldg(args.row_scale)"),
    Bug("bfloat16: half up", _VALUES, _HALF_TO_EVEN, "(bits + 0x8000u) >> 16"),
)

# The fuzz cases that a file's kernels take part in; all where none are named.
_CASES = {
    _COMPOSE: "compose", _INJECT: "inject", _LAYERS: "inject_layers", _LINEAR: "linear", _EPILOGUE: "epilogue",
    _ROWS: "rows", _REDUCE: "inject,rows",
}  # fmt: skip

# A kind of build, its library and the fuzz cases -> exit status and output of a fuzz until the first failure.
Fuzz = Callable[[str, Path, str], tuple[int, str]]


def planted(bug: Bug, folder: Path) -> Path:
    """A copy of csrc with the bug.

    Raises:
        ValueError: the file has no such place any more.
    """
    csrc = folder / "csrc"
    shutil.rmtree(csrc, ignore_errors=True)
    shutil.copytree(ROOT / "csrc", csrc)
    path = csrc / "kernels/cuda" / bug.file
    text = path.read_text()
    if bug.right not in text:
        raise ValueError(f"{bug.name}: expected {bug.right!r} in {bug.file}; the kernel has changed, so plant anew")
    path.write_text(text.replace(bug.right, bug.wrong, 1))
    return csrc


def findings(bug: Bug, folder: Path, fuzz: Fuzz) -> dict[str, str]:
    """What each kind of build finds of a bug: a line, or nothing."""
    libraries = build(folder, csrc=planted(bug, folder / "planted"))
    cases = _CASES.get(bug.file, "")
    with ThreadPoolExecutor(len(KINDS)) as pool:
        outcomes = dict(zip(KINDS, pool.map(lambda kind: fuzz(kind, libraries[kind], cases), KINDS), strict=True))
    return {kind: _summary(*outcome) for kind, outcome in outcomes.items()}


def _summary(status: int, output: str) -> str:
    """What was found, in the fuzz's, the emulator's and the sanitizers' words; other failures do not count."""
    found = re.findall(r"^cuda_on_cpu: ([^:]+)", output, re.M)
    found += re.findall(r"AddressSanitizer: ([\w-]+)", output)
    found += ["undefined behaviour"] * ("runtime error: " in output)
    found += ["wrong results"] * bool(re.search(r"^case \d+, (?!.*complaints)", output, re.M))
    found += [f"ended by signal {-status}"] * (status < 0)
    return ", ".join(dict.fromkeys(found)) if status else ""
