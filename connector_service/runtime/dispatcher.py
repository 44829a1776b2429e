"""Takes a call to its route, under the policies, and tells the hooks what became of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from connector_service.errors import ConnectorNotFoundError, UnsupportedOperationError
from connector_service.runtime import envelope
from connector_service.runtime.call import Call, Outcome, Status
from connector_service.runtime.guarantees import run_sync
from connector_service.runtime.hooks import OK, UNKNOWN_TASK_TYPE, CallRecord, Hooks
from connector_service.runtime.route import Routes
from connector_service.sdk.method import Operation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from flyteidl.admin.agent_pb2 import Agent

    from connector_service.config import ConnectorSection
    from connector_service.runtime.guarantees import Guarantees
    from connector_service.runtime.route import Host, Route

__all__ = ["Dispatcher"]

_WITH_INPUTS = frozenset((Operation.CREATE, Operation.DO))
_ON_JOBS = frozenset((Operation.GET, Operation.DELETE, Operation.GET_METRICS))
_OK = Status(OK, "")


class Dispatcher:
    """One door for every call of every protocol.

    ``classify`` turns any exception into the status that refuses the call; the service's table
    of statuses is the wire's, and this layer speaks no gRPC.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        classify: Callable[[BaseException, Call], Status],
        hooks: Hooks,
        *,
        guarantees: Guarantees | None = None,
        policies: Mapping[str, ConnectorSection] | None = None,
        offered: Callable[[str], bool] = lambda _task_type: True,
    ) -> None:
        """Take the hosts, the status table and the listeners.

        ``guarantees`` None passes every call straight through; ``policies`` are the settings by
        task type, the defaults where there are none; ``offered`` is as ``Routes`` has it.
        """
        self._classify = classify
        self._hooks = hooks
        self._guarantees = guarantees
        self.routes = Routes(hosts, policies or {}, offered)

    async def start(self) -> None:
        """Begin to look after jobs.

        Raises:
            StartupError: What is created can never be remembered where the settings say.
        """
        if self._guarantees is not None:
            await self._guarantees.start(self.routes)

    async def close(self, grace: float) -> None:
        """Let what runs without a caller end within ``grace`` seconds."""
        if self._guarantees is not None:
            await self._guarantees.close(grace)

    def dispatch(self, call: Call) -> Awaitable[Outcome]:
        """Answer one call, whatever happens on the way; only a caller who left raises."""
        return self._observed(call, self._run)

    def stream(self, call: Call, send: Callable[[Any], Awaitable[None]]) -> Awaitable[Outcome]:
        """Answer one call with many messages, each given to ``send`` as it comes."""

        async def run(call: Call, route: Route | None) -> None:
            route = self._known(call, route)
            if envelope.holds(call.message.resource_meta):
                _from_envelope(call)
            elif self._guarantees is None or not route.policy.guarantees:
                await route.host.stream(call, send)
            else:
                await self._guarantees.stream(route, call, send)

        return self._observed(call, run)

    async def _observed(
        self, call: Call, run: Callable[[Call, Route | None], Awaitable[Any]]
    ) -> Outcome:
        started = time.perf_counter()
        protocol, operation = call.protocol, call.operation
        self._hooks.started(protocol, operation)
        route = self.routes.find(call.category)
        status = _OK
        error: BaseException | None = None
        try:
            if call.problem is not None:
                raise call.problem  # noqa: TRY301 - refused, logged and counted as any other
            return Outcome(await run(call, route))
        except Exception as caught:  # noqa: BLE001 - every error has a status
            error = caught
            status = self._classify(caught, call)
            return Outcome(status=status)
        except BaseException as caught:
            error = caught
            status = self._classify(caught, call)
            raise
        finally:
            self._hooks.ended(
                CallRecord(
                    protocol,
                    operation,
                    _label(call) if route is None else route.category.name,
                    status.code,
                    time.perf_counter() - started,
                    _input_bytes(call) if operation in _WITH_INPUTS else None,
                    status.details,
                    status.incident,
                    error,
                )
            )
            # The traceback of `error` holds this frame: a cycle that would hold the request.
            error = None

    def _run(self, call: Call, route: Route | None) -> Awaitable[Any]:
        if route is None or (
            call.operation in _ON_JOBS and envelope.holds(call.message.resource_meta)
        ):
            return self._without_host(call, route)
        if self._guarantees is None:
            return run_sync(route, call, route.host.run)
        return self._guarantees.run(route, call)

    async def _without_host(self, call: Call, route: Route | None) -> Any:
        """Answer what no host need be asked: about connectors, and about jobs in envelopes."""
        if call.operation is Operation.LIST:
            return self.routes.agents
        if call.operation is Operation.DESCRIBE:
            return self._describe(call.message.name)
        self._known(call, route)
        return _from_envelope(call)

    def _describe(self, name: str) -> Agent:
        agents = {agent.name: agent for agent in self.routes.agents}
        if name not in agents:
            raise ConnectorNotFoundError(f"name {name!r}", agents)
        return agents[name]

    def _known(self, call: Call, route: Route | None) -> Route:
        if route is not None:
            return route
        category = call.category
        raise ConnectorNotFoundError(
            f"task type {category.spoken}" if category else "a call without a task type",
            (known.listed for known in self.routes),
        )


def _label(call: Call) -> str:
    """Return the metric label of a call without a route: a made-up name must not become one."""
    return "" if call.category is None and call.problem is None else UNKNOWN_TASK_TYPE


def _from_envelope(call: Call) -> Any:
    """Answer for a job that had ended when it was created; no host knows it."""
    if call.operation is Operation.GET:
        return envelope.open_as(call.protocol, call.message.resource_meta)
    if call.operation is Operation.DELETE:
        return None
    raise UnsupportedOperationError(
        f"The job ended when it was created and has no {call.operation.removeprefix('get_')}."
    )


def _input_bytes(call: Call) -> int | None:
    if call.message is None:
        return None
    if call.inputs_data is not None:
        return len(call.inputs_data)
    size: int = (call.message if call.inputs is None else call).inputs.ByteSize()
    return size
