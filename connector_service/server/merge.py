"""Metrics of several processes as those of one service: what is added up, and what is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from prometheus_client.core import Metric

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from prometheus_client import CollectorRegistry

__all__ = ["HIGHEST", "LOWEST", "SUMMED", "Family", "Merger", "snapshot"]

# Gauges of which a service's is the sum of its workers'.
SUMMED = frozenset(
    {
        "connector_service_requests_in_flight",
        "connector_service_connector_calls",
        "connector_service_abandoned_calls",
        "connector_service_host_workers_up",
        "connector_service_host_memory_bytes",
        "connector_service_host_calls",
    }
)
# Gauges that say the same of each worker, or of which an alert wants the worst.
HIGHEST = frozenset(
    {
        "connector_service_plugins_failed",
        "connector_service_host_crash_loop",
        "connector_service_host_plugins_failed",
        "connector_service_build",
        "connector_service_workers_serving",  # only the supervisor has it
        "python_info",
    }
)
LOWEST = frozenset(
    {
        "connector_service_plugins_loaded",
        "connector_service_plugin_up",
        "connector_service_host_up",
    }
)
# Every other gauge stands once for each worker, under a label `worker`.
_COUNTED = frozenset({"counter", "summary", "histogram"})
_WORKER = "worker"

Labels = tuple[tuple[str, str], ...]


class Family(msgspec.Struct, array_like=True):
    """One metric of one process with its samples: name, labels, value."""

    name: str
    documentation: str
    kind: str
    samples: list[tuple[str, Labels, float]]


def snapshot(registry: CollectorRegistry) -> list[Family]:
    """Return every metric of a registry as it is now."""
    return [
        Family(
            metric.name,
            metric.documentation,
            metric.type,
            [
                (sample.name, tuple(sample.labels.items()), float(sample.value))
                for sample in metric.samples
            ],
        )
        for metric in registry.collect()
    ]


class Merger:
    """Merges, and remembers what processes that have ended had counted."""

    def __init__(self) -> None:
        """Begin with nothing counted."""
        self._retired: dict[str, Family] = {}

    def retire(self, families: Iterable[Family]) -> None:
        """Keep what a process counted that has ended, so that no counter ever goes back."""
        for family in families:
            if family.kind not in _COUNTED:
                continue
            kept = self._retired.get(family.name)
            merged = _Merging(family)
            if kept is not None:
                merged.add(kept, "")
            merged.add(family, "")
            self._retired[family.name] = merged.family()

    def merge(self, processes: Iterable[tuple[str, Sequence[Family]]]) -> list[Metric]:
        """Return the service's metrics; each process comes with its name, its ``worker`` label."""
        merging: dict[str, _Merging] = {}
        for worker, families in (("", self._retired.values()), *processes):
            for family in families:
                found = merging.get(family.name)
                if found is None:
                    found = merging[family.name] = _Merging(family)
                found.add(family, worker)
        return [_metric(merged.family()) for merged in merging.values()]


class _Merging:
    """One metric, as far as it is merged."""

    def __init__(self, like: Family) -> None:
        self._like = like
        self._values: dict[tuple[str, Labels], float] = {}

    def add(self, family: Family, worker: str) -> None:
        values, counted = self._values, family.kind in _COUNTED
        for name, labels, value in family.samples:
            if counted and name.endswith("_created"):  # when its counting began
                choose = min
            elif counted or family.name in SUMMED:
                key = (name, labels)
                values[key] = values.get(key, 0.0) + value
                continue
            elif family.name in HIGHEST:
                choose = max
            elif family.name in LOWEST:
                choose = min
            else:
                values[name, (*labels, (_WORKER, worker))] = value
                continue
            key = (name, labels)
            values[key] = choose(values.get(key, value), value)

    def family(self) -> Family:
        samples = [(name, labels, value) for (name, labels), value in self._values.items()]
        return Family(self._like.name, self._like.documentation, self._like.kind, samples)


def _metric(family: Family) -> Metric:
    metric = Metric(family.name, family.documentation, family.kind)
    # Of one histogram the buckets stand together, as the format asks: each process adds the
    # children that the others lack at the end, whole.
    for name, labels, value in family.samples:
        metric.add_sample(name, dict(labels), value)
    return metric
