"""What a job uses: measured by the child, told as Prometheus tells it."""

from __future__ import annotations

import bisect
import contextlib
import datetime as dt
import itertools
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flyteidl.core import metrics_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from connector_service.connectors.duckdb.log import say
from connector_service.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from connector_service.connectors.duckdb.folder import JobFolder

__all__ = ["METRICS", "Recorder", "Sample", "metric_results", "samples"]

METRICS = ("EXECUTION_METRIC_USED_CPU_AVG", "EXECUTION_METRIC_USED_MEMORY_BYTES_AVG")

_MOST_SAMPLES = 1800
_MOST_POINTS = 11_000  # as Prometheus
_PAGE_SIZE = resource.getpagesize()


class Sample(NamedTuple):
    """Seconds of CPU used so far, and bytes of memory in use, at a moment."""

    at: float
    cpu: float
    memory: int


class Recorder:
    """The child's own thread: measures each second, and watches for the end of its time."""

    def __init__(
        self,
        folder: JobFolder,
        *,
        progress: Callable[[], float | None],
        stop: Callable[[str], None],
    ) -> None:
        """Take where to write, how to ask for the progress (%), and how to stop the query.

        ``stop`` is called again and again, with the reason, empty when the job was deleted.
        """
        self._folder = folder
        self._progress = progress
        self._stop = stop
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._samples: list[Sample] = []
        self._every = 1
        self._limit = (float("inf"), "")

    def start(self) -> None:
        """Start measuring."""
        self._thread.start()

    def limit(self, seconds: float) -> None:
        """Stop the query ``seconds`` from now."""
        reason = f"The job took longer than {seconds:g} s, the operator's limit."
        self._limit = (time.monotonic() + seconds, reason)

    def finish(self) -> None:
        """Take the last sample and stop."""
        self._ended.set()
        self._thread.join()
        self._measure()

    def _run(self) -> None:
        started = time.monotonic()
        pause = 10.0
        next_word = started + pause
        for tick in itertools.count():
            if tick % self._every == 0:
                self._measure()
            end, reason = self._limit
            if self._ended.wait(min(1.0, max(0.1, end - time.monotonic()))):
                return
            now = time.monotonic()
            if self._folder.is_deleted():
                self._stop("")
            elif now >= end:
                self._stop(reason)
            if now >= next_word:
                done = self._progress()
                said = "" if done is None else f", {done:.0f} % of the statement done"
                say(f"running for {now - started:.0f} s{said}")
                pause = min(pause * 2, 600)
                next_word = now + pause

    def _measure(self) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        sample = Sample(time.time(), used.ru_utime + used.ru_stime, _resident())
        self._samples.append(sample)
        fresh, mode = [sample], "a"
        if len(self._samples) > _MOST_SAMPLES:  # half as many, twice as far apart
            self._samples = self._samples[::2]
            self._every *= 2
            fresh, mode = self._samples, "w"
        lines = "".join(f"{at:.3f} {cpu:.3f} {memory}\n" for at, cpu, memory in fresh)
        # A full disk ends the query, not the measuring of it.
        with (
            contextlib.suppress(OSError),
            open(self._folder.usage_path, mode, encoding="ascii", opener=_privately) as file,
        ):
            file.write(lines)


def samples(folder: JobFolder) -> list[Sample]:
    """Read what the recorder wrote; nothing before the job started."""
    try:
        text = folder.usage_path.read_text(encoding="ascii")
    except FileNotFoundError:
        return []
    rows = (line.split() for line in text.splitlines(keepends=True) if line.endswith("\n"))
    return [Sample(float(at), float(cpu), int(memory)) for at, cpu, memory in rows]


def metric_results(
    taken: Sequence[Sample],
    queries: Sequence[str],
    *,
    labels: dict[str, str],
    start_time: Any = None,
    end_time: Any = None,
    step: Any = None,
) -> list[metrics_pb2.ExecutionMetricResult]:
    """Answer each query (none: all there are) as Prometheus answers a range query.

    CPU is in cores, memory in bytes; a value is the average of the step that ends at its time.

    Raises:
        InvalidRequestError: A query is unknown; the known ones are named.
    """
    wanted = list(dict.fromkeys(queries)) or list(METRICS)
    if unknown := [name for name in wanted if name not in METRICS]:
        raise InvalidRequestError(
            f"No metric is called {unknown[0][:100]}; known: {', '.join(METRICS)}."
        )
    times = _times(taken, _seconds(start_time), _seconds(end_time), _seconds(step))
    results = []
    for name in wanted:
        average = _cpu if name == METRICS[0] else _memory
        values = [
            [at, f"{value:.6g}" if name == METRICS[0] else f"{value:.0f}"]
            for at, since in times
            if (value := average(taken, since, at)) is not None
        ]
        data = Struct()
        series: list[Any] = (
            [{"metric": {"__name__": name, **labels}, "values": values}] if values else []
        )
        data.update({"resultType": "matrix", "result": series})
        results.append(metrics_pb2.ExecutionMetricResult(metric=name, data=data))
    return results


def _times(
    taken: Sequence[Sample], start: float | None, end: float | None, step: float | None
) -> list[tuple[float, float]]:
    """Choose the moments to answer for, each with the start of its step."""
    if not taken:
        return []
    first = max(start or 0.0, taken[0].at)
    last = min(end or float("inf"), taken[-1].at)
    if last < first:
        return []
    if not step:
        inside = [sample.at for sample in taken if first <= sample.at <= last]
        before = [sample.at for sample in taken if sample.at < first]
        return list(zip(inside, [before[-1] if before else first, *inside[:-1]], strict=True))
    step = max(step, (last - first) / _MOST_POINTS, 0.001)
    count = int((last - first) / step) + 1
    moments = [first + index * step for index in range(count)]
    if moments[-1] < last:  # a short job still ends inside its last step
        moments.append(last)
    return [(moment, moment - step) for moment in moments]


def _cpu(taken: Sequence[Sample], since: float, until: float) -> float | None:
    before = max(_at(taken, since), 0)
    now = _at(taken, until)
    elapsed = taken[now].at - taken[before].at
    if elapsed <= 0:
        return None
    return (taken[now].cpu - taken[before].cpu) / elapsed


def _memory(taken: Sequence[Sample], since: float, until: float) -> float | None:
    inside = [sample.memory for sample in taken[_at(taken, since) + 1 : _at(taken, until) + 1]]
    inside = inside or [taken[_at(taken, until)].memory]
    return sum(inside) / len(inside)


def _at(taken: Sequence[Sample], moment: float) -> int:
    """Return the index of the last sample at or before a moment, or -1."""
    return bisect.bisect_right(taken, moment, key=lambda sample: sample.at) - 1


def _seconds(value: Any) -> float | None:
    if isinstance(value, Timestamp | Duration):
        return value.seconds + value.nanos / 1e9 or None
    if isinstance(value, dt.datetime):
        return value.timestamp()
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    return None if value is None else float(value)


def _privately(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _resident() -> int:
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE_SIZE
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
