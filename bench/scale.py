"""Many at once: calls in flight, jobs known, and what health and ListAgents feel of them."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flyteidl.admin import agent_pb2
from grpc_health.v1 import health_pb2

from bench import messages
from bench.behaviour import COUNT
from bench.connectors_scale import GO, MANY
from bench.load import Body, Connection, Load, ask, frame_message
from bench.messages import FLYTE1
from bench.peers import PEERS
from bench.process import CLIENT_CORE, on_core, resident
from bench.stores import STORES, store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.peers import Peer, Running

__all__ = ["GET", "TAILS", "alone", "poll", "scale", "serving"]

GET = "/flyteidl.service.AsyncAgentService/GetTask"
# What must not feel the load of others.
TAILS = {
    "ListAgents": (
        "/flyteidl.service.AgentMetadataService/ListAgents",
        agent_pb2.ListAgentsRequest().SerializeToString(),
    ),
    "health": (
        "/grpc.health.v1.Health/Check",
        health_pb2.HealthCheckRequest().SerializeToString(),
    ),
}
_SETTINGS = Path(__file__).parent / "scale.toml"
_HELD = "v1_held"
_ROUNDS = 3
_PATIENCE = 25.0  # seconds until all calls are in flight


def scale(calls: int, jobs: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure ``calls`` in flight and ``jobs`` known.

    Raises:
        bench.load.LoadError: A call failed.
    """
    found: dict[str, Any] = {"in_flight": [], "steady": [], "stores": []}
    for number in range(_ROUNDS):
        say(f"calls in flight, round {number + 1} of {_ROUNDS}")
        found["in_flight"].append(_held(calls))
        found["steady"].append(_steady(calls))
    for name in STORES:
        say(f"{jobs} jobs known to {name}")
        found["stores"].append(alone(store, name, jobs))
    return found


def serving(connectors: int = 0) -> Peer:
    """Return our service with the connectors of ``connectors_scale``, so many idle ones of them."""
    program = (
        f"import os; os.environ[{MANY!r}] = '{connectors}';"
        f" from connector_service.cli.main import main; main()"
    )
    modules = ["--module=bench.connectors_ours", "--module=bench.connectors_scale"]

    def command(port: int, metrics: int) -> list[str]:
        where = [f"--port={port}", f"--prometheus-port={metrics}", f"--config={_SETTINGS}"]
        return ["-c", program, "serve", *where, *modules]

    return PEERS["ours"]._replace(command=command)


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call in a process of its own, which nothing else has warmed or filled."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *arguments).result()


def tails(port: int, seconds: float) -> dict[str, float]:
    """Return p99 in seconds of what must stay flat, one call at a time."""
    found = {}
    with on_core(CLIENT_CORE):
        for name, (path, message) in TAILS.items():
            load = Load(path, Body(frame_message(message)), in_flight=1)
            with contextlib.closing(Connection("127.0.0.1", port, load)) as connection:
                connection.run(seconds=0.2)
                found[name] = connection.run(seconds=seconds).percentile(0.99)
    return found


def poll(port: int, task_type: str, job: str) -> str:
    """Poll one job, on a connection of its own, and return the message that comes with its phase.

    Raises:
        bench.load.LoadError: The call failed.
    """
    request = agent_pb2.GetTaskRequest(
        resource_meta=json.dumps({"job": job}).encode(),
        task_category=agent_pb2.TaskCategory(name=task_type),
    )
    answer = ask(port, GET, request.SerializeToString())
    message: str = agent_pb2.GetTaskResponse.FromString(answer).resource.message
    return message


# --- calls in flight ---------------------------------------------------------------------------


def _held(calls: int) -> dict[str, Any]:
    """Hold calls in flight, and return what they cost in memory and to others."""
    with serving().serve(settle=1.0) as server:
        alone(tails, server.port, 0.5)
        idle = alone(tails, server.port, 2.0)
        before, _ = resident(server.pid)
        with _loaded(server, _HELD, calls, calls=calls):
            _until(lambda: _held_by(server) == calls)
            during, _ = resident(server.pid)
            held = alone(tails, server.port, 2.0)
            poll(server.port, _HELD, GO)
        alone(tails, server.port, 4.0)  # protobuf trims the heap every so many messages
        after, _ = resident(server.pid)
    return {
        "calls": calls,
        "bytes_per_call": (during - before) / calls,
        "bytes_left_per_call": (after - before) / calls,
        "idle": idle,
        "held": held,
    }


def _steady(calls: int) -> dict[str, Any]:
    """Compare p99 beside equally many calls a second, of which few or ``calls`` are in flight."""
    found: dict[str, Any] = {"calls": calls}
    with serving().serve(settle=1.0) as server:
        alone(tails, server.port, 0.5)
        found["idle"] = alone(tails, server.port, 2.0)
        # The mean of Slow is a thousand times that of Short.
        for name, task_type, in_flight, wait in (
            ("few", "v1_short", max(1, calls // 1000), 1.0),
            ("many", "v1_slow", calls, 12.0),  # the first calls come all at once
        ):
            with _loaded(server, task_type, in_flight, seconds=wait + 6.0):
                time.sleep(wait)
                found[name] = alone(tails, server.port, 2.0)
    return found


@contextlib.contextmanager
def _loaded(server: Running, task_type: str, in_flight: int, **run_for: Any) -> Iterator[None]:
    """Keep polls in flight meanwhile, and wait for their ends; each must succeed."""
    body = messages.get(FLYTE1, task_type)
    failures: list[Exception] = []

    def run() -> None:
        try:
            with on_core(CLIENT_CORE), contextlib.closing(connection):
                connection.run(**run_for)
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            failures.append(error)

    connection = Connection("127.0.0.1", server.port, Load(GET, body, in_flight))
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if failures:
        raise failures[0]


def _held_by(server: Running) -> int:
    return int(poll(server.port, _HELD, COUNT))


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"Not all calls were in flight within {_PATIENCE:g} s.")
        time.sleep(0.1)
