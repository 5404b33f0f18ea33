"""Rope scaling in a GGUF file, as transformers' rope parameters: linear, yarn, and the factors of Llama 3.

llama.cpp stores Llama 3's scaling as one factor per frequency. The parameters that gave them are found again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from lorahub_edge.base.gguf_header import GgufHeader
from lorahub_edge.errors import UnsupportedFormat

ROPE_TENSOR = "rope_freqs.weight"
_PREFIX = "rope.scaling."
# Keys that may be there with the value that changes nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attn_factor": (1.0,),
    "yarn_attn_factor": (1.0,),
    "yarn_ext_factor": (1.0, -1.0),
    "yarn_log_multiplier": (0.0,),
    "finetuned": (True, False),
}
_YARN = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
_TOLERANCE = 1e-5


def rope_scaling(
    header: GgufHeader, said: dict[str, Any], *, head_dim: int, theta: float, context: int
) -> dict[str, Any] | None:
    """What config.json says under `rope_scaling`; None if nothing is scaled.

    Args:
        header: of the file.
        said: the metadata of its architecture; what is about rope scaling is taken out.
        head_dim, theta, context: of the model.

    Raises:
        UnsupportedFormat: a scaling that is not among the above.
    """
    keys = {key.removeprefix(_PREFIX): said.pop(key) for key in list(said) if key.startswith(_PREFIX)}
    kind = keys.pop("type", "none")
    original = keys.pop("original_context_length", context)
    factor = keys.pop("factor", 1.0)
    betas = {name: keys.pop(key) for key, name in _YARN.items() if key in keys}
    unread = [f"{_PREFIX}{key} = {value}" for key, value in keys.items() if value not in _NEUTRAL.get(key, ())]
    if kind not in ("none", "linear", "yarn") or unread or (ROPE_TENSOR in header.tensors and kind != "none"):
        what = unread[0] if unread else f"{_PREFIX}type = {kind}"
        raise UnsupportedFormat(f"{header.path}: rope scaling with {what} is not supported; expected linear or yarn")
    if ROPE_TENSOR in header.tensors:
        return _llama3(header, head_dim, theta)
    if kind == "none" or factor == 1.0:
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **betas}


def _llama3(header: GgufHeader, head_dim: int, theta: float) -> dict[str, Any] | None:
    """The parameters that give the stored factors; several may, and any of them will do."""
    factors = header.values(ROPE_TENSOR).astype(np.float64).reshape(-1)
    if factors.shape != (head_dim // 2,) or not np.isfinite(factors).all():
        raise UnsupportedFormat(f"{header.path}: {ROPE_TENSOR} has {factors.size} factors, expected {head_dim // 2}")
    if np.allclose(factors, 1.0):
        return None
    wavelengths = 2 * math.pi * theta ** (np.arange(head_dim // 2) * 2 / head_dim)
    factor = float(factors.max())
    for low, high in _candidates(factors, wavelengths, factor):
        smooth = np.clip((1 / wavelengths - 1 / low) / (1 / high - 1 / low), 0, 1)
        if np.allclose(1 / ((1 - smooth) / factor + smooth), factors, rtol=_TOLERANCE):
            original = max(1, round(low))
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": _rounded(original / low),
                "high_freq_factor": _rounded(original / high),
                "original_max_position_embeddings": original,
            }
    raise UnsupportedFormat(f"{header.path}: the factors in {ROPE_TENSOR} are not those of Llama 3's rope scaling")


def _candidates(factors: Any, wavelengths: Any, factor: float) -> Iterator[tuple[float, float]]:
    """The wavelengths that the factors suggest: above `low` all is scaled by the factor, below `high` nothing.

    Between them 1/factors is (1 - s)/factor + s with s = (1/wavelength - 1/low) / (1/high - 1/low): a line. Through one
    point go many, of which any that agrees with all factors will do.
    """
    is_scaled, is_whole = factors > 1 + _TOLERANCE, factors > factor * (1 - _TOLERANCE)
    between = wavelengths[is_scaled & ~is_whole]
    smooth = (1 / factors[is_scaled & ~is_whole] - 1 / factor) / (1 - 1 / factor)
    if len(between) > 1:
        slope, offset = np.polyfit(1 / between, smooth, 1)
        yield -slope / offset, slope / (1 - offset)
    elif len(between) == 1:
        for ratio in (*np.geomspace(4, 1.001, 100), *np.geomspace(4, 100, 100)):
            low = between[0] * (1 + (ratio - 1) * smooth[0])
            yield low, low / ratio
    else:
        first = wavelengths[is_scaled].min()
        gap = math.sqrt(first / wavelengths[~is_scaled].max(initial=first / 4))
        yield first / gap**0.5, first / gap**1.5


def _rounded(value: Any) -> float:
    """What was meant by a value that float32 factors give nearly."""
    near = round(float(value), 2)
    return near if math.isclose(near, value, rel_tol=3e-6) and near > 0 else float(value)
