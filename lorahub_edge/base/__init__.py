"""Base: the frozen model that all modules share, its linears stored as int8 rows."""

from lorahub_edge.base.families import FAMILIES, Family, family_of
from lorahub_edge.base.int8 import Int8Embedding, Int8Linear, Int8Weight
from lorahub_edge.base.model import Base, load_base
from lorahub_edge.base.save import save_base

__all__ = [
    "FAMILIES",
    "Base",
    "Family",
    "Int8Embedding",
    "Int8Linear",
    "Int8Weight",
    "family_of",
    "load_base",
    "save_base",
]
