"""Runs connector objects that live in this process."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from connector_service.errors import UnsupportedOperationError, WrongKindError
from connector_service.hosts.crossing import Crossing, Values
from connector_service.runtime.batch import Batches
from connector_service.runtime.invoker import contain
from connector_service.runtime.route import Served
from connector_service.sdk.method import Method, Operation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from flyteidl.admin.agent_pb2 import Agent

    from connector_service.runtime.call import Call
    from connector_service.runtime.invoker import Invoker
    from connector_service.runtime.route import Runner
    from connector_service.sdk.registry import Registration, Registry
    from connector_service.sdk.resource import TaskCategory

__all__ = ["InlineHost"]


class InlineHost:
    """Decodes what a connector's method takes, has it invoked, encodes what it returns."""

    name = "inline"

    def __init__(
        self,
        registry: Registry,
        invoker: Invoker,
        on_batch: Callable[[TaskCategory, int], None] = lambda _category, _polls: None,
    ) -> None:
        """Take the connectors and who runs their code.

        ``on_batch`` hears how many polls one call answers, of connectors that answer many.
        """
        self._on_batch = on_batch
        self._registry = registry
        self._invoker = invoker
        self._crossings: dict[tuple[TaskCategory | None, Operation], Crossing] = {}
        self._decoder: ThreadPoolExecutor | None = None  # made when it is needed

    def categories(self) -> Mapping[TaskCategory, Served]:
        """Tell what the registry holds."""
        return {
            registration.category: Served(
                registration.connector.name,
                registration.is_sync,
                registration.connector.permanent_errors,
            )
            for registration in self._registry
        }

    def agents(self) -> Sequence[Agent]:
        """Describe the registry's connectors."""
        return self._registry.list_connectors()

    def prefers(self, _category: TaskCategory) -> bool:
        """Stand back where another host is preferred."""
        return False

    def run(self, call: Call) -> Awaitable[Any]:
        """Run one operation: create gives bytes, get and do a Resource message, delete nothing."""
        return self._crossing(call).run(call, call.deadline)

    def prepare(self, category: TaskCategory, operation: Operation) -> Runner:
        """Return what runs one operation of a category as ``run`` does, until a deadline."""
        registry = self._registry
        operate: Runner | None = None
        seen = -1

        def run(call: Call, deadline: float | None) -> Awaitable[Any]:
            nonlocal operate, seen
            if operate is None or registry.changes != seen:
                changes = registry.changes
                operate = self._crossing(call).run
                seen = changes
            return operate(call, deadline)

        return run

    async def stream(self, call: Call, send: Callable[[Any], Awaitable[None]]) -> None:
        """Send every message of ``get_logs`` as the connector produces it."""
        crossing = self._crossing(call)
        arguments = contain(crossing.read, call)
        # Closed here and now: a caller who left while a message was being sent left us, not it.
        async with contextlib.aclosing(
            self._invoker.iterate(crossing.method, arguments, call.deadline)
        ) as items:
            async for item in items:
                await send(contain(crossing.write_item, item, call))

    def _operate(self, crossing: Crossing) -> Runner:
        if crossing.together is not None:
            return functools.partial(self._poll, crossing, *crossing.together)
        operate = self._invoker.prepare(crossing.method, crossing.read, crossing.write)
        inputs = crossing.inputs
        if inputs is None:
            return operate

        def run(call: Call, deadline: float | None) -> Awaitable[Any]:
            if inputs.are_large(call):
                return self._decode(crossing, inputs, call, deadline)
            return operate(call, deadline)

        return run

    async def _decode(
        self, crossing: Crossing, inputs: Values, call: Call, deadline: float | None
    ) -> Any:
        """Run a call with large inputs: what takes long is done on a thread, and others go on.

        One at a time: more would not end sooner, and each of them would hold up the event loop.
        """
        values = inputs.try_quickly(call)
        if values is None:
            if self._decoder is None:
                self._decoder = ThreadPoolExecutor(1, "decode-inputs")
            loop = asyncio.get_running_loop()
            values = await loop.run_in_executor(self._decoder, inputs, call)
        read = functools.partial(crossing.read_others, values)
        del values  # they are large, and the connector may take its time
        return await self._invoker.operate(crossing.method, read, crossing.write, call, deadline)

    async def _poll(
        self,
        crossing: Crossing,
        together: Crossing,
        batches: Batches,
        call: Call,
        deadline: float | None,
    ) -> Any:
        """Run a poll, with others where there are any; else alone, by ``crossing``."""
        more = dict(contain(together.read, call))
        meta = more.pop("resource_metas")

        async def alone() -> Any:
            arguments = contain(crossing.read, call)
            return await self._invoker.invoke(crossing.method, arguments, deadline)

        value = await batches.ask(meta, more, deadline, alone)
        return contain(crossing.write, value, call)

    def _crossing(self, call: Call) -> Crossing:
        """Return how the call reaches its method, found once for a registration's methods."""
        registration = self._registry.resolve(call.category)  # type: ignore[arg-type]
        key = (call.category, call.operation)
        known = self._crossings.get(key)
        if known is None or known.registration is not registration:
            known = Crossing(registration, _method(registration, call.operation))
            many = registration.methods.get(Operation.GET_MANY)
            if many is not None and call.operation is Operation.GET:
                known.together = Crossing(registration, many), self._batches(registration, many)
            known.run = self._operate(known)
            self._crossings[key] = known
        return known

    def _batches(self, registration: Registration, many: Method) -> Batches:
        connector: Any = registration.connector
        count = functools.partial(self._on_batch, registration.category)
        return Batches(connector.name, many, connector.batch_size, self._invoker, count)


def _method(registration: Registration, operation: Operation) -> Method:
    method = registration.methods.get(operation)
    if method is not None:
        return method
    name, category = registration.connector.name, registration.category.spoken
    if registration.is_sync and operation is not Operation.DO:
        raise WrongKindError(
            f"{name} serves task type {category} synchronously: call ExecuteTaskSync, not"
            f" {operation}; ListAgents says is_sync for it."
        )
    if operation is Operation.DO:
        raise WrongKindError(
            f"{name} serves task type {category} asynchronously: call CreateTask and GetTask, not"
            f" ExecuteTaskSync."
        )
    raise UnsupportedOperationError(f"{name} (task type {category}) has no {operation}.")
