"""Batched polls: what a backend is asked with ``get_many`` and without, and how long it takes.

A lone poll is told as a ratio to that of the same connector without ``get_many``, in turns.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import messages
from bench.connectors_batches import MANY, ONE, TAKES
from bench.load import Connection, Load
from bench.messages import FLYTE1
from bench.peers import ours
from bench.process import CLIENT_CORE, awake, on_core
from bench.scale import GET, poll

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.load import Sample

__all__ = ["batches"]

_SETTINGS = Path(__file__).parent / "batches.toml"
_KINDS = {"get": ONE, "get_many": MANY}
_JOBS = 1_000
_POLLERS = 10  # Flyte 1's client has as many, by default
_ALONE = {0: 400, 10: 100}  # ms that the backend takes, polls in a turn of who is alone
_numbers = itertools.count(0, 1_000_000)  # no two turns ask for the same jobs


def batches(turns: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Poll 1,000 jobs, all at once and by ten pollers; then one at a time, in ``turns``.

    Raises:
        bench.load.LoadError: A call failed.
    """
    peer = ours("--module=bench.connectors_batches", f"--config={_SETTINGS}")
    with peer.serve(settle=1.0) as server, on_core(CLIENT_CORE):
        for prefix in _KINDS.values():  # the first calls cost more than those that follow
            _run(server.port, f"{prefix}_0", 16, _JOBS)
        found: dict[str, Any] = {"jobs": []}
        for takes in filter(None, TAKES):
            for who, in_flight in (("all at once", _JOBS), (f"{_POLLERS} pollers", _POLLERS)):
                say(f"{_JOBS} jobs, a backend of {takes} ms, {who}")
                row: dict[str, Any] = {"backend, ms": takes, "polled": who}
                for kind, prefix in _KINDS.items():
                    row[kind] = _counted(server.port, f"{prefix}_{takes}", in_flight)
                found["jobs"].append(row)
        found["alone"] = []
        for takes, calls in _ALONE.items():
            say(f"one poll at a time, a backend of {takes} ms")
            found["alone"].append(_alone(server.port, takes, calls, turns))
    return found


def _counted(port: int, task_type: str, in_flight: int) -> dict[str, Any]:
    before = _asked(port, task_type)
    sample = _run(port, task_type, in_flight, _JOBS)
    return {
        "backend calls": _asked(port, task_type) - before - 1,
        "seconds": sample.seconds,
    }


def _asked(port: int, task_type: str) -> int:
    """Return how often the backend was asked; this time counts, too."""
    return int(poll(port, task_type, "one more"))


def _alone(port: int, takes: int, calls: int, turns: int) -> dict[str, float]:
    """Compare the latency of one poll at a time."""
    taken: dict[str, list[Sample]] = {kind: [] for kind in _KINDS}
    with awake(1):
        for turn in range(turns):
            for kind in sorted(_KINDS, reverse=bool(turn % 2)):
                taken[kind].append(_run(port, f"{_KINDS[kind]}_{takes}", 1, calls))
    without, batched = taken.values()

    def ratio(share: float) -> float:
        pairs = zip(batched, without, strict=True)
        return statistics.median(a.percentile(share) / b.percentile(share) for a, b in pairs)

    def middle(samples: list[Sample]) -> float:
        return statistics.median(sample.percentile(0.5) for sample in samples)

    return {
        "backend, ms": takes,
        "seconds, get": middle(without),
        "seconds, get_many": middle(batched),
        "p50 with get_many, to get": ratio(0.5),
        "p99 with get_many, to get": ratio(0.99),
    }


def _run(port: int, task_type: str, in_flight: int, calls: int) -> Sample:
    load = Load(GET, messages.get(FLYTE1, task_type), in_flight)
    with contextlib.closing(Connection("127.0.0.1", port, load)) as connection:
        return connection.run(calls=calls, first=next(_numbers))
