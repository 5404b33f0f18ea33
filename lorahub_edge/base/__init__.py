"""Base: the frozen model that all modules share, its linears stored as int8 rows."""

from lorahub_edge.base.families import FAMILIES, Family, family_of
from lorahub_edge.base.int8 import Int8Embedding, Int8Linear, Int8Weight
from lorahub_edge.base.load import load_base, load_opened
from lorahub_edge.base.model import Base
from lorahub_edge.base.open import OpenBase, need_device, open_base, resolve_device
from lorahub_edge.base.save import save_base

__all__ = [
    "FAMILIES",
    "Base",
    "Family",
    "Int8Embedding",
    "Int8Linear",
    "Int8Weight",
    "OpenBase",
    "family_of",
    "load_base",
    "load_opened",
    "need_device",
    "open_base",
    "resolve_device",
    "save_base",
]
