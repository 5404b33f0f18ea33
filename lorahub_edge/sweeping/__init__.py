"""Sweeping: tasks x seeds x pools x presets, each point a run folder, with a table and a page at the end."""

from lorahub_edge.sweeping.entry import sweep
from lorahub_edge.sweeping.table import Swept
from lorahub_edge.sweeping.tally import Event

__all__ = ["Event", "Swept", "sweep"]
