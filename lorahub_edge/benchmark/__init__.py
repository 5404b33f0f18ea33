"""Benchmark: quality measured point by point, each point one line of a file that only grows."""

from lorahub_edge.benchmark.entry import bench_bbh, bench_quality
from lorahub_edge.benchmark.methods import METHODS
from lorahub_edge.benchmark.trial import Protocol

__all__ = ["METHODS", "Protocol", "bench_bbh", "bench_quality"]
