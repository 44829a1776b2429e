"""Minutes of mixed load at a share of capacity, and what of the service grows meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import uvloop

from bench.mix import Mix
from bench.peers import PEERS
from bench.process import CLIENT_CORE, cpu, on_core, resident

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.peers import Running

__all__ = ["endurance", "missed"]

_SERVE = "from connector_service.cli.main import main; main()"
_SETTINGS = Path(__file__).parent / "endurance.toml"
_CALIBRATION = 300.0, 10.0  # calls per second, seconds; of a short run a third
_CLIENT = 0.9  # of its own core; the client cannot ask for more
_MOST_GROWTH = 0.05  # of the service's memory, after the warm-up
_MOST_MORE = 2  # files and threads, of the service and of its children
_WARM_UP = 120.0  # seconds; of a short run a third


class Seen(NamedTuple):
    """What the system told at a moment, of the service and of its children; bytes and seconds."""

    at: float
    resident: int
    files: int
    threads: int
    cpu: float
    children: int
    children_resident: int
    children_files: int
    children_threads: int


def endurance(
    minutes: float, share: float, say: Callable[[str], None], *, rate: float = 0.0
) -> dict[str, Any]:
    """Load the service for ``minutes`` at ``share`` of what its core can do.

    ``rate`` is in calls per second instead; nobody is kept to one core then, which a neighbour may
    hold.
    """
    with PEERS["ours"]._replace(command=_command).serve(settle=3.0) as server:
        if rate:
            for pid in (server.pid, *_children(server.pid)):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    os.sched_setaffinity(int(task.name), os.sched_getaffinity(0))
        with contextlib.nullcontext() if rate else on_core(CLIENT_CORE):
            return uvloop.run(_measure(server, minutes * 60, share, rate, say))


def missed(found: dict[str, Any]) -> list[str]:
    """Say what was promised and is not so; what a run of seconds grows by says nothing yet."""
    lines = [f"{count} times {error}" for error, count in found["errors"].items()]
    if found["seconds"] < 2 * _WARM_UP:
        return lines
    for row in found["growth"]:
        share = row["of"].endswith("resident")
        if row["growth"] > _MOST_GROWTH if share else row["end"] - row["warm"] > _MOST_MORE:
            lines.append(f"{row['of']} grew from {row['warm']:,.0f} to {row['end']:,.0f}")
    return lines


def _command(port: int, metrics: int) -> list[str]:
    where = [f"--port={port}", f"--prometheus-port={metrics}", f"--config={_SETTINGS}"]
    return ["-c", _SERVE, "serve", *where, "--module=bench.connectors_endurance"]


async def _measure(
    server: Running, seconds: float, share: float, rate: float, say: Callable[[str], None]
) -> dict[str, Any]:
    mix = Mix(server.port)
    found, capacity = await _rate(mix, server, share, seconds / 3)
    rate = rate or found
    say(f"{rate:,.0f} calls per second, of {capacity:,.0f} that its core can do")
    samples: list[Seen] = []
    sampling = asyncio.create_task(_sample(server.pid, samples))
    reloading = asyncio.create_task(_reload(server.pid, seconds / 2))
    mix.done.clear()
    mix.latencies.clear()
    latest = await mix.run(rate, seconds)
    sampling.cancel()
    await reloading
    await mix.close()
    samples = samples[: int(seconds)]
    warm = [one for one in samples if one.at >= min(_WARM_UP, seconds / 3)]
    window = max(1, min(30, len(warm) // 4))
    ordered = sorted(mix.latencies)
    return {
        "seconds": seconds,
        "capacity": capacity,
        "rate": rate,
        "busy": (samples[-1].cpu - samples[0].cpu) / (samples[-1].at - samples[0].at),
        "latest": latest,
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[len(ordered) * 99 // 100],
        "calls": dict(mix.done),
        "errors": dict(mix.wrong),
        "growth": [
            _compare(name, warm[:window], warm[-window:])
            for name in Seen._fields
            if name not in ("at", "cpu")
        ],
        "samples": [one._asdict() for one in samples],
    }


def _compare(name: str, first: Sequence[Seen], last: Sequence[Seen]) -> dict[str, Any]:
    """Compare the medians after the warm-up and at the end."""
    before: float = statistics.median(getattr(one, name) for one in first)
    after: float = statistics.median(getattr(one, name) for one in last)
    return {"of": name, "warm": before, "end": after, "growth": after / before - 1 if before else 0}


async def _rate(mix: Mix, server: Running, share: float, most: float) -> tuple[float, float]:
    """Return the rate to load with, and how many such calls a second fill the server's core."""
    rate, seconds = _CALIBRATION
    seconds = min(seconds, most)
    await mix.run(rate, seconds / 2)  # until there are jobs to poll
    capacity = rate
    for _ in range(2):  # a busier server spends less on each call
        spent, own = _spent(server.pid), time.process_time()
        await mix.run(rate, seconds)
        spent, own = _spent(server.pid) - spent, time.process_time() - own
        capacity = rate * seconds / spent
        rate = min(share * capacity, _CLIENT * rate * seconds / own)
    return rate, capacity


def _spent(pid: int) -> float:
    return sum(cpu(one) for one in (pid, *_children(pid)))


async def _reload(pid: int, wait: float) -> None:
    await asyncio.sleep(wait)
    os.kill(pid, signal.SIGHUP)


async def _sample(pid: int, samples: list[Seen]) -> None:
    began = time.monotonic()
    for number in range(1_000_000):
        await asyncio.sleep(began + number - time.monotonic())
        children = [found for child in _children(pid) if (found := _look(child))]
        own = _look(pid)
        if own is None:
            return
        told = [sum(column) for column in zip(*children, strict=True)] or [0, 0, 0]
        spent = cpu(pid)
        samples.append(Seen(time.monotonic() - began, *own, spent, len(children), *told))


def _look(pid: int) -> tuple[int, int, int] | None:
    """Return a process's resident bytes, files and threads; None when it has ended."""
    with contextlib.suppress(OSError, ValueError):
        folder = Path(f"/proc/{pid}")
        files, threads = list((folder / "fd").iterdir()), list((folder / "task").iterdir())
        return resident(pid)[0], len(files), len(threads)
    return None


def _children(pid: int) -> list[int]:
    """Return the processes below one, whole depth."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text(encoding="ascii").split():
                found += [int(child), *_children(int(child))]
    return found
