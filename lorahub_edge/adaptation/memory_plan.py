"""What a run will need in memory, known before any weight is read, and how to make it fit a budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lorahub_edge.adaptation.buckets import CallLimits, bucket_rows, n_tokens
from lorahub_edge.adaptation.graphs import graphs_on
from lorahub_edge.adaptation.lanes import n_lanes
from lorahub_edge.adaptation.sizes import FactorSizes, ModelSizes
from lorahub_edge.base import Base, OpenBase
from lorahub_edge.errors import LorahubEdgeError
from lorahub_edge.measure import format_bytes, resident_bytes
from lorahub_edge.modules import StackLayout
from lorahub_edge.tasks import EncodedExample
from lorahub_edge.tasks.lengths import TOKENS_PER_CALL

# Shares of TOKENS_PER_CALL that a plan may go down to: below, products are too thin for the hardware.
_SMALLER_CALLS = (1, 4)

# What the first forward adds to the libraries' share on a CPU: torch's code, and buffers that its products keep.
# Without it runs on four shapes took 21 to 29 MB more than planned (docs/log.md).
_FIRST_FORWARD_BYTES = 24 << 20


class MemoryExceeded(LorahubEdgeError):
    """A run needs more memory than it may take: caught by who can choose fewer modules or another machine."""


@dataclass(frozen=True)
class Workload:
    """What decides the workspace, apart from the base and the modules.

    Attributes:
        examples: encoded; the search reads them.
        tested_tokens: of the longest test row with its answer; 0 without a test.
        evaluate_by: the route of a candidate, see population.py.
        composition: see `ModuleStack`.
    """

    examples: Sequence[EncodedExample]
    tested_tokens: int = 0
    evaluate_by: str = "side"
    composition: str = "factors"


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes a run will need at its peak, and the choices that lead there.

    Attributes:
        device: whose memory is planned: "cpu" or "cuda".
        runtime_bytes: Python and its libraries (0 on CUDA, where they lie elsewhere).
        base_bytes, stack_bytes, workspace_bytes: the frozen base; the modules; composed factors, activations, logits
            and caches of what is computed at once, and the module that a run composes in the end.
        stack_dtype: "fp32", "bf16" or "int8".
        mapping: "resident", or "mmap": the stack's pages may leave memory, and are read again from disk.
        tokens_per_call: bound on the tokens that are computed at once, in all lanes.
        budget_bytes: what may be used; None for all there is.
    """

    device: str
    runtime_bytes: int
    base_bytes: int
    stack_bytes: int
    workspace_bytes: int
    stack_dtype: str
    mapping: str
    tokens_per_call: int
    budget_bytes: int | None = None

    @property
    def peak_bytes(self) -> int:
        """All parts together."""
        return self.runtime_bytes + self.base_bytes + self.stack_bytes + self.workspace_bytes

    @property
    def needed_bytes(self) -> int:
        """What must be there at once: the peak, without a stack whose pages may leave."""
        return self.peak_bytes - (self.stack_bytes if self.mapping == "mmap" else 0)

    @property
    def fits(self) -> bool:
        """Whether the budget, if there is one, covers what must be there at once."""
        return self.budget_bytes is None or self.needed_bytes <= self.budget_bytes

    def headline(self) -> str:
        """The verdict, in one line."""
        needs = f"needs {format_bytes(self.needed_bytes)}"
        if self.device == "cuda":
            needs += " on the GPU, beside what CUDA itself takes"
        if self.budget_bytes is None:
            return needs
        budget = format_bytes(self.budget_bytes)
        if self.fits:
            return f"fits {budget}: {needs}"
        return f"does not fit {budget}: {self.advice()}"

    def advice(self) -> str:
        """What to do about too little memory, in one line."""
        need = f"at least {format_bytes(self.needed_bytes)} is needed"
        if self.runtime_bytes + self.base_bytes > (self.budget_bytes or 0):
            return f"{need}, of which the base alone takes {format_bytes(self.base_bytes)}: use a smaller base"
        return (
            f"{need}: use fewer modules, shorter inputs (--max-input-tokens), or a cache, from which modules are mapped"
        )

    def as_record(self) -> dict[str, Any]:
        """For the manifest and --json."""
        return {**dataclasses.asdict(self), "peak_bytes": self.peak_bytes, "fits": self.fits}


def memory_plans(
    base: Base | OpenBase,
    layout: StackLayout,
    workload: Workload,
    *,
    budget_bytes: int | None = None,
    stack_dtype: str | None = None,
    can_map: bool = False,
) -> list[MemoryPlan]:
    """All plans, that which gives up least first.

    In this order: values of the modules as float32, bfloat16, int8; smaller calls; the stack mapped.

    Args:
        base: opened or loaded.
        layout: of the modules.
        workload: of the examples.
        budget_bytes: at least 1, or None.
        stack_dtype: leave no choice of it.
        can_map: whether the stack can be mapped from a cache.
    """
    choices = _choices(base.device.type, stack_dtype, can_map)
    return [_plan(base, layout, workload, budget_bytes, *choice) for choice in choices]


def choose_plan(plans: Sequence[MemoryPlan]) -> MemoryPlan:
    """The first that fits; if none does, the most frugal one."""
    return next((plan for plan in plans if plan.fits), min(plans, key=lambda plan: plan.needed_bytes))


