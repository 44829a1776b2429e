"""Where the calls of one task category go, and what is promised for them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec
from flyteidl.admin.agent_pb2 import Agent

from connector_service.config import ConnectorSection
from connector_service.runtime.limits import Bulkhead
from connector_service.sdk.method import Operation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TypeAlias

    from connector_service.runtime.call import Call
    from connector_service.runtime.hooks import Kind
    from connector_service.sdk.resource import TaskCategory

    # Runs a call until a deadline, whatever the call's own is; None is without end.
    Runner: TypeAlias = Callable[[Call, float | None], Awaitable[Any]]

__all__ = ["Conflict", "Host", "Plan", "Route", "Routes", "Served"]


class Served(NamedTuple):
    """What a host says of one task category that it serves."""

    name: str
    is_sync: bool
    permanent_errors: tuple[type[Exception], ...] = ()


class Host(Protocol):
    """Runs the operations of some task categories; ``hosts`` has the kinds there are.

    One that can find things out before a call comes has ``prepare(category, operation)`` too, which
    returns a ``Runner``.
    """

    name: str

    def categories(self) -> Mapping[TaskCategory, Served]:
        """Tell what this host serves."""

    def agents(self) -> Sequence[Agent]:
        """Describe its connectors, from memory."""

    def prefers(self, category: TaskCategory) -> bool:
        """Tell whether it shall serve ``category`` though another host offers it too."""

    def run(self, call: Call) -> Awaitable[Any]:
        """Run one operation and answer in the protocol that the call came in."""

    async def stream(self, call: Call, send: Callable[[Any], Awaitable[None]]) -> None:
        """Run one operation that answers with many messages, and send each."""


class Plan(NamedTuple):
    """How a route's calls of one protocol and operation are answered; made at the first of them."""

    run: Callable[[Call], Awaitable[Any]]
    kind: Kind | None


class Route:
    """A task category's host, its settings, and the bulkheads that its calls pass.

    Streams have a bulkhead of their own: whoever follows logs for hours takes no slot of a poll.
    """

    def __init__(
        self, category: TaskCategory, host: Host, served: Served, policy: ConnectorSection
    ) -> None:
        """Take what is known of the category when the service starts."""
        self.category = category
        self.host = host
        self.served = served
        self.name = served.name
        self.is_sync = served.is_sync
        self.permanent = served.permanent_errors
        self.policy = policy
        self.bulkhead = Bulkhead(served.name, policy.concurrency, policy.queue)
        self.streams = Bulkhead(f"{served.name}'s logs", policy.concurrency, policy.queue)
        self.plans: dict[tuple[str, str], Plan] = {}
        self._caps = {
            Operation.CREATE: policy.create_timeout,
            Operation.GET: policy.get_timeout,
            Operation.GET_METRICS: policy.get_timeout,
            Operation.DELETE: policy.delete_timeout,
            Operation.DO: policy.do_timeout,
        }

    def deadline(self, call: Call) -> float:
        """Return when the call is answered at the latest: the client's deadline or our cap."""
        cap = time.monotonic() + self._caps[call.operation]
        return cap if call.deadline is None else min(call.deadline, cap)

    def runner(self, operation: Operation) -> Runner:
        """Return what has the host run an operation, found once."""
        prepare = getattr(self.host, "prepare", None)
        if prepare is not None:
            prepared: Runner = prepare(self.category, operation)
            return prepared
        run = self.host.run
        return lambda call, deadline: run(msgspec.structs.replace(call, deadline=deadline))


class Conflict(NamedTuple):
    """A task category that several hosts offer: ``kept`` serves it, ``refused`` do not."""

    category: TaskCategory
    kept: str
    refused: tuple[str, ...]


class Routes(Mapping["TaskCategory", Route]):
    """Every task category that is served, read from the hosts again whenever they change.

    A route lives on while its host serves its category alike: the calls in its bulkhead count.
    It belongs to the event loop's thread; readers elsewhere see the old map or the new one.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        policies: Mapping[str, ConnectorSection],
        offered: Callable[[str], bool] = lambda _task_type: True,
    ) -> None:
        """Take the hosts, the earlier before the later, and the settings by task type.

        ``offered`` tells which task types may be served at all.
        """
        self._hosts = tuple(hosts)
        self._offered = offered
        self._policies = policies
        self.by_category: Mapping[TaskCategory, Route] = {}
        self.agents: tuple[Agent, ...] = ()
        self.refresh()

    def __getitem__(self, category: TaskCategory) -> Route:
        return self.by_category[category]

    def __iter__(self) -> Iterator[TaskCategory]:
        return iter(self.by_category)

    def __len__(self) -> int:
        return len(self.by_category)

    def refresh(self) -> tuple[Conflict, ...]:
        """Read what the hosts serve now, and return what several of them offer.

        One that alone prefers the category serves it; else the first host does, and the others'
        offer is a conflict. So it is when two prefer it.
        """
        offers: dict[TaskCategory, list[tuple[Host, Served]]] = {}
        for host in self._hosts:
            for category, served in host.categories().items():
                if self._offered(category.name):
                    offers.setdefault(category, []).append((host, served))
        routes, conflicts = {}, []
        for category, given in offers.items():
            preferring = [offer for offer in given if offer[0].prefers(category)]
            host, served = (preferring or given)[0]
            if len(given) > 1 and len(preferring) != 1:
                others = tuple(other.name for other, _ in given if other is not host)
                conflicts.append(Conflict(category, host.name, others))
            routes[category] = self._route(category, host, served)
        self.by_category = routes
        self.agents = tuple(self._listed())
        return tuple(conflicts)

    def _route(self, category: TaskCategory, host: Host, served: Served) -> Route:
        known = self.by_category.get(category)
        if known is not None and known.host is host and known.served == served:
            return known
        policy = self._policies.get(category.name, ConnectorSection())
        return Route(category, host, served, policy)

    def _listed(self) -> Iterator[Agent]:
        """Yield each host's connectors with the categories that it really serves."""
        served = {(c.name, c.version): route.host for c, route in self.by_category.items()}
        for host in self._hosts:
            for agent in host.agents():
                own = [
                    category
                    for category in agent.supported_task_categories
                    if served.get((category.name, category.version)) is host
                ]
                if own:
                    yield Agent(
                        name=agent.name,
                        is_sync=agent.is_sync,
                        supported_task_types=list(dict.fromkeys(category.name for category in own)),
                        supported_task_categories=own,
                    )
