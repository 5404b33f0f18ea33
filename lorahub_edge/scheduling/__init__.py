"""Scheduling: units of work on workers, in this process, in processes of this machine, or on a Ray cluster."""

from lorahub_edge.scheduling.crew import Crew, Workers
from lorahub_edge.scheduling.loop import Step, carry_out
from lorahub_edge.scheduling.units import reason_of

__all__ = ["Crew", "Step", "Workers", "carry_out", "reason_of"]