def _choices(device: str, stack_dtype: str | None, can_map: bool) -> Iterator[tuple[str, str, int]]:
    """dtype, mapping and tokens at once, best first."""
    dtypes = (stack_dtype,) if stack_dtype else ("fp32", "bf16", "int8")
    for mapping in ("resident", "mmap") if can_map else ("resident",):
        for share in _SMALLER_CALLS:
            for dtype in dtypes:
                yield dtype, mapping, TOKENS_PER_CALL[device] // share


def _plan(
    base: Base | OpenBase,
    layout: StackLayout,
    workload: Workload,
    budget_bytes: int | None,
    dtype: str,
    mapping: str,
    tokens_per_call: int,
) -> MemoryPlan:
    device = base.device.type
    return MemoryPlan(
        device=device,
        runtime_bytes=resident_bytes() + _FIRST_FORWARD_BYTES if device == "cpu" else 0,
        base_bytes=base.weight_bytes(),
        stack_bytes=layout.n_bytes(dtype),
        workspace_bytes=_workspace_bytes(base, layout, workload, tokens_per_call),
        stack_dtype=dtype,
        mapping=mapping,
        tokens_per_call=tokens_per_call,
        budget_bytes=budget_bytes,
    )


def _workspace_bytes(base: Base | OpenBase, layout: StackLayout, workload: Workload, tokens_per_call: int) -> int:
    """Of the larger of the search's calls, one per lane, and those of the test.

    Beside them lies, in the CPU's memory, the composed module: it is there already when the null control searches.
    """
    factors = FactorSizes.of(layout, workload.composition, base.compute_dtype)
    sizes = ModelSizes.of(base)
    lanes = n_lanes(base.device.type, tokens_per_call, workload.evaluate_by)
    limits = CallLimits.on(base.device.type, tokens_per_call, n_lanes=lanes)
    groups = bucket_rows(workload.examples, limits, is_seq2seq=base.family.is_seq2seq)
    graphs = graphs_on(base.device.type, workload.evaluate_by, workload.composition)
    n_kept = 1 if graphs is None else 2  # a recording, and what is launched
    calls = ([workload.examples[row] for row in rows] for rows in groups)
    search = lanes * max(_call_bytes(examples, sizes, factors, limits, n_kept) for examples in calls)
    if workload.evaluate_by == "inject":
        search += sum(t.out_features * t.in_features for t in layout.targets)
    tested = max(tokens_per_call, workload.tested_tokens) if workload.tested_tokens else 0
    per_token = sizes.activation_bytes + sizes.cache_bytes + factors.inner_bytes
    test = factors.composed_bytes + tested * per_token + sizes.padded_bytes * workload.tested_tokens**2
    return max(search, test) + factors.shared_bytes + (factors.module_bytes if base.device.type == "cpu" else 0)


def _call_bytes(
    examples: Sequence[EncodedExample], sizes: ModelSizes, factors: FactorSizes, limits: CallLimits, n_kept: int
) -> int:
    """Of one call, with what is computed from its factors kept n_kept times."""
    n_rows = sum(map(n_tokens, examples))
    n_candidates = limits.n_candidates(n_rows, factors.composed_bytes // 4)
    composed = factors.composed_bytes * n_candidates
    B = composed // 2 if n_candidates > 1 else 0  # once more, without gaps where candidates are several
    logits = 2 * 4 * sizes.vocab * n_candidates * sum(len(e.target_ids) for e in examples)
    longest = max(map(n_tokens, examples))
    rows = n_candidates * n_rows * (sizes.activation_bytes + factors.inner_bytes)
    cast = factors.cast_bytes * n_candidates
    return composed + n_kept * (B + cast + logits + rows + sizes.pair_bytes * longest**2)


def check_budget(plan: MemoryPlan) -> None:
    """Refuse a plan that does not fit.

    Raises:
        MemoryExceeded: with the numbers and the plan's advice.
    """
    if not plan.fits:
        raise MemoryExceeded(f"max_memory: the run {plan.headline()}")


def check_use(plan: MemoryPlan) -> None:
    """Stop a run that has left its budget before the system does.

    Raises:
        MemoryExceeded: says what was planned and what is used.
    """
    if plan.budget_bytes is None or plan.device != "cpu":
        return
    used = resident_bytes() - (plan.stack_bytes if plan.mapping == "mmap" else 0)
    if used > plan.budget_bytes:
        raise MemoryExceeded(
            f"max_memory: {format_bytes(used)} are in use, {format_bytes(plan.budget_bytes)} are allowed and "
            f"{format_bytes(plan.peak_bytes)} were planned; {plan.advice()}"
        )


@contextmanager
def memory_errors(plan: MemoryPlan) -> Iterator[None]:
    """An allocation that fails becomes an error that says what would help.

    Raises:
        MemoryExceeded: in place of MemoryError, torch's own, and the RuntimeError of torch's CPU allocator.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _exhausted(plan) from error
    except RuntimeError as error:
        if "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        raise _exhausted(plan) from error


def _exhausted(plan: MemoryPlan) -> MemoryExceeded:
    planned = format_bytes(plan.peak_bytes)
    return MemoryExceeded(
        f"the system has no more memory; {planned} were planned; give what there is as max_memory; {plan.advice()}"
    )
