"""What is counted of every call: plain numbers on the event loop, named when they are scraped.

A call adds one to one cell of a list. prometheus_client's own counters take a lock each, and one
call counts in six of them: that was a tenth of what a poll cost. Names, labels and values of what
is scraped are those that its ``Counter``, ``Summary``, ``Histogram`` and ``Gauge`` would have.
"""

from __future__ import annotations

import functools
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from connector_service.runtime.hooks import OK, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from connector_service.runtime.hooks import CallRecord

__all__ = ["HTTP_STATUS", "CallMeter"]

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
_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LE = (*map(floatToGoString, _BOUNDS), "+Inf")


class CallMeter(Collector):
    """Counts calls on the event loop's thread; scraped from any other."""

    def __init__(self) -> None:
        """Start at nothing."""
        self._running: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._times: dict[tuple[str, str, str, str], _Times] = {}
        self._inputs: dict[str, _Sum] = {}
        self._kinds: dict[tuple[str, str, str], _Counted] = {}

    def kind(self, protocol: str, operation: str, task_type: str) -> Kind:
        """Return what counts such calls as ``started`` and ``ended`` do, in two steps less."""
        key = (protocol, operation, task_type)
        if key not in self._kinds:
            self._kinds[key] = _Counted(
                functools.partial(self._timed, (*key, OK)),
                functools.partial(self._fed, task_type),
            )
        return self._kinds[key]

    def _timed(self, key: tuple[str, str, str, str]) -> _Times:
        times = self._times.get(key)
        if times is None:
            times = self._times[key] = _Times()
        return times

    def _fed(self, task_type: str) -> _Sum:
        inputs = self._inputs.get(task_type)
        if inputs is None:
            inputs = self._inputs[task_type] = _Sum()
        return inputs

    def started(self, protocol: str, operation: str) -> None:
        """Count a call in."""
        self._running[protocol, operation] += 1

    def ended(self, record: CallRecord) -> None:
        """Count a call out, with its result and its time."""
        protocol, operation, seconds = record.protocol, record.operation, record.seconds
        self._running[protocol, operation] -= 1
        key = (protocol, operation, record.task_type, record.code)
        times = self._timed(key)
        times.cells[bisect_left(_BOUNDS, seconds)] += 1
        times.seconds += seconds
        if record.input_bytes is not None:
            self._fed(record.task_type).add(1, record.input_bytes)

    def collect(self) -> Iterable[Metric]:
        """Name what was counted."""
        # One step for the interpreter: the event loop goes on counting meanwhile.
        times = [
            (str(protocol), str(operation), task_type, code, one.read(), one.seconds, one.created)
            for (protocol, operation, task_type, code), one in list(self._times.items())
        ]
        success: defaultdict[tuple[str, ...], _Sum] = defaultdict(_Sum)
        failure: defaultdict[tuple[str, ...], _Sum] = defaultdict(_Sum)
        latency: defaultdict[tuple[str, ...], _Sum] = defaultdict(_Sum)
        for _, operation, task_type, code, cells, seconds, created in times:
            latency[task_type, operation].add(sum(cells), seconds, created)
            if code == OK:
                success[task_type, operation].add(sum(cells), 0.0, created)
            else:
                status = str(HTTP_STATUS.get(code, 500))
                failure[task_type, operation, status].add(sum(cells), 0.0, created)
        yield from _counter(
            "flyte_connector_requests_success",
            "Calls answered with OK.",
            ("task_type", "operation"),
            success,
        )
        yield from _counter(
            "flyte_connector_requests_failure",
            "Calls that failed, by the HTTP status nearest to their gRPC code.",
            ("task_type", "operation", "error_code"),
            failure,
        )
        yield from _summary(
            "flyte_connector_request_latency_seconds",
            "Time from a call's arrival to its answer.",
            ("task_type", "operation"),
            latency,
        )
        yield from _summary(
            "flyte_connector_input_literal_bytes",
            "Size of a task's inputs.",
            ("task_type",),
            {(task_type,): inputs for task_type, inputs in list(self._inputs.items())},
        )
        name = "connector_service_request_duration_seconds"
        duration = Metric(
            name,
            "Time from a call's arrival to its answer, by protocol and gRPC code.",
            "histogram",
        )
        for protocol, operation, task_type, code, cells, seconds, created in times:
            labels = {
                "protocol": protocol,
                "operation": operation,
                "task_type": task_type,
                "code": code,
            }
            below = 0
            for le, count in zip(_LE, cells, strict=True):
                below += count
                duration.add_sample(f"{name}_bucket", {**labels, "le": le}, float(below))
            duration.add_sample(f"{name}_count", labels, float(below))
            duration.add_sample(f"{name}_sum", labels, seconds)
            duration.add_sample(f"{name}_created", labels, created)
        yield duration
        running = Metric("connector_service_requests_in_flight", "Calls being answered.", "gauge")
        counts = Counter(dict(self._running))
        for (protocol, operation, _), kind in list(self._kinds.items()):
            counts[protocol, operation] += kind.entered - kind.left
        for (protocol, operation), count in counts.items():
            labels = {"protocol": str(protocol), "operation": str(operation)}
            running.add_sample("connector_service_requests_in_flight", labels, float(count))
        yield running


