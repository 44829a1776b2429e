"""Prometheus metrics of every call: upstream's four, and ours beside them.

Upstream's names and labels are those of flytekit's ``connector_service``, so dashboards move.
"""

from __future__ import annotations

import functools
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING

import grpc
from google import protobuf
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
)

from connector_service.runtime.hooks import Hook
from connector_service.telemetry.calls import CallMeter
from connector_service.version import __version__

if TYPE_CHECKING:
    from connector_service.runtime.hooks import Happening

__all__ = ["MetricsHook", "ServiceMetrics"]


class ServiceMetrics:
    """The collectors of one service, in a registry of its own."""

    def __init__(self) -> None:
        """Make every collector, so that each is scraped from the start."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.calls = CallMeter()
        self.registry.register(self.calls)
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
        self.batched_polls = Histogram(
            "connector_service_batched_polls",
            "Polls that one call of a connector with get_many answers.",
            ["task_type"],
            buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500),
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
                "grpcio": grpc.__version__,
                "protobuf": protobuf.__version__,
                "flyteidl": version("flyteidl"),
            }
        )

    def _of_host(self, name: str, text: str) -> Gauge:
        return Gauge(f"connector_service_host_{name}", text, ["host"], registry=self.registry)


class MetricsHook(Hook):
    """Counts every call, and what the guarantees did, into ``ServiceMetrics``."""

    def __init__(self, metrics: ServiceMetrics) -> None:
        """Take the collectors."""
        self._metrics = metrics
        self._polls = functools.cache(metrics.polls.labels)  # of all that happens, this is often
        self._batched_polls = functools.cache(metrics.batched_polls.labels)
        self.started = metrics.calls.started  # type: ignore[method-assign] # no step in between
        self.ended = metrics.calls.ended  # type: ignore[method-assign]
        self.kind = metrics.calls.kind  # type: ignore[method-assign]

    def happened(self, happening: Happening) -> None:
        """Count what the guarantees did."""
        metrics, task_type, detail = self._metrics, happening.task_type, happening.detail
        if happening.kind == "poll":
            self._polls(task_type, detail).inc()
        elif happening.kind == "batch":
            self._batched_polls(task_type).observe(happening.amount)
        elif happening.kind == "orphan":
            metrics.orphans.labels(task_type, detail).inc()
        elif happening.kind == "unguarded_create":
            metrics.unguarded_creates.labels(task_type).inc()
        elif happening.kind == "retry":
            metrics.retries.labels(task_type, detail).inc()
        elif happening.kind == "blocked_loop":
            metrics.loop_blocked.labels(task_type, detail).inc()
            metrics.loop_blocked_seconds.labels(task_type, detail).inc(happening.amount)
