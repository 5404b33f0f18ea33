"""Where each target's factors lie in the stack, decided from the modules' shapes alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lorahub_edge.errors import IncompatibleModules
from lorahub_edge.modules.files import LoraModule

BLOCK = 128

# Name -> how values are stored. int8 has one float32 scale per block and module beside its codes.
STACK_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}


@dataclass(frozen=True)
class Target:
    """Where one target's factors lie in a row of the stack.

    Attributes:
        name: module path in the base.
        rank: the largest rank among the modules.
        scaling: common to all modules of this target.
        a_offset, b_offset: first value of A (rank * in_features) and of B (out_features * rank) in a row; multiples
            of BLOCK.
    """

    name: str
    rank: int
    in_features: int
    out_features: int
    scaling: float
    a_offset: int
    b_offset: int

    @property
    def a_blocks(self) -> slice:
        """The blocks of a row that hold A."""
        return slice(self.a_offset // BLOCK, n_blocks_for(self.a_offset + self.rank * self.in_features))

    @property
    def b_blocks(self) -> slice:
        """The blocks of a row that hold B."""
        return slice(self.b_offset // BLOCK, n_blocks_for(self.b_offset + self.rank * self.out_features))

    def A(self, rows: torch.Tensor) -> torch.Tensor:
        """View of the A factors: (n, values) -> (n, rank, in_features)."""
        stop = self.a_offset + self.rank * self.in_features
        return rows[:, self.a_offset : stop].view(-1, self.rank, self.in_features)

    def B(self, rows: torch.Tensor) -> torch.Tensor:
        """View of the B factors: (n, values) -> (n, out_features, rank)."""
        stop = self.b_offset + self.rank * self.out_features
        return rows[:, self.b_offset : stop].view(-1, self.out_features, self.rank)


@dataclass(frozen=True)
class StackLayout:
    """The shape of a stack.

    Attributes:
        names: module names, row order.
        targets: every target that any module changes, in the base's order.
    """

    names: tuple[str, ...]
    targets: tuple[Target, ...]

    @classmethod
    def of(cls, modules: Sequence[LoraModule], linear_shapes: Mapping[str, tuple[int, int]], base: str) -> StackLayout:
        """Check the modules, or outlines of them, against a base's linear layers, and find each target a place.

        Args:
            modules: at least one.
            linear_shapes: see `Base.linear_shapes`.
            base: the base's name, for messages.

        Raises:
            IncompatibleModules: no modules, a name twice, or a module for another base: names module and target.
        """
        _check(modules, linear_shapes, base)
        return cls(tuple(m.name for m in modules), tuple(_places(modules, linear_shapes)))

    @property
    def n_blocks(self) -> int:
        """Blocks of BLOCK values in a row."""
        return self.targets[-1].b_blocks.stop if self.targets else 0

    def n_bytes(self, dtype: str) -> int:
        """Of a stack of this layout stored as one of STACK_DTYPES."""
        n_blocks = self.n_blocks * len(self.names)
        scales = 4 * n_blocks if dtype == "int8" else 0
        return int(n_blocks * BLOCK * STACK_DTYPES[dtype].itemsize + scales)

    def of_any(self, n: int) -> StackLayout:
        """A layout at least as large as that of any n of these modules: all targets, at their largest rank."""
        return dataclasses.replace(self, names=self.names[:n])

    def as_record(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> StackLayout:
        """What `as_record` wrote."""
        return cls(tuple(record["names"]), tuple(Target(**target) for target in record["targets"]))


def _check(modules: Sequence[LoraModule], shapes: Mapping[str, tuple[int, int]], base: str) -> None:
    if not modules:
        raise IncompatibleModules("no LoRA modules were given; expected at least one")
    names = [m.name for m in modules]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise IncompatibleModules(f"module name '{twice[0]}' occurs twice; give each module once")
    for module in modules:
        for target, factors in module.factors.items():
            if target not in shapes:
                raise IncompatibleModules(
                    f"module '{module.name}' changes '{target}', which base '{base}' does not have; "
                    "it was trained for another base"
                )
            received = (factors.B.shape[0], factors.A.shape[1])
            if received != shapes[target]:
                raise IncompatibleModules(
                    f"module '{module.name}' at '{target}': expected (out_features, in_features) {shapes[target]} "
                    f"from base '{base}', received {received}; it was trained for another base"
                )


def _places(modules: Sequence[LoraModule], shapes: Mapping[str, tuple[int, int]]) -> list[Target]:
    targets = []
    offset = 0
    for name, (out_features, in_features) in shapes.items():
        present = [m.factors[name] for m in modules if name in m.factors]
        if not present:
            continue
        rank = max(f.rank for f in present)
        scaling = next((f.scaling for f in present if f.scaling != 0), 1.0)
        b_offset = BLOCK * n_blocks_for(offset + rank * in_features)
        targets.append(Target(name, rank, in_features, out_features, scaling, offset, b_offset))
        offset = BLOCK * n_blocks_for(b_offset + rank * out_features)
    return targets


def n_blocks_for(n_values: int) -> int:
    """Whole blocks that hold so many values."""
    return -(-n_values // BLOCK)
