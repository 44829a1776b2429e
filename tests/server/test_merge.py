"""Metrics of several workers become one service's: exact sums, and counters that never go back."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, Summary
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse

from connector_service.server.merge import HIGHEST, LOWEST, SUMMED, Family, Merger, snapshot
from connector_service.server.supervisor import SupervisorMetrics
from connector_service.telemetry.metrics import ServiceMetrics


class Process:
    """What one worker measures."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.calls = Counter("calls", "Calls.", ["op"], registry=self.registry)
        self.time = Histogram("time", "Time.", ["op"], buckets=(1, 5), registry=self.registry)
        self.size = Summary("size", "Size.", registry=self.registry)

    def call(self, operation: str, seconds: float) -> None:
        self.calls.labels(operation).inc()
        self.time.labels(operation).observe(seconds)
        self.size.observe(seconds)


def merged(
    merger: Merger, *processes: CollectorRegistry
) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    metrics = merger.merge((str(n), snapshot(each)) for n, each in enumerate(processes))
    return {
        (sample.name, tuple(sample.labels.items())): sample.value
        for metric in metrics
        for sample in metric.samples
    }


def test_counters_summaries_and_histograms_are_summed() -> None:
    """What two workers counted is one number, also for labels that only one of them has."""
    one, two = Process(), Process()
    for seconds in (0.5, 3, 30):
        one.call("get", seconds)
    two.call("get", 4)
    two.call("create", 0.5)
    found = merged(Merger(), one.registry, two.registry)
    assert found["calls_total", (("op", "get"),)] == 4
    assert found["calls_total", (("op", "create"),)] == 1
    assert found["size_count", ()] == 5
    assert found["size_sum", ()] == 38
    begun = {each: merged(Merger(), each.registry)["size_created", ()] for each in (one, two)}
    assert begun[one] < begun[two]
    assert found["size_created", ()] == begun[one]
    buckets = [found["time_bucket", (("op", "get"), ("le", le))] for le in ("1.0", "5.0", "+Inf")]
    assert buckets == [1, 3, 4]


def test_what_a_dead_worker_counted_stays() -> None:
    """After its end its counters count on in the sum, and its successor's are added to them."""
    merger, one, two = Merger(), Process(), Process()
    one.call("get", 1)
    two.call("get", 1)
    merger.retire(snapshot(one.registry))
    assert merged(merger, two.registry)["calls_total", (("op", "get"),)] == 2
    successor = Process()
    successor.call("get", 1)
    merger.retire(snapshot(successor.registry))
    found = merged(merger, two.registry)
    assert found["calls_total", (("op", "get"),)] == 3
    assert found["time_bucket", (("op", "get"), ("le", "+Inf"))] == 3
    assert merged(merger)["size_count", ()] == 2


def test_gauges_of_a_dead_worker_go_with_it() -> None:
    """A call in flight at a worker that died is in flight no more."""
    merger, registry = Merger(), CollectorRegistry()
    name = "connector_service_requests_in_flight"
    Gauge(name, "In flight.", registry=registry).set(3)
    assert merged(merger, registry, registry)[name, ()] == 6
    merger.retire(snapshot(registry))
    assert merged(merger, registry)[name, ()] == 3


def test_a_gauge_is_summed_or_the_worst_or_stands_for_each_worker() -> None:
    """A sum where it means something, the worst where an alert wants it, else a label `worker`."""
    registries = [CollectorRegistry(), CollectorRegistry()]
    for number, registry in enumerate(registries):
        Gauge("connector_service_host_up", ".", ["host"], registry=registry).labels("a").set(number)
        Gauge("connector_service_plugins_failed", ".", registry=registry).set(number)
        Gauge("process_resident_memory_bytes", ".", registry=registry).set(10 + number)
        Info("connector_service_build", ".", registry=registry).info({"version": "1"})
    assert merged(Merger(), *registries) == {
        ("connector_service_host_up", (("host", "a"),)): 0,
        ("connector_service_plugins_failed", ()): 1,
        ("process_resident_memory_bytes", (("worker", "0"),)): 10,
        ("process_resident_memory_bytes", (("worker", "1"),)): 11,
        ("connector_service_build_info", (("version", "1"),)): 1,
    }


def test_every_gauge_of_ours_has_its_rule() -> None:
    """No gauge of the service gets a label that docs/metrics.md does not give it, by oversight."""
    gauges = {
        family.name
        for metrics in (ServiceMetrics(), SupervisorMetrics())
        for family in snapshot(metrics.registry)
        if family.kind in {"gauge", "info"} and family.name.startswith("connector_service_")
    }
    ruled = SUMMED | HIGHEST | LOWEST
    assert gauges == {name for name in ruled if name.startswith("connector_service_")}
    assert len(ruled) == len(SUMMED) + len(HIGHEST) + len(LOWEST)


def test_what_is_merged_is_valid_in_both_formats() -> None:
    """Prometheus reads the result as it reads a single process's, in text and in OpenMetrics."""
    one, two = Process(), Process()
    one.call("get", 1)
    two.call("create", 2)
    two.call("get", 2)
    registry = CollectorRegistry()

    class Merged:
        def collect(self) -> Any:
            return Merger().merge([("0", snapshot(one.registry)), ("1", snapshot(two.registry))])

    registry.register(Merged())  # type: ignore[arg-type]
    families = {family.name: family for family in parse(openmetrics(registry).decode())}
    assert set(families) == {"calls", "time", "size"}
    assert families["time"].type == "histogram"
    assert b"# TYPE calls_total counter" in generate_latest(registry)


_EVENT = st.sampled_from(["call 0", "call 1", "report 0", "report 1", "die 0", "die 1"])


@given(st.lists(_EVENT, max_size=40))
def test_no_order_of_calls_reports_and_deaths_makes_a_counter_go_back(events: list[str]) -> None:
    """Whatever dies when, what is shown only grows, and misses only what was not reported."""
    merger = Merger()
    live = [Process(), Process()]
    reported: list[list[Family]] = [[], []]
    shown, made, lost = 0.0, 0, 0
    unreported = [0, 0]
    for event in events:
        what, number = event.split()
        worker = int(number)
        if what == "call":
            live[worker].call("get", 1)
            made += 1
            unreported[worker] += 1
        elif what == "report":
            reported[worker] = snapshot(live[worker].registry)
            unreported[worker] = 0
        else:
            merger.retire(reported[worker])
            live[worker], reported[worker] = Process(), []
            lost += unreported[worker]
            unreported[worker] = 0
        metrics = merger.merge([("0", reported[0]), ("1", reported[1])])
        now = sum(
            sample.value
            for metric in metrics
            for sample in metric.samples
            if sample.name == "calls_total"
        )
        assert now >= shown
        shown = now
        assert shown == made - lost - sum(unreported)
