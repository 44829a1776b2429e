"""Prometheus metrics of every call: upstream's four, and ours beside them.

Upstream's names and labels are those of flytekit's ``connector_service``, so dashboards move.
"""

from __future__ import annotations

import functools
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    Summary,
)

from connector_service.runtime.hooks import OK, Hook
from connector_service.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from connector_service.runtime.hooks import CallRecord, Happening

__all__ = ["HTTP_STATUS", "MetricsHook", "ServiceMetrics"]

# `error_code` upstream is an HTTP status; this is gRPC's own mapping (google.rpc.Code).
HTTP_STATUS: Mapping[str, int] = {
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "UNAUTHENTICATED": 401,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
}

# A poll should take under a second; the client's own deadline is 10 s.
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class ServiceMetrics:
    """The collectors of one service, in a registry of its own."""

    def __init__(self) -> None:
        """Make every collector, so that each is scraped from the start."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.success = Counter(
            "flyte_connector_requests_success_total",
            "Calls answered with OK.",
            ["task_type", "operation"],
            registry=self.registry,
        )
        self.failure = Counter(
            "flyte_connector_requests_failure_total",
            "Calls that failed, by the HTTP status nearest to their gRPC code.",
            ["task_type", "operation", "error_code"],
            registry=self.registry,
        )
        self.latency = Summary(
            "flyte_connector_request_latency_seconds",
            "Time from a call's arrival to its answer.",
            ["task_type", "operation"],
            registry=self.registry,
        )
        self.input_bytes = Summary(
            "flyte_connector_input_literal_bytes",
            "Size of a task's inputs.",
            ["task_type"],
            registry=self.registry,
        )
        self.duration = Histogram(
            "connector_service_request_duration_seconds",
            "Time from a call's arrival to its answer, by protocol and gRPC code.",
            ["protocol", "operation", "task_type", "code"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "connector_service_requests_in_flight",
            "Calls being answered.",
            ["protocol", "operation"],
            registry=self.registry,
        )
        self.plugins_loaded = Gauge(
            "connector_service_plugins_loaded",
            "Plugins that were loaded at the start.",
            registry=self.registry,
        )
        self.plugins_failed = Gauge(
            "connector_service_plugins_failed",
            "Plugins that could not be loaded at the start.",
            registry=self.registry,
        )
        self.plugin_up = Gauge(
            "connector_service_plugin_up",
            "1 for a plugin that was loaded, 0 for one that failed.",
            ["plugin"],
            registry=self.registry,
        )
        self.polls = Counter(
            "connector_service_polls_total",
            "Polls that memory or patience answered, by what happened.",
            ["task_type", "event"],
            registry=self.registry,
        )
        self.orphans = Counter(
            "connector_service_orphans_total",
            "Deletions of jobs whose caller had gone, by outcome.",
            ["task_type", "outcome"],
            registry=self.registry,
        )
        self.unguarded_creates = Counter(
            "connector_service_unguarded_creates_total",
            "Creates that ran while the ledger was down, under ledger_down = continue.",
            ["task_type"],
            registry=self.registry,
        )
        self.retries = Counter(
            "connector_service_retries_total",
            "Transient faults that were retried inside a call.",
            ["task_type", "operation"],
            registry=self.registry,
        )
        self.loop_blocked = Counter(
            "connector_service_event_loop_blocked_total",
            "Times that a connector's coroutine held the event loop for over 100 ms.",
            ["task_type", "operation"],
            registry=self.registry,
        )
        self.loop_blocked_seconds = Counter(
            "connector_service_event_loop_blocked_seconds_total",
            "How long they held it.",
            ["task_type", "operation"],
            registry=self.registry,
        )
        self.connector_calls = Gauge(
            "connector_service_connector_calls",
            "Calls of one task type that run, or wait for their turn.",
            ["task_type", "state"],
            registry=self.registry,
        )
        self.abandoned_calls = Gauge(
            "connector_service_abandoned_calls",
            "Plain def calls that run on though nobody waits for them any more.",
            registry=self.registry,
        )
        self.host_up = self._of_host("up", "1 while a host answers calls.")
        self.host_crash_loop = self._of_host(
            "crash_loop", "1 while a host's processes end again and again soon after their start."
        )
        self.host_workers = self._of_host("workers_up", "Processes of a host that answer.")
        self.host_memory = self._of_host("memory_bytes", "Resident memory of a host's processes.")
        self.host_calls = self._of_host("calls", "Calls that a host's processes run.")
        self.host_plugins_failed = self._of_host(
            "plugins_failed", "Plugins that a host could not load."
        )
        self.host_events = Counter(
            "connector_service_host_events_total",
            "What happened to a host's processes.",
            ["host", "event"],
            registry=self.registry,
        )
        Info(
            "connector_service_build",
            "What is running.",
            registry=self.registry,
        ).info(
            {
                "version": __version__,
                "python": platform.python_version(),
                "grpcio": version("grpcio"),
                "protobuf": version("protobuf"),
                "flyteidl": version("flyteidl"),
            }
        )

    def _of_host(self, name: str, text: str) -> Gauge:
        return Gauge(f"connector_service_host_{name}", text, ["host"], registry=self.registry)


class MetricsHook(Hook):
    """Counts every call into ``ServiceMetrics``; children are looked up once a combination."""

    def __init__(self, metrics: ServiceMetrics) -> None:
        """Take the collectors."""
        self._metrics = metrics
        self._in_flight = functools.cache(metrics.in_flight.labels)
        self._success = functools.cache(metrics.success.labels)
        self._failure = functools.cache(metrics.failure.labels)
        self._latency = functools.cache(metrics.latency.labels)
        self._input_bytes = functools.cache(metrics.input_bytes.labels)
        self._duration = functools.cache(metrics.duration.labels)

    def started(self, protocol: str, operation: str) -> None:
        """Count a call in."""
        self._in_flight(protocol, operation).inc()

    def ended(self, record: CallRecord) -> None:
        """Count a call out, with its result and its time."""
        task_type, operation = record.task_type, record.operation
        self._in_flight(record.protocol, operation).dec()
        if record.code == OK:
            self._success(task_type, operation).inc()
        else:
            self._failure(task_type, operation, HTTP_STATUS.get(record.code, 500)).inc()
        self._latency(task_type, operation).observe(record.seconds)
        self._duration(record.protocol, operation, task_type, record.code).observe(record.seconds)
        if record.input_bytes is not None:
            self._input_bytes(task_type).observe(record.input_bytes)

    def happened(self, happening: Happening) -> None:
        """Count what the guarantees did."""
        metrics, task_type, detail = self._metrics, happening.task_type, happening.detail
        if happening.kind == "poll":
            metrics.polls.labels(task_type, detail).inc()
        elif happening.kind == "orphan":
            metrics.orphans.labels(task_type, detail).inc()
        elif happening.kind == "unguarded_create":
            metrics.unguarded_creates.labels(task_type).inc()
        elif happening.kind == "retry":
            metrics.retries.labels(task_type, detail).inc()
        elif happening.kind == "blocked_loop":
            metrics.loop_blocked.labels(task_type, detail).inc()
            metrics.loop_blocked_seconds.labels(task_type, detail).inc(happening.amount)
