"""Some seconds of one kind of call on some servers, in turns: what one uses while optimising."""

from __future__ import annotations

import contextlib
import statistics
import sys
from typing import TYPE_CHECKING

from bench.load import Connection, Load
from bench.process import CLIENT_CORE, awake, cpu, on_core, sharing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.cases import Case
    from bench.peers import Peer

__all__ = ["quick"]

_TURN = 0.5  # seconds


def quick(peers: Sequence[Peer], case: Case, seconds: float, in_flight: int) -> None:
    """Print each server's rate and cost per call, and their ratios to the last server's.

    The servers take turns of half a second, since a machine's speed changes within seconds: the
    ratio is the median of the ratios of neighbouring turns.
    """
    if sharing():
        print("One core only: server and client share it, and ratios say little.", file=sys.stderr)
    rates: dict[str, list[float]] = {peer.name: [] for peer in peers}
    costs: dict[str, list[float]] = {peer.name: [] for peer in peers}
    tails: dict[str, list[float]] = {peer.name: [] for peer in peers}
    load = Load(case.path, case.make(), in_flight)
    with contextlib.ExitStack() as stack:
        servers = {peer.name: stack.enter_context(peer.serve()) for peer in peers}
        stack.enter_context(on_core(CLIENT_CORE))
        stack.enter_context(awake(in_flight))
        connections = {
            name: stack.enter_context(
                contextlib.closing(Connection("127.0.0.1", server.port, load))
            )
            for name, server in servers.items()
        }
        for connection in connections.values():
            connection.run(seconds=_TURN)
        for _ in range(max(1, round(seconds / _TURN))):
            for name, connection in connections.items():
                before = cpu(servers[name].pid)
                sample = connection.run(seconds=_TURN)
                costs[name].append((cpu(servers[name].pid) - before) / sample.calls * 1e6)
                rates[name].append(sample.rate)
                tails[name].append(sample.percentile(0.99) * 1e3)
    base = peers[-1].name
    print(f"{case.name}, {in_flight} in flight; ratios to {base}")
    for name, own in rates.items():
        rate = statistics.median(_ratios(own, rates[base]))
        cost = statistics.median(_ratios(costs[name], costs[base]))
        print(
            f"{name:13} {statistics.median(own):8,.0f} calls/s ({rate:.2f}x)"
            f"  {statistics.median(costs[name]):7.1f} us of CPU per call ({cost:.2f}x),"
            f" lowest {min(costs[name]):.1f}  p99 {statistics.median(tails[name]):.2f} ms"
        )


def _ratios(ours: Sequence[float], base: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(ours, base, strict=True)]
