"""What is promised for a call, as policies in one fixed order around the host's work.

For every call: its deadline, then retries inside it, then the connector's bulkhead. Around that::

    create   create once -> failed for good becomes an envelope -> a sync type runs here -> ...
    get      poll memory and absorption -> ... (no retries: the next poll comes by itself)
    delete   gone is deleted -> ...
    do       a user's failure becomes a phase, and the reply terminal and bounded -> ...
    metrics, logs  ...

Each policy is a module of its own with its own tests; this one only puts them in their order.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import time
from typing import TYPE_CHECKING, Any

import msgspec
from flyteidl.admin import agent_pb2
from flyteidl.core.execution_pb2 import TaskExecution
from flyteidl2.connector import connector_pb2

from connector_service.codec.convert import FlyteProtocol
from connector_service.errors import AuthorError, CallError, ConnectorNotFoundError, GoneError
from connector_service.runtime import envelope, settle
from connector_service.runtime.absorb import Polls, Source
from connector_service.runtime.call import Call
from connector_service.runtime.hooks import Happening
from connector_service.runtime.once import CreateOnce, idempotency_key
from connector_service.runtime.orphans import Sweeper
from connector_service.runtime.retry import retried
from connector_service.runtime.sizes import MetaWatch, bound
from connector_service.sdk.method import Operation
from connector_service.sdk.resource import is_terminal_phase

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from connector_service.config import Ledger as LedgerSettings
    from connector_service.runtime.hooks import Hooks
    from connector_service.runtime.ledger import Ledger
    from connector_service.runtime.route import Route, Runner
    from connector_service.sdk.resource import TaskCategory

__all__ = ["Guarantees", "unguarded"]


class Guarantees:
    """The policies of one service and what they remember; ``start`` it, ``close`` it."""

    def __init__(self, ledger: Ledger, settings: LedgerSettings, hooks: Hooks) -> None:
        """Take where created jobs are remembered, and whom to tell what was done."""
        self._hooks = hooks
        self._ledger = ledger
        self._metas = MetaWatch()
        self._polls = Polls(lambda event, category: self._tell("poll", category, event))
        self._once = CreateOnce(
            ledger,
            ledger_down=settings.ledger_down,
            on_unguarded=lambda category: self._tell("unguarded_create", category),
        )
        self._sweeper = Sweeper(
            ledger,
            self._delete_orphan,
            on_orphan=lambda category, outcome: self._tell("orphan", category, outcome),
        )
        self._routes: Mapping[TaskCategory, Route] = {}
        self._promised: Mapping[str, Callable[[Route, Runner, Call], Awaitable[Any]]] = {
            Operation.CREATE: self._create,
            Operation.DELETE: self._delete,
            Operation.DO: self._do,
        }

    async def start(self, routes: Mapping[TaskCategory, Route]) -> None:
        """Open the ledger and begin to look after jobs.

        Raises:
            StartupError: The ledger can never work as it is configured.
        """
        self._routes = routes
        await self._ledger.open()
        await self._once.start()
        await self._sweeper.start()

    async def close(self, grace: float) -> None:
        """Let creates that run end within ``grace`` seconds, and write what is known."""
        await self._once.close(grace)
        await self._sweeper.close()
        await self._polls.close()
        await self._ledger.close()

    async def sweep(self) -> int:
        """Delete the orphans that are due, without waiting for the next round; count them."""
        return await self._sweeper.sweep()

    def prepare(self, route: Route, operation: str) -> Callable[[Call], Awaitable[Any]]:
        """Put together what answers a route's calls about jobs or tasks as promised."""
        if not route.policy.guarantees:
            return unguarded(route)
        if operation == Operation.GET:
            return functools.partial(self._polls.poll, self._source(route))
        promised = self._promised.get(operation, self._attempt)
        if route.is_sync and operation == Operation.CREATE:
            operation = Operation.DO
        return functools.partial(promised, route, route.runner(Operation(operation)))

    async def stream(
        self, route: Route, call: Call, send: Callable[[Any], Awaitable[None]]
    ) -> None:
        """Answer one call with many messages as promised; its length is the client's to bound."""
        async with route.streams.entered(call.deadline):
            await route.host.stream(call, send)

    # --- one operation each --------------------------------------------------------------------

    def _create(self, route: Route, run: Runner, call: Call) -> Awaitable[bytes]:
        deadline = route.deadline(call)
        make = functools.partial(self._make, route, run, call, deadline)
        key = idempotency_key(route.category, call.message.output_prefix)
        return self._once.create(route.category, key, make, route.policy, deadline=deadline)

    async def _make(
        self, route: Route, run: Runner, call: Call, deadline: float, key: str
    ) -> bytes:
        """Create one job. Its callers wait until ``deadline``; it may go on when they have gone."""
        until = time.monotonic() + route.policy.create_limit
        call = Call(
            call.protocol,
            Operation.DO if route.is_sync else Operation.CREATE,
            call.category,
            call.message,
            call.inputs,
            until,
            None,
            call.inputs_data,
            key,
            call.template_data,
        )
        try:
            made = await self._attempt(route, run, call, deadline, until)
            meta: bytes = _sealed(call.protocol, made) if route.is_sync else made
        except Exception as error:
            if settle.final_fault(error, route.permanent):
                return settle.failed_at_create(error)
            raise
        self._metas.inspect(route.category, meta)
        return meta

    def _source(self, route: Route) -> Source:
        fetch = route.runner(Operation.GET)
        delete = functools.partial(self._delete_polled, route)
        return Source(route.policy, route.bulkhead, fetch, delete, route.permanent)

    async def _delete_polled(self, route: Route, call: Call) -> None:
        await self._delete(route, route.runner(Operation.DELETE), _deleting(route, call))

    async def _delete(self, route: Route, run: Runner, call: Call) -> None:
        with contextlib.suppress(GoneError):  # what is gone is deleted
            await self._attempt(route, run, call)

    async def _do(self, route: Route, run: Runner, call: Call) -> Any:
        try:
            resource = await self._attempt(route, run, call)
            if not is_terminal_phase(resource.phase):
                resource = _ended(resource)
            return _bounded(call.protocol, resource)
        except Exception as error:
            if settle.final_fault(error, route.permanent):
                return settle.failure(call.protocol, error)
            raise

    # --- what every call passes ----------------------------------------------------------------

    async def _attempt(
        self,
        route: Route,
        run: Runner,
        call: Call,
        begin_by: float | None = None,
        until: float | None = None,
    ) -> Any:
        """Try within the deadline; a create that ``begin_by`` then has begun may run ``until``."""
        if begin_by is None or until is None:
            begin_by = until = route.deadline(call)
        bulkhead = route.bulkhead
        try:
            entered = bulkhead.enter(begin_by)
            since = await bulkhead.wait(begin_by) if entered is None else entered
            try:
                return await run(call, until)
            finally:
                bulkhead.leave(since)
        except CallError:  # our own refusal
            raise
        except Exception as error:
            if not route.policy.retry_transient:
                raise
            failed = error
        try:
            return await retried(
                functools.partial(_enter, route, run, call, begin_by, until),
                begin_by,
                permanent=route.permanent,
                on_retry=lambda _error, _wait: self._tell("retry", route.category, call.operation),
                failed=(failed, since),
            )
        finally:
            del failed  # its traceback holds this frame, and with it the request

    # --- deletions of our own ------------------------------------------------------------------

    async def _delete_orphan(self, category: TaskCategory, resource_meta: bytes) -> None:
        """Delete a job that no client will delete; its task's connection is not known any more.

        Raises:
            ConnectorNotFoundError: Another replica, or a later start, may have the connector.
        """
        if envelope.holds(resource_meta):
            return
        route = self._routes.get(category)
        if route is None:
            known = (known.listed for known in self._routes)
            raise ConnectorNotFoundError(f"task type {category.spoken}", known)
        request = agent_pb2.DeleteTaskRequest(resource_meta=resource_meta)
        call = Call(FlyteProtocol.FLYTE1, Operation.DELETE, category, request)
        await self._delete(route, route.runner(Operation.DELETE), call)

    def _tell(self, kind: str, category: TaskCategory, detail: str = "") -> None:
        self._hooks.happened(Happening(kind, category.name, str(detail)))


