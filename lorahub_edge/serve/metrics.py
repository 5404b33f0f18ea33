"""Metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_PREFIX = "lorahub_edge"


class Metrics:
    """What /metrics shows, in a registry of its own. Models are named as they are served, so labels are few.

    Args:
        n_waiting, n_running: texts that no step has taken yet, and those that one has.
    """

    def __init__(self, n_waiting: Callable[[], int], n_running: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Completed requests.", "status", "model")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens read.", "model")
        self.answer_tokens = self._counter("completion_tokens", "Tokens written.", "model")
        self.request_s = self._histogram("request_seconds", "From request to whole answer.", _SECONDS, "model")
        self.first_text_s = self._histogram("first_text_seconds", "From request to first text.", _SECONDS, "model")
        self.token_s = self._histogram(
            "token_seconds", "Mean time of a token behind the first text.", _STEP_SECONDS, "model"
        )
        self.batch_size = self._histogram("batch_size", "Texts that share a step.", _SIZES)
        self.step_s = self._histogram("step_seconds", "One step of all of them.", _STEP_SECONDS)
        for name, what, read in (
            ("waiting", "Texts that no step has taken yet.", n_waiting),
            ("running", "Texts that are being read or answered.", n_running),
        ):
            Gauge(f"{_PREFIX}_{name}", what, registry=self.registry).set_function(read)

    def count_step(self, n_texts: int, seconds: float) -> None:
        """One step of the engine."""
        self.batch_size.observe(n_texts)
        self.step_s.observe(seconds)

    def families(self) -> list[Metric]:
        """What there is to show now."""
        return list(self.registry.collect())

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"{_PREFIX}_{name}", what, labels, registry=self.registry)

    def _histogram(self, name: str, what: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"{_PREFIX}_{name}", what, labels, buckets=buckets, registry=self.registry)


def labelled(families: Iterable[Metric], **labels: str) -> list[Metric]:
    """The same samples with more labels."""
    found = []
    for family in families:
        found.append(Metric(family.name, family.documentation, family.type))
        found[-1].samples = [sample._replace(labels={**sample.labels, **labels}) for sample in family.samples]
    return found


def exposed(services: Iterable[Iterable[Metric]]) -> bytes:
    """The exposition format, where a family stands once: its samples of all services behind one another."""
    found: dict[str, Metric] = {}
    for family in (family for families in services for family in families):
        whole = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
        whole.samples += family.samples
    return generate_latest(_Collected(found.values()))


class _Collected(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
