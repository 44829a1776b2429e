"""Where the calls of one task category go, and what is promised for them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from connector_service.runtime.limits import Bulkhead
from connector_service.sdk.method import Operation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from flyteidl.admin.agent_pb2 import Agent

    from connector_service.config import ConnectorSection
    from connector_service.runtime.call import Call
    from connector_service.sdk.resource import TaskCategory

__all__ = ["Host", "Route", "Served"]


class Served(NamedTuple):
    """What a host says of one task category that it serves."""

    name: str
    is_sync: bool
    permanent_errors: tuple[type[Exception], ...] = ()


class Host(Protocol):
    """Runs the operations of some task categories; ``hosts`` has the kinds there are."""

    def categories(self) -> Mapping[TaskCategory, Served]:
        """Tell what this host serves."""

    def agents(self) -> Sequence[Agent]:
        """Describe its connectors, from memory."""

    async def run(self, call: Call) -> Any:
        """Run one operation and answer in the protocol that the call came in."""

    async def stream(self, call: Call, send: Callable[[Any], Awaitable[None]]) -> None:
        """Run one operation that answers with many messages, and send each."""


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
        self.name = served.name
        self.is_sync = served.is_sync
        self.permanent = served.permanent_errors
        self.policy = policy
        self.bulkhead = Bulkhead(served.name, policy.concurrency, policy.queue)
        self.streams = Bulkhead(f"{served.name}'s logs", policy.concurrency, policy.queue)
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