def unguarded(route: Route) -> Callable[[Call], Awaitable[Any]]:
    """Return what answers a route's calls with nothing promised for them."""
    return functools.partial(_run_bare, route)


async def _run_bare(route: Route, call: Call) -> Any:
    """Run a call, with what sync types need: a reply in a terminal phase, and creates."""
    run = route.host.run
    if route.is_sync and call.operation is Operation.CREATE:
        return _sealed(
            call.protocol, await run(msgspec.structs.replace(call, operation=Operation.DO))
        )
    value = await run(call)
    return _ended(value) if call.operation is Operation.DO else value


async def _enter(route: Route, run: Runner, call: Call, begin_by: float, until: float) -> Any:
    """Run a call in a slot of its connector."""
    async with route.bulkhead.entered(begin_by):
        return await run(call, until)


def _sealed(protocol: str, resource: Any) -> bytes:
    """Make a create of a sync type's reply.

    Flyte 2 has no RPC for sync types, and Flyte 1 can be configured not to use it: such a create
    does the work at once, and the result rides in the resource meta.
    """
    return envelope.seal(_bounded(protocol, _ended(resource)))


def _deleting(route: Route, call: Call) -> Call:
    """Make the delete of the job that a get asks for, with the same connection."""
    known: dict[str, Any] = {"resource_meta": call.message.resource_meta}
    kind: Any = agent_pb2.DeleteTaskRequest
    if call.protocol == FlyteProtocol.FLYTE2:
        kind, known["connection"] = connector_pb2.DeleteTaskRequest, call.message.connection
    return Call(call.protocol, Operation.DELETE, route.category, kind(**known))


def _ended(resource: Any) -> Any:
    """Return a sync reply in a terminal phase; any other would panic Flyte 1's client.

    It caches an item without a resource meta, and each poll of that kills one of its ten workers.
    """
    if not is_terminal_phase(resource.phase):
        known = resource.phase in TaskExecution.Phase.values()
        phase = TaskExecution.Phase.Name(resource.phase) if known else resource.phase
        resource = copy.copy(resource)  # it may be the connector's own, and answer again
        resource.message = f"The sync connector answered {phase}, not an end. {resource.message}"
        resource.phase = TaskExecution.RETRYABLE_FAILED
    return resource


def _bounded(protocol: str, resource: Any) -> Any:
    """Return a sync reply that fits, or the failure that says why: another try ends here too."""
    try:
        return bound(resource)
    except AuthorError as error:
        return settle.ended(
            protocol, TaskExecution.FAILED, str(error), code="ReplyTooLarge", origin="user"
        )
