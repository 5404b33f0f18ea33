"""Factors of less rank: what adds nothing is left out, and on request the smallest singular values.

The full matrix of a delta is never formed: both factors are brought to orthogonal columns, and what is left between
them is as small as the rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from lorahub_edge.modules.files import LoraFactors, LoraModule


@dataclass(frozen=True)
class RankCut:
    """What a cut has done.

    Attributes:
        rank: the largest that was asked for.
        rank_before: the largest among the targets before.
        relative_error: Frobenius norm of what was cut from all deltas over that of the deltas.
    """

    rank: int
    rank_before: int
    relative_error: float


def cut_rank(module: LoraModule, rank: int) -> tuple[LoraModule, RankCut]:
    """The best approximation of every target's delta by a rank, and how good it is. Smaller ranks stay as they are.

    Args:
        rank: at least 1.
    """
    cut = {target: truncated(factors, rank) for target, factors in module.factors.items()}
    lost = sum(lost_square for _, lost_square in cut.values())
    whole = sum(_delta_square(factors) for factors in module.factors.values())
    before = max(factors.rank for factors in module.factors.values())
    error = math.sqrt(lost / whole) if whole > 0 else 0.0
    return replace(module, factors={t: factors for t, (factors, _) in cut.items()}), RankCut(rank, before, error)


def truncated(factors: LoraFactors, rank: int) -> tuple[LoraFactors, float]:
    """The best factors of a rank for this delta, and the square of the Frobenius norm that they lack.

    A and B share the singular values evenly. Computed in float64.

    Cost: QR of both factors, and an SVD of rank x rank.
    """
    if factors.rank <= rank:
        return factors, 0.0
    A_base, A_rest = torch.linalg.qr(factors.A.cpu().double().T)
    B_base, B_rest = torch.linalg.qr(factors.B.cpu().double())
    U, singular, V_t = torch.linalg.svd(B_rest @ A_rest.T, full_matrices=False)
    root = singular[:rank].sqrt()
    B = B_base @ (U[:, :rank] * root)
    A = (root[:, None] * V_t[:rank]) @ A_base.T
    lost = float((factors.scaling * singular[rank:]).square().sum())
    return LoraFactors(A.float(), B.float(), factors.scaling), lost


def without_idle_ranks(factors: LoraFactors) -> LoraFactors:
    """The same delta, on the CPU, by as few ranks as that takes without loss; one of zeros if it is zero.

    Ranks with a row of zeros in A or a column of zeros in B go. More than the layer has rows or columns are more than
    any matrix of its shape has: they are brought down to that, equal up to rounding.
    """
    A, B = factors.A.cpu(), factors.B.cpu()
    busy = (A != 0).any(dim=1) & (B != 0).any(dim=0)
    if not busy.any():
        return LoraFactors(torch.zeros_like(A[:1]), torch.zeros_like(B[:, :1]), factors.scaling)
    kept = LoraFactors(A[busy], B[:, busy].contiguous(), factors.scaling)
    return truncated(kept, min(A.shape[1], B.shape[0]))[0]


def _delta_square(factors: LoraFactors) -> float:
    """Square of the delta's Frobenius norm: trace of (B.T @ B) @ (A @ A.T)."""
    A, B = factors.A.cpu().double(), factors.B.cpu().double()
    return float(factors.scaling**2 * ((B.T @ B) * (A @ A.T)).sum())
