"""How cost grows: with the payload, with calls in flight, jobs known and connectors registered.

Cost is the server's processor time, as a ratio to the floor's in the same turns; memory is bytes.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flyteidl.core.literals_pb2 import LiteralMap

from bench import messages
from bench.cases import CASES
from bench.load import Body, Connection, Load, frame_message
from bench.messages import FLYTE1
from bench.peers import PEERS
from bench.process import CLIENT_CORE, cpu, on_core, resident
from bench.scale import GET, TAILS, alone, serving, tails

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from bench.peers import Peer, Running

__all__ = ["growth", "known_jobs"]

_CREATE = "/flyteidl.service.AsyncAgentService/CreateTask"
_SIZES = (1, 10, 100, 1_024, 10_240)  # KB
_IN_FLIGHT = (1, 16, 128, 1_024)
_CONNECTORS = (1, 10, 100, 500)
_TURNS = 9
_FILL = 50_000  # jobs over one connection
_numbers = itertools.count(1_000_000, 1_000_000)  # no two connections ask for the same jobs


class Cost(NamedTuple):
    """Seconds of a server's processor time per call, and its ratio to the last server's."""

    seconds: float
    ratio: float


def growth(jobs: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure all four, with up to ``jobs`` jobs known.

    Raises:
        bench.load.LoadError: A call failed.
    """
    found: dict[str, Any] = {}
    say("payload")
    found["payload"] = _payloads()
    say("calls in flight")
    found["in_flight"] = _in_flight()
    say("connectors")
    found["connectors"] = _connectors()
    for kind in ("polled", "created"):
        say(f"jobs {kind}")
        found[kind] = known_jobs(kind, (0, jobs // 5, jobs), say)
    return found


def known_jobs(
    kind: str, levels: Sequence[int], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Make a service know ever more jobs over the wire, and return what it costs at each level."""
    body = CASES["get-1" if kind == "polled" else "create-1k-1"].make()
    path = GET if kind == "polled" else _CREATE
    rows = []
    with _served({"ours": PEERS["ours"], "floor": PEERS["floor"]}) as servers:
        loads = dict.fromkeys(servers, Load(path, body))
        with _connected(servers, loads) as connections:
            _costs(servers, connections, 500, turns=2)
        empty, known = resident(servers["ours"].pid)[0], 0
        for level in levels:
            while known < level:  # a connection is closed after some minutes
                calls = min(_FILL, level - known)
                say(f"{known} jobs {kind}")
                with _connected({"ours": servers["ours"]}, loads) as connections:
                    connections["ours"].run(calls=calls)
                known += calls
            full = resident(servers["ours"].pid)[0]
            with _connected(servers, loads) as connections:
                cost = _costs(servers, connections, 500)["ours"]
            rows.append(
                {
                    "jobs": level,
                    **cost._asdict(),
                    "bytes_per_job": (full - empty) / max(1, known),
                    **alone(tails, servers["ours"].port, 2.0),
                }
            )
            known += 500 * _TURNS
    return rows


# --- the rest ----------------------------------------------------------------------------------


def _payloads() -> list[dict[str, Any]]:
    rows = []
    for size in _SIZES:
        body = messages.create(FLYTE1, "v1_noop", _strings(size))
        with _served({"ours": PEERS["ours"], "floor": PEERS["floor"]}) as servers:
            loads = dict.fromkeys(servers, Load(_CREATE, body, 4 if size > 1_000 else 16))
            with _connected(servers, loads) as connections:
                calls = max(8, min(500, 20_000 // size))
                costs = _costs(servers, connections, calls)
        peaks = {name: _peak(PEERS[name], body) for name in costs}
        row = {"kilobytes": size, **costs["ours"]._asdict(), "floor": costs["floor"].seconds}
        rows.append(row | {"peak": peaks["ours"], "floor_peak": peaks["floor"]})
    return rows


def _in_flight() -> list[dict[str, Any]]:
    rows = []
    with _served({"ours": PEERS["ours"], "floor": PEERS["floor"]}) as servers:
        for number in _IN_FLIGHT:
            loads = dict.fromkeys(servers, Load(GET, CASES["get-1"].make(), number))
            with _connected(servers, loads) as connections:
                costs = _costs(servers, connections, max(500, 2 * number))
            row = {"in_flight": number, **costs["ours"]._asdict()}
            rows.append(row | {"floor": costs["floor"].seconds})
    return rows


def _connectors() -> list[dict[str, Any]]:
    """Compare services with few and many connectors; ratios are to the fewest."""
    lists = Load(TAILS["ListAgents"][0], Body(frame_message(TAILS["ListAgents"][1])))
    peers = {str(number): serving(number) for number in reversed(_CONNECTORS)}
    with _served(peers) as servers:
        time.sleep(2.0)
        memory = {name: resident(server.pid)[0] for name, server in servers.items()}
        gets = {
            name: Load(GET, messages.get(FLYTE1, f"v1_many_{int(name) - 1}")) for name in servers
        }
        with _connected(servers, gets) as connections:
            polled = _costs(servers, connections, 500)
        with _connected(servers, dict.fromkeys(servers, lists)) as connections:
            listed = _costs(servers, connections, 200)
    base, few = _CONNECTORS[0], str(_CONNECTORS[0])
    return [
        {
            "connectors": number,
            **polled[str(number)]._asdict(),
            "list": listed[str(number)].seconds,
            "list_ratio": listed[str(number)].ratio,
            "resident": memory[str(number)],
            "start": servers[str(number)].cpu,
            "bytes_each": (memory[str(number)] - memory[few]) / max(1, number - base),
        }
        for number in _CONNECTORS
    ]


def _strings(kilobytes: int) -> LiteralMap:
    inputs = LiteralMap()
    for index in range(kilobytes):
        value = f"{index:05d}-" + "x" * 1018
        inputs.literals[f"text_{index:05d}"].scalar.primitive.string_value = value
    return inputs


@contextlib.contextmanager
def _served(peers: Mapping[str, Peer]) -> Iterator[dict[str, Running]]:
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(peer.serve()) for name, peer in peers.items()}


@contextlib.contextmanager
def _connected(
    servers: Mapping[str, Running], loads: Mapping[str, Load]
) -> Iterator[dict[str, Connection]]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(on_core(CLIENT_CORE))
        connections = {
            name: stack.enter_context(
                contextlib.closing(Connection("127.0.0.1", server.port, loads[name]))
            )
            for name, server in servers.items()
        }
        first = next(_numbers)
        for connection in connections.values():
            connection.run(calls=1, first=first)
        yield connections


def _costs(
    servers: Mapping[str, Running],
    connections: Mapping[str, Connection],
    calls: int,
    turns: int = _TURNS,
) -> dict[str, Cost]:
    """Let the servers take turns of so many calls, and return the medians."""
    taken: dict[str, list[float]] = {name: [] for name in servers}
    for connection in connections.values():
        connection.run(calls=max(1, calls // 4))
    for _ in range(turns):
        for name, connection in connections.items():
            before = cpu(servers[name].pid)
            connection.run(calls=calls)
            taken[name].append((cpu(servers[name].pid) - before) / calls)
    *_, last = taken.values()
    return {
        name: Cost(
            statistics.median(own),
            statistics.median(one / other for one, other in zip(own, last, strict=True)),
        )
        for name, own in taken.items()
    }


def _peak(peer: Peer, body: Body) -> int:
    """Return the bytes by which a server that has seen small calls alone grows for one call."""
    small = Load(_CREATE, CASES["create-1k-1"].make(), 1)
    with _served({"it": peer}) as servers, _connected(servers, {"it": small}) as warm:
        warm["it"].run(calls=200)
        pid = servers["it"].pid
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")  # forget its peak
        before, _ = resident(pid)
        with _connected(servers, {"it": Load(_CREATE, body, 1)}):
            status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return max(0, int(line.split()[1]) * 1024 - before)
