"""Takes a call to its route, under the policies, and tells the hooks what became of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

from connector_service.errors import ConnectorNotFoundError
from connector_service.runtime.call import Call, Outcome, Status
from connector_service.runtime.hooks import OK, UNKNOWN_TASK_TYPE, CallRecord, Hooks
from connector_service.sdk.method import Operation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from flyteidl.admin.agent_pb2 import Agent

    from connector_service.sdk.resource import TaskCategory

__all__ = ["Dispatcher", "Host"]

_WITH_INPUTS = (Operation.CREATE, Operation.DO)


class Host(Protocol):
    """Runs the operations of some task categories; ``hosts`` has the kinds there are."""

    def categories(self) -> Sequence[TaskCategory]:
        """List what this host serves."""

    def agents(self) -> Sequence[Agent]:
        """Describe its connectors, from memory."""

    async def run(self, call: Call) -> Any:
        """Run one operation and answer in the protocol that the call came in."""

    async def stream(self, call: Call, send: Callable[[Any], Awaitable[None]]) -> None:
        """Run one operation that answers with many messages, and send each."""


class Dispatcher:
    """One door for every call of every protocol.

    ``classify`` turns any exception into the status that refuses the call; the service's table
    of statuses is the wire's, and this layer speaks no gRPC.
    """

    def __init__(
        self, hosts: Sequence[Host], classify: Callable[[BaseException, Call], Status], hooks: Hooks
    ) -> None:
        """Take the hosts, the status table and the listeners."""
        self._classify = classify
        self._hooks = hooks
        self._hosts = tuple(hosts)
        self._routes = {category: host for host in hosts for category in host.categories()}

    async def dispatch(self, call: Call) -> Outcome:
        """Answer one call, whatever happens on the way; only a caller who left raises."""
        return await self._observed(call, self._run)

    async def stream(self, call: Call, send: Callable[[Any], Awaitable[None]]) -> Outcome:
        """Answer one call with many messages, each given to ``send`` as it comes."""

        async def run(call: Call) -> None:
            await self._route(call).stream(call, send)

        return await self._observed(call, run)

    async def _observed(self, call: Call, run: Callable[[Call], Awaitable[Any]]) -> Outcome:
        started = time.perf_counter()
        self._hooks.started(call.protocol, call.operation)
        status: Status | None = None
        error: BaseException | None = None
        try:
            if call.problem is not None:
                raise call.problem  # noqa: TRY301 - refused, logged and counted as any other
            return Outcome(await run(call))
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
                    protocol=call.protocol,
                    operation=call.operation,
                    task_type=self._label(call),
                    code=OK if status is None else status.code,
                    seconds=time.perf_counter() - started,
                    input_bytes=_input_bytes(call),
                    details="" if status is None else status.details,
                    incident="" if status is None else status.incident,
                    error=error,
                )
            )
            # The traceback of `error` holds this frame: a cycle that would hold the request.
            error = None

    async def _run(self, call: Call) -> Any:
        if call.operation is Operation.LIST:
            return [agent for host in self._hosts for agent in host.agents()]
        if call.operation is Operation.DESCRIBE:
            return self._describe(call.message.name)
        return await self._route(call).run(call)

    def _describe(self, name: str) -> Agent:
        agents = {agent.name: agent for host in self._hosts for agent in host.agents()}
        if name not in agents:
            raise ConnectorNotFoundError(f"name {name!r}", agents)
        return agents[name]

    def _route(self, call: Call) -> Host:
        category = call.category
        host = self._routes.get(category) if category else None
        if category is None or host is None:
            raise ConnectorNotFoundError(
                f"task type {category.spoken}" if category else "a call without a task type",
                (known.listed for known in self._routes),
            )
        return host

    def _label(self, call: Call) -> str:
        if call.category is None:
            return "" if call.problem is None else UNKNOWN_TASK_TYPE
        return call.category.name if call.category in self._routes else UNKNOWN_TASK_TYPE


def _input_bytes(call: Call) -> int | None:
    if call.operation not in _WITH_INPUTS or call.message is None:
        return None
    size: int = (call.message if call.inputs is None else call).inputs.ByteSize()
    return size
