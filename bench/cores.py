"""More cores: one connector's load over the workers of its host, many clients' over the service's.

Servers and clients have all cores. Each server is loaded in turn, several times, and its rate is
told as a ratio to that of the same with one worker in the same turn.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import messages
from bench.load import Connection, Load
from bench.messages import FLYTE1
from bench.peers import ours

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.peers import Peer

__all__ = ["cores"]

_GET = "/flyteidl.service.AsyncAgentService/GetTask"
_TURN = 4.0  # seconds
_CLIENTS, _IN_FLIGHT = 16, 2  # the kernel spreads connections by chance: many are spread evenly
_APART = 10**7  # numbers of jobs
_MODULE = "bench.connectors_cores"


def cores(most: int, turns: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure one worker and ``most`` of them, of a process host and of the service itself.

    Raises:
        bench.load.LoadError: A call failed.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kinds = {"workers of a process host": _hosted, "serve --workers": _workers}
        return {
            kind: _compare({number: make(number, folder) for number in (1, most)}, turns, kind, say)
            for kind, make in kinds.items()
        }


def _compare(
    peers: dict[int, Peer], turns: int, kind: str, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    rates: dict[int, list[float]] = {number: [] for number in peers}
    with contextlib.ExitStack() as stack:
        servers = {
            number: stack.enter_context(peer.serve(settle=2.0, core=None))
            for number, peer in peers.items()
        }
        for turn in range(turns):
            say(f"{kind}, turn {turn + 1} of {turns}")
            for number, server in servers.items():
                rates[number].append(_rate(server.port))
    one = rates[min(rates)]
    return [
        {
            "workers": number,
            "calls per second": statistics.median(own),
            "to one worker": statistics.median(a / b for a, b in zip(own, one, strict=True)),
        }
        for number, own in rates.items()
    ]


def _rate(port: int) -> float:
    """Load a server from many connections and return the calls per second of all of them."""

    def one(number: int) -> float:
        load = Load(_GET, messages.get(FLYTE1, "v1_burning"), _IN_FLIGHT)
        with contextlib.closing(Connection("127.0.0.1", port, load)) as connection:
            # Each polls other jobs: who polls the same at once shares an answer.
            return connection.run(seconds=_TURN, first=number * _APART).rate

    with ThreadPoolExecutor(_CLIENTS) as clients:
        return sum(clients.map(one, range(_CLIENTS)))


def _hosted(number: int, folder: Path) -> Peer:
    settings = folder / f"{number}.toml"
    settings.write_text(
        f'[hosts.burning]\nsources = ["module:{_MODULE}"]\nworkers = {number}\n', encoding="utf-8"
    )
    return ours(f"--config={settings}")


def _workers(number: int, _folder: Path) -> Peer:
    return ours(f"--workers={number}", f"--module={_MODULE}")
