"""Takes a call to its route, under the policies, and tells the hooks what became of it."""

from __future__ import annotations

import functools
import logging
import time
from typing import TYPE_CHECKING, Any

from connector_service.errors import ConnectorNotFoundError, UnsupportedOperationError
from connector_service.runtime import envelope
from connector_service.runtime.call import Call, Outcome, Status
from connector_service.runtime.envelope import MAGIC
from connector_service.runtime.guarantees import unguarded
from connector_service.runtime.hooks import OK, UNKNOWN_TASK_TYPE, CallRecord, Hooks
from connector_service.runtime.route import Plan, Routes
from connector_service.sdk.method import Operation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from flyteidl.admin.agent_pb2 import Agent

    from connector_service.config import ConnectorSection
    from connector_service.runtime.call import Refuse
    from connector_service.runtime.guarantees import Guarantees
    from connector_service.runtime.hooks import Kind
    from connector_service.runtime.route import Host, Route

__all__ = ["Dispatcher"]

_log = logging.getLogger(__name__)

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
        return self.answer(call, None, None)

    def answer(self, call: Call, refuse: Refuse | None, context: Any) -> Awaitable[Any]:
        """Answer one call with its value, or have ``refuse`` end it, which is given ``context``."""
        route = self.routes.by_category.get(call.category)  # type: ignore[arg-type] # none is None
        if (
            route is None
            or call.problem is not None
            or (call.operation in _ON_JOBS and call.message.resource_meta.startswith(MAGIC))
        ):
            return self._observed(
                call,
                route,
                functools.partial(self._without_host, route=route),
                None,
                refuse,
                context,
            )
        plan = route.plans.get((call.protocol, call.operation)) or self._plan(route, call)
        return self._observed(call, route, plan.run, plan.kind, refuse, context)

    def stream(self, call: Call, send: Callable[[Any], Awaitable[None]]) -> Awaitable[Outcome]:
        """Answer one call with many messages, each given to ``send`` as it comes."""
        route = self.routes.by_category.get(call.category)  # type: ignore[arg-type] # as above

        async def run(call: Call) -> None:
            known = self._known(call, route)
            if envelope.holds(call.message.resource_meta):
                _from_envelope(call)
            elif self._guarantees is None or not known.policy.guarantees:
                await known.host.stream(call, send)
            else:
                await self._guarantees.stream(known, call, send)

        return self._observed(call, route, run, None)

    def _plan(self, route: Route, call: Call) -> Plan:
        """Put together how calls like this one are answered and counted."""
        protocol, operation = call.protocol, call.operation
        run = (
            unguarded(route)
            if self._guarantees is None
            else self._guarantees.prepare(route, operation)
        )
        kind = self._hooks.kind(protocol, operation, route.category.name)
        plan = route.plans[protocol, operation] = Plan(run, kind)
        return plan

    async def _observed(
        self,
        call: Call,
        route: Route | None,
        run: Callable[[Call], Awaitable[Any]],
        kind: Kind | None,
        refuse: Refuse | None = None,
        context: Any = None,
    ) -> Any:
        """Return what a call came to, as ``answer`` does, or without ``refuse`` its ``Outcome``."""
        started = time.perf_counter()
        if kind is None:
            self._hooks.started(call.protocol, call.operation)
        else:
            kind.entered += 1
        status = _OK
        error: BaseException | None = None
        try:
            if call.problem is not None:
                raise call.problem  # noqa: TRY301 - refused, logged and counted as any other
            value = await run(call)
            return Outcome(value) if refuse is None else value
        except Exception as caught:  # noqa: BLE001 - every error has a status
            error = caught
            status = self._classify(caught, call)
        except BaseException as caught:
            error = caught
            status = self._classify(caught, call)
            raise
        finally:
            seconds = time.perf_counter() - started
            if kind is not None and status is _OK and (kind.loud is None or not kind.loud()):
                if call.operation in _WITH_INPUTS:
                    data = call.inputs_data
                    kind.well(seconds, _input_bytes(call) if data is None else len(data))
                else:
                    kind.well(seconds)
                for hear in kind.hear:
                    try:
                        hear(seconds)
                    except Exception:  # noqa: BLE001 - a listener never fails a call
                        _log.exception("A hook failed: %s", hear)
            else:
                self._tell(call, route, seconds, status, error)
            # The traceback of `error` holds this frame: a cycle that would hold the request.
            error = None
        return Outcome(status=status) if refuse is None else await refuse(context, status)

    def _tell(
        self,
        call: Call,
        route: Route | None,
        seconds: float,
        status: Status,
        error: BaseException | None,
    ) -> None:
        self._hooks.ended(
            CallRecord(
                call.protocol,
                call.operation,
                _label(call) if route is None else route.category.name,
                status.code,
                seconds,
                _input_bytes(call) if call.operation in _WITH_INPUTS else None,
                status.details,
                status.incident,
                error,
            )
        )

    async def _without_host(self, call: Call, *, route: Route | None) -> Any:
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
