"""A mixed load, paced: calls of every kind begin at their times, whatever becomes of those before.

Each knows what it must be answered with; anything else is an error that the load did not ask for.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from flyteidl.admin import agent_pb2
from flyteidl.core.execution_pb2 import TaskExecution
from flyteidl2.connector import connector_pb2
from grpc_health.v1 import health_pb2

from bench import messages
from bench.connectors_endurance import LINES
from bench.messages import FLYTE1, FLYTE2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from bench.load import Body

__all__ = ["Mix"]

_JOBS = {
    FLYTE1: "/flyteidl.service.AsyncAgentService/",
    FLYTE2: "/flyteidl2.connector.AsyncConnectorService/",
}
_KINDS: dict[str, Any] = {FLYTE1: agent_pb2, FLYTE2: connector_pb2}
_TIMEOUT = 30.0  # seconds of a call
_MOST_LATE = 20_000  # calls in flight; more say that the load is not carried at all
_ENDED = 1_000  # jobs that wait for their delete
_FAULTY = 50  # jobs whose every poll fails
_OK = grpc.StatusCode.OK


class WrongAnswerError(Exception):
    """An answer came that the load did not ask for."""


class Mix:
    """All kinds of calls on one connection; ``run`` begins them at a rate."""

    def __init__(self, port: int, seed: int = 1) -> None:
        """Prepare the requests."""
        options = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)
        self._random = random.Random(seed)  # noqa: S311
        self._numbers = itertools.count(1)
        small, large = messages.inputs_1k(), messages.inputs_1m()
        self._creates: dict[tuple[str, str], Body] = {
            (protocol, name): messages.create(protocol, name, small)
            for protocol in _JOBS
            for name in ("mix_1", "mix_2", "mix_hosted", "mix_slow", "mix_faulty", "mix_none")
        }
        self._creates |= {
            (protocol, "large"): messages.create(protocol, "mix_1", large) for protocol in _JOBS
        }
        names = ("mix_1", "mix_2", "mix_hosted", "mix_plain", "mix_faulty")
        self._gets = {(p, name): messages.get(p, name) for p in _JOBS for name in names}
        self._execute = messages.execute("mix_sync", small)
        # A client speaks one protocol: what it has created it polls in the same.
        self._living: dict[tuple[str, str], deque[int]] = {key: deque() for key in self._gets}
        self._ended: deque[tuple[str, int]] = deque(maxlen=_ENDED)
        self._calls: dict[str, Any] = {}
        self.done: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.latencies: list[float] = []
        # Of a hundred calls; what is not asked for so often is in tenths.
        self._table: list[tuple[float, str, Callable[[], Awaitable[None]]]] = [
            *((10, f"get {name}, {p}", self._getter(p, name)) for p in _JOBS
              for name in ("mix_1", "mix_2")),
            *((2, f"get mix_hosted, {p}", self._getter(p, "mix_hosted")) for p in _JOBS),
            (4, "get mix_plain", self._get_plain),
            *((5, f"create {name}, {p}", self._creator(p, name)) for p in _JOBS
              for name in ("mix_1", "mix_2")),
            *((1, f"create mix_hosted, {p}", self._creator(p, "mix_hosted")) for p in _JOBS),
            *((0.2, f"create 1 MB, {p}", self._creator(p, "large")) for p in _JOBS),
            (9, "delete", self._delete),
            (6, "do", self._do),
            (4, "ListAgents", self._list),
            (4, "health", self._health),
            (1, "stream of logs", self._logs),
            (1, "leave a create", self._leave_create),
            (0.5, "leave a stream", self._leave_logs),
            (1, "create that is refused", self._faulty_create),
            (2, "get that fails", self._faulty_get),
            (0.5, "unknown task type", self._unknown),
        ]  # fmt: skip

    async def close(self) -> None:
        """Hang up."""
        await self._channel.close()

    async def run(self, rate: float, seconds: float) -> float:
        """Begin ``rate`` calls a second; return the longest delay of a beginning, in seconds."""
        weights = list(itertools.accumulate(weight for weight, _, _ in self._table))
        running: set[asyncio.Task[None]] = set()
        began, latest = time.perf_counter(), 0.0
        for number in range(int(rate * seconds)):
            due = began + number / rate
            wait = due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            elif number % 50 == 0:
                await asyncio.sleep(0)
            latest = max(latest, -wait)
            if len(running) > _MOST_LATE:
                raise RuntimeError(f"{_MOST_LATE} calls are in flight: the load is not carried.")
            _, name, call = self._random.choices(self._table, cum_weights=weights)[0]
            task = asyncio.create_task(self._one(name, call, due))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)
        return latest

    async def _one(self, name: str, call: Callable[[], Awaitable[None]], due: float) -> None:
        try:
            await call()
        except grpc.aio.AioRpcError as error:
            self.wrong[f"{name}: {error.code().name} {error.details()}"] += 1
        except WrongAnswerError as error:
            self.wrong[f"{name}: {error}"] += 1
        else:
            self.latencies.append(time.perf_counter() - due)
            self.done[name] += 1

    # --- kinds of calls ------------------------------------------------------------------------

    async def _ask(self, path: str, request: bytes) -> bytes:
        call = self._calls.get(path)
        if call is None:
            call = self._calls[path] = self._channel.unary_unary(path)
        answer: bytes = await call(request, timeout=_TIMEOUT)
        return answer

    def _creator(self, protocol: str, name: str) -> Callable[[], Awaitable[None]]:
        body, living = self._creates[protocol, name], self._living.get((protocol, name))
        kind = _KINDS[protocol].CreateTaskResponse

        async def create() -> None:
            answer = await self._ask(_JOBS[protocol] + "CreateTask", self._numbered(body))
            meta: bytes = kind.FromString(answer).resource_meta
            if not meta.startswith(b'{"job"'):
                raise WrongAnswerError(f"the meta is {meta!r}")
            if living is not None:
                living.append(int(meta.split(b'"')[3]))

        return create

    def _getter(self, protocol: str, name: str) -> Callable[[], Awaitable[None]]:
        """Poll the jobs of a type in turn, and note which have ended."""
        body, living = self._gets[protocol, name], self._living[protocol, name]
        kind = _KINDS[protocol].GetTaskResponse

        async def get() -> None:
            if not living:
                return
            job = living.popleft()
            answer = await self._ask(_JOBS[protocol] + "GetTask", body.numbered(job)[5:])
            resource = kind.FromString(answer).resource
            if resource.phase == TaskExecution.SUCCEEDED and resource.outputs.literals:
                self._ended.append((name, job))
            elif resource.phase == TaskExecution.RUNNING:
                living.append(job)
            else:
                raise WrongAnswerError(f"the phase is {resource.phase}: {resource.message}")

        return get

    async def _get_plain(self) -> None:
        body = self._gets[FLYTE1, "mix_plain"]
        await self._phase(body.numbered(self._random.randrange(1_000)), TaskExecution.RUNNING)

    async def _faulty_get(self) -> None:
        body = self._gets[FLYTE1, "mix_faulty"]
        phases = (TaskExecution.RUNNING, TaskExecution.RETRYABLE_FAILED)  # when patience ran out
        await self._phase(body.numbered(self._random.randrange(_FAULTY)), *phases)

    async def _faulty_create(self) -> None:
        body = self._numbered(self._creates[FLYTE1, "mix_faulty"])
        answer = await self._ask(_JOBS[FLYTE1] + "CreateTask", body)
        meta = agent_pb2.CreateTaskResponse.FromString(answer).resource_meta
        request = agent_pb2.GetTaskRequest(
            resource_meta=meta, task_category=agent_pb2.TaskCategory(name="mix_faulty")
        )
        await self._phase(b"-----" + request.SerializeToString(), TaskExecution.FAILED)

    async def _phase(self, framed: bytes, *phases: int) -> None:
        answer = await self._ask(_JOBS[FLYTE1] + "GetTask", framed[5:])
        resource = agent_pb2.GetTaskResponse.FromString(answer).resource
        if resource.phase not in phases:
            raise WrongAnswerError(f"the phase is {resource.phase}: {resource.message}")

    async def _delete(self) -> None:
        if not self._ended:
            return
        name, job = self._ended.popleft()
        request = agent_pb2.DeleteTaskRequest(
            resource_meta=b'{"job": "%010d"}' % job,
            task_category=agent_pb2.TaskCategory(name=name),
        )
        await self._ask(_JOBS[FLYTE1] + "DeleteTask", request.SerializeToString())

    async def _do(self) -> None:
        data, parts = self._numbered(self._execute, frame=0), []
        while data:
            size = int.from_bytes(data[1:5], "big")
            parts.append(data[5 : 5 + size])
            data = data[5 + size :]
        call: Any = self._channel.stream_stream(
            "/flyteidl.service.SyncAgentService/ExecuteTaskSync"
        )
        answers = [answer async for answer in call(iter(parts), timeout=_TIMEOUT)]
        found = agent_pb2.ExecuteTaskSyncResponse.FromString(answers[0]).header.resource.phase
        if found != TaskExecution.SUCCEEDED:
            raise WrongAnswerError(f"the phase is {found}")

    async def _list(self) -> None:
        answer = await self._ask("/flyteidl.service.AgentMetadataService/ListAgents", b"")
        listed = agent_pb2.ListAgentsResponse.FromString(answer).agents
        if not any("mix_hosted" in str(agent) for agent in listed):
            raise WrongAnswerError("the host's connector is not listed")

    async def _health(self) -> None:
        answer = await self._ask("/grpc.health.v1.Health/Check", b"")
        if health_pb2.HealthCheckResponse.FromString(answer).status != 1:
            raise WrongAnswerError("not SERVING")

    async def _logs(self) -> None:
        lines = [line async for line in self._stream()]
        if len(lines) != LINES:
            raise WrongAnswerError(f"{len(lines)} lines came")

    async def _leave_logs(self) -> None:
        stream = self._stream()
        async for _ in stream:
            stream.cancel()
            return

    def _stream(self) -> Any:
        name = self._random.choice(("mix_1", "mix_hosted"))
        request = agent_pb2.GetTaskLogsRequest(
            resource_meta=b'{"job": "0000000000"}', task_category=agent_pb2.TaskCategory(name=name)
        )
        path = _JOBS[FLYTE1] + "GetTaskLogs"
        return self._channel.unary_stream(path)(request.SerializeToString(), timeout=_TIMEOUT)

    async def _leave_create(self) -> None:
        request = self._numbered(self._creates[FLYTE1, "mix_slow"])
        create: Any = self._channel.unary_unary(_JOBS[FLYTE1] + "CreateTask")
        call = create(request)
        await asyncio.wait({asyncio.ensure_future(call.wait_for_connection())}, timeout=0.1)
        await asyncio.sleep(self._random.uniform(0.01, 0.3))
        call.cancel()

    async def _unknown(self) -> None:
        request = self._numbered(self._creates[FLYTE1, "mix_none"])
        try:
            await self._ask(_JOBS[FLYTE1] + "CreateTask", request)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
        else:
            raise WrongAnswerError("it was answered")

    def _numbered(self, body: Body, frame: int = 5) -> bytes:
        return body.numbered(next(self._numbers))[frame:]
