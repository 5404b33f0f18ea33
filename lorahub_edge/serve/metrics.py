"""Metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """What /metrics shows, in a registry of its own."""

    def __init__(self, n_waiting: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        prefix = "lorahub_edge"
        self.requests = Counter(f"{prefix}_requests", "Completed requests.", ["status"], registry=self.registry)
        self.prompt_tokens = Counter(f"{prefix}_prompt_tokens", "Tokens read.", registry=self.registry)
        self.answer_tokens = Counter(f"{prefix}_completion_tokens", "Tokens written.", registry=self.registry)
        self.request_s = Histogram(
            f"{prefix}_request_seconds", "From request to whole answer.", buckets=_SECONDS, registry=self.registry
        )
        self.first_text_s = Histogram(
            f"{prefix}_first_text_seconds", "From request to first text.", buckets=_SECONDS, registry=self.registry
        )
        self.batch_size = Histogram(
            f"{prefix}_batch_size", "Texts answered together.", buckets=_SIZES, registry=self.registry
        )
        waiting = Gauge(f"{prefix}_waiting", "Texts that no batch has taken yet.", registry=self.registry)
        waiting.set_function(n_waiting)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
