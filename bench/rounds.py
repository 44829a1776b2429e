"""Rounds of calls: every server alive at once, taking short turns in rotating order.

A shared machine's speed changes within seconds, by half and more. Turns of a second or less see
all servers under the same conditions, so a round's ratio is of medians of neighbouring turns, and
the result is the median over rounds, each with servers freshly started.
"""

from __future__ import annotations

import contextlib
import json
import statistics
from typing import TYPE_CHECKING, Any, NamedTuple

from flyteidl.admin import agent_pb2
from flyteidl.core.execution_pb2 import TaskExecution
from flyteidl.core.literals_pb2 import LiteralMap
from flyteidl2.connector import connector_pb2

from bench import messages
from bench.behaviour import COUNT
from bench.load import Body, Connection, Load, LoadError, frame_message
from bench.messages import FLYTE1
from bench.process import CLIENT_CORE, cpu, on_core

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.cases import Case
    from bench.peers import Peer, Running

__all__ = ["Row", "Turns", "run_round"]

_APART = 10**7  # numbers of calls that no two stretches of load share


class Turns(NamedTuple):
    """How long and how often each server is loaded, per case and round."""

    seconds: float = 1.0
    count: int = 3
    warm_up: float = 0.3


class Row(NamedTuple):
    """What one server came to in one case of one round; medians of its turns."""

    case: str
    peer: str
    in_flight: int
    rate: float  # calls per second
    cpu: float  # seconds of the server's processor time per call
    p50: float  # seconds
    p99: float
    calls: int
    client: float  # share of a core that the client used


def run_round(
    peers: Sequence[Peer], plan: Sequence[tuple[Case, int]], turns: Turns, number: int
) -> list[Row]:
    """Run one round of cases, each with so many calls in flight; the ``number`` rotates the order.

    Raises:
        LoadError: A call failed, an answer was wrong, or calls did not reach the connector.
    """
    rows = []
    with contextlib.ExitStack() as stack:
        servers = {peer.name: stack.enter_context(peer.serve()) for peer in peers}
        stack.enter_context(on_core(CLIENT_CORE))
        for place, (case, in_flight) in enumerate(plan):
            able = [peer for peer in peers if peer.answers(case)]
            shift = (number + place) % len(able)
            order = able[shift:] + able[:shift]
            rows += _run_case(case, in_flight, order, servers, turns, (place + 1) * 10 * _APART)
    return rows


def _run_case(
    case: Case,
    in_flight: int,
    order: Sequence[Peer],
    servers: dict[str, Running],
    turns: Turns,
    first: int,
) -> list[Row]:
    body = case.make()
    samples: dict[str, list[tuple[Any, float]]] = {peer.name: [] for peer in order}
    with contextlib.ExitStack() as stack:
        connections = {}
        before = {}
        for peer in order:
            server = servers[peer.name]
            before[peer.name] = _reached(peer, server, case)
            connection = stack.enter_context(
                contextlib.closing(
                    Connection("127.0.0.1", server.port, Load(case.path, body, in_flight))
                )
            )
            _verify(case, connection.ask(first))
            warm = connection.run(seconds=turns.warm_up, first=first + 1)
            connections[peer.name] = connection
            before[peer.name] += warm.calls + 1
        for turn in range(turns.count):
            shift = turn % len(order)
            for peer in (*order[shift:], *order[:shift]):
                pid = servers[peer.name].pid
                spent = cpu(pid)
                sample = connections[peer.name].run(seconds=turns.seconds)
                samples[peer.name].append((sample, (cpu(pid) - spent) / sample.calls))
        for peer in order:
            _verify(case, connections[peer.name].ask(first + 9 * _APART))
            calls = 1 + sum(sample.calls for sample, _ in samples[peer.name])
            reached = _reached(peer, servers[peer.name], case) - before[peer.name]
            # Threads may count two calls as one, each of those in flight once at most.
            if peer.counts and case.counted and not reached - 1 <= calls <= reached + in_flight:
                raise LoadError(
                    f"{peer.name} {case.name}: {calls} calls were answered, {reached} reached the"
                    f" connector; the rest were answered from memory, or not at all."
                )
    return [_row(case, peer.name, in_flight, samples[peer.name]) for peer in order]


def _row(case: Case, peer: str, in_flight: int, samples: Sequence[tuple[Any, float]]) -> Row:
    def median(values: Any) -> float:
        return statistics.median(values)

    return Row(
        case.name,
        peer,
        in_flight,
        median(sample.rate for sample, _ in samples),
        median(spent for _, spent in samples),
        median(sample.percentile(0.5) for sample, _ in samples),
        median(sample.percentile(0.99) for sample, _ in samples),
        sum(sample.calls for sample, _ in samples),
        median(sample.own_cpu / sample.seconds for sample, _ in samples),
    )


def _reached(peer: Peer, server: Running, case: Case) -> int:
    """Ask the connector itself how many calls have reached it."""
    if not peer.counts or not case.counted:
        return 0
    kinds: Any = agent_pb2 if case.protocol == FLYTE1 else connector_pb2
    request = kinds.GetTaskRequest(
        resource_meta=json.dumps({"job": COUNT}).encode(),
        task_category=kinds.TaskCategory(name=case.task_type),
    )
    load = Load(case.get_path, Body(frame_message(request.SerializeToString())), in_flight=1)
    with contextlib.closing(Connection("127.0.0.1", server.port, load)) as connection:
        answer = kinds.GetTaskResponse.FromString(connection.ask())
    return int(answer.resource.message or 0)


def _verify(case: Case, answer: bytes) -> None:
    """Check one answer, whole.

    Raises:
        LoadError: It is not what the connector answered.
    """
    kinds: Any = agent_pb2 if case.protocol == FLYTE1 else connector_pb2
    if case.path.endswith("CreateTask"):
        meta = kinds.CreateTaskResponse.FromString(answer).resource_meta
        good = json.loads(meta) == {"job": "0000000000"}
    elif case.path.endswith("GetTask"):
        resource = kinds.GetTaskResponse.FromString(answer).resource
        good = _is_answer(resource, ended=case.target == "outputs")
    else:
        response = agent_pb2.ExecuteTaskSyncResponse.FromString(answer)
        good = response.header.resource.phase == TaskExecution.SUCCEEDED
    if not good:
        raise LoadError(f"{case.name} was answered with {answer!r}.")


def _is_answer(resource: Any, *, ended: bool) -> bool:
    if not ended:
        return bool(resource.phase == TaskExecution.RUNNING)
    outputs = LiteralMap.FromString(resource.outputs.SerializeToString())
    return bool(resource.phase == TaskExecution.SUCCEEDED and outputs == messages.outputs())
