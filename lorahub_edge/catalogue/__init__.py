"""The catalogue of modules, without torch: what is known of a module folder, and the file that remembers thousands."""

from lorahub_edge.catalogue.catalogue import Added, Catalogue, Check, default_catalogue
from lorahub_edge.catalogue.entry import Entry
from lorahub_edge.catalogue.query import Query

__all__ = ["Added", "Catalogue", "Check", "Entry", "Query", "default_catalogue"]
