"""Rounds of calls: every server alive at once, taking short turns in rotating order.

A shared machine's speed changes within seconds, by half and more. In turns of a fraction of a
second all servers meet the same conditions: what counts is the ratio of neighbouring turns, and
the median of those of all rounds, each with servers freshly started.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from flyteidl.admin import agent_pb2
from flyteidl.core.execution_pb2 import TaskExecution
from flyteidl.core.literals_pb2 import LiteralMap
from flyteidl2.connector import connector_pb2

from bench import messages
from bench.behaviour import COUNT
from bench.load import Body, Connection, Load, LoadError, frame_message
from bench.messages import FLYTE1
from bench.process import CLIENT_CORE, awake, cpu, on_core

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.cases import Case
    from bench.load import Sample
    from bench.peers import Peer, Running

__all__ = ["Row", "Turn", "Turns", "run_round"]

_APART = 10**7  # numbers of calls that no two stretches of load share


class Turns(NamedTuple):
    """How long and how often each server is loaded, per case and round."""

    seconds: float
    times: int
    warm_up: float


class Turn(NamedTuple):
    """One server's turn."""

    calls: int
    rate: float  # calls per second
    cpu: float  # seconds of the server's processor time per call
    p50: float  # seconds
    p99: float
    client: float  # share of a core that the client used


class Row(NamedTuple):
    """What one server came to in one case of one round; every server has as many turns."""

    case: str
    peer: str
    in_flight: int
    turns: list[Turn]


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
    taken: dict[str, list[Turn]] = {peer.name: [] for peer in order}
    with contextlib.ExitStack() as stack:
        stack.enter_context(awake(in_flight))
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
        for turn in range(turns.times):
            shift = turn % len(order)
            for peer in (*order[shift:], *order[:shift]):
                pid = servers[peer.name].pid
                spent = cpu(pid)
                sample = connections[peer.name].run(seconds=turns.seconds)
                taken[peer.name].append(_turn(sample, cpu(pid) - spent))
        for peer in order:
            _verify(case, connections[peer.name].ask(first + 9 * _APART))
            calls = 1 + sum(turn.calls for turn in taken[peer.name])
            reached = _reached(peer, servers[peer.name], case) - before[peer.name]
            # Threads may count two calls as one, each of those in flight once at most.
            if peer.counts and case.counted and not reached - 1 <= calls <= reached + in_flight:
                raise LoadError(
                    f"{peer.name} {case.name}: {calls} calls were answered, {reached} reached the"
                    f" connector; the rest were answered from memory, or not at all."
                )
    return [Row(case.name, peer.name, in_flight, taken[peer.name]) for peer in order]


def _turn(sample: Sample, spent: float) -> Turn:
    return Turn(
        sample.calls,
        sample.rate,
        spent / sample.calls,
        sample.percentile(0.5),
        sample.percentile(0.99),
        sample.own_cpu / sample.seconds,
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