class _Times:
    """How many calls took how long; a cell more than there are bounds, for the slowest."""

    __slots__ = ("cells", "created", "seconds")

    def __init__(self) -> None:
        self.cells = [0] * len(_LE)
        self.seconds = 0.0
        self.created = time.time()

    def read(self) -> list[int]:
        return list(self.cells)


class _Counted(Kind):
    """The calls of one kind; their times begin to exist with the first that ended well."""

    __slots__ = ("_find", "_find_inputs", "_inputs", "_times", "left")

    def __init__(self, find: Callable[[], _Times], find_inputs: Callable[[], _Sum]) -> None:
        super().__init__(self._well)
        self.left = 0
        self._find = find
        self._find_inputs = find_inputs
        self._times: _Times | None = None
        self._inputs: _Sum | None = None

    def _well(self, seconds: float, input_bytes: int | None = None) -> None:
        times = self._times
        if times is None:
            times = self._times = self._find()
        self.left += 1
        times.cells[bisect_left(_BOUNDS, seconds)] += 1
        times.seconds += seconds
        if input_bytes is not None:
            inputs = self._inputs
            if inputs is None:
                inputs = self._inputs = self._find_inputs()
            inputs.count += 1
            inputs.amount += input_bytes


class _Sum:
    """How many, and how much together, since when."""

    __slots__ = ("amount", "count", "created")

    def __init__(self) -> None:
        self.count = 0
        self.amount = 0.0
        self.created = time.time()

    def add(self, count: int, amount: float, created: float | None = None) -> None:
        self.count += count
        self.amount += amount
        if created is not None:
            self.created = min(self.created, created)


def _counter(
    name: str, text: str, labels: tuple[str, ...], sums: Mapping[tuple[str, ...], _Sum]
) -> Iterable[Metric]:
    metric = Metric(name, text, "counter")
    for values, one in sums.items():
        named = dict(zip(labels, values, strict=True))
        metric.add_sample(f"{name}_total", named, float(one.count))
        metric.add_sample(f"{name}_created", named, one.created)
    yield metric


def _summary(
    name: str, text: str, labels: tuple[str, ...], sums: Mapping[tuple[str, ...], _Sum]
) -> Iterable[Metric]:
    metric = Metric(name, text, "summary")
    for values, one in sums.items():
        named = dict(zip(labels, values, strict=True))
        metric.add_sample(f"{name}_count", named, float(one.count))
        metric.add_sample(f"{name}_sum", named, float(one.amount))
        metric.add_sample(f"{name}_created", named, one.created)
    yield metric
