"""Another connector service as a host: discovered by what it lists, called by task type."""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import logging
import time
from typing import TYPE_CHECKING, Any

from connector_service.errors import ConfigError, HostError
from connector_service.hosts.channels import open_remote
from connector_service.hosts.discovery import Discovery, NoAnswerError
from connector_service.hosts.forward import Forwarder
from connector_service.hosts.listing import Listing
from connector_service.hosts.outer import HostKind, HostState, HostStatus
from connector_service.hosts.statuses import REMOTE, PeerError, lost
from connector_service.runtime.limits import Bulkhead
from connector_service.sdk.secrets import redact

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    import grpc
    from flyteidl.admin.agent_pb2 import Agent

    from connector_service.codec.convert import FlyteProtocol
    from connector_service.config import HostSection
    from connector_service.hosts.listing import Offer
    from connector_service.runtime.call import Call
    from connector_service.runtime.route import Served
    from connector_service.sdk.resource import TaskCategory

__all__ = ["RemoteHost"]

_log = logging.getLogger(__name__)

_EVERY = 10.0  # seconds between two questions what the peer serves; the client asks us as often
_SOON = 0.1  # of that, before a peer that gave no answer is asked again
_LOG_EVERY = 60.0  # seconds between two lines about refusals with one code


class _Line:
    """One channel to the peer, and how many calls are on it."""

    def __init__(self, name: str, settings: HostSection, listing: Listing) -> None:
        self.channel = open_remote(name, settings)
        self.forwarder = Forwarder(
            self.channel, name=name, protocols_of=listing.protocols, readings=REMOTE
        )
        self.discovery = Discovery(self.channel, settings.endpoint)
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextlib.contextmanager
    def used(self) -> Iterator[Forwarder]:
        """Hold the line open for one call."""
        self._calls += 1
        self._idle.clear()
        try:
            yield self.forwarder
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    async def leave(self) -> None:
        """Close the channel when its calls are done."""
        await self._idle.wait()
        await self.channel.close()


class RemoteHost:
    """A service of either protocol, or both, ours or another's, behind our guarantees.

    It is asked what it serves when we start and every 10 seconds. Its task types stay listed while
    it is away, and calls fail as transient: the policies retry or absorb them.
    """

    def __init__(
        self,
        name: str,
        settings: HostSection,
        *,
        on_event: Callable[[str, str], None] = lambda _kind, _detail: None,
        every: float = _EVERY,
    ) -> None:
        """Take the host's name and its section; ``every`` is how often the peer is asked (seconds).

        ``on_event`` hears of ``up``, ``down``, ``reloaded`` and ``reload_refused``, with a detail.
        """
        self.name = name
        self._settings = settings
        self._on_event = on_event
        self._every = every
        self._listing = Listing(settings.enable, settings.disable)
        self._line: _Line | None = None
        self._calls = Bulkhead(f"Host {name!r}", settings.concurrency, settings.concurrency)
        self._streams = Bulkhead(
            f"Host {name!r} with its logs", settings.concurrency, settings.concurrency
        )
        self._status = HostStatus.STARTING
        self._error = ""
        self._failures = 0  # answers that did not come, one after another
        self._callbacks: list[Callable[[], None]] = []
        self._asking = asyncio.Lock()
        self._keeping: asyncio.Task[None] | None = None
        self._leaving: dict[_Line, asyncio.Task[None]] = {}
        self._logged: dict[grpc.StatusCode, float] = {}

    # --- what it serves ------------------------------------------------------------------------

    def categories(self) -> Mapping[TaskCategory, Served]:
        """Tell what the peer listed, and ``enable`` and ``disable`` let through."""
        return self._listing.categories

    def agents(self) -> Sequence[Agent]:
        """Describe the peer's connectors, from memory."""
        return self._listing.agents

    def prefers(self, category: TaskCategory) -> bool:
        """Tell whether ``prefer`` names the category's task type."""
        return any(fnmatch.fnmatchcase(category.name, each) for each in self._settings.prefer)

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call back whenever ``categories`` has changed."""
        self._callbacks.append(callback)

    def snapshot(self) -> HostState:
        """Tell whether the peer answered when it was last asked."""
        return HostState(
            name=self.name,
            kind=HostKind.REMOTE,
            status=self._status,
            where=self._settings.endpoint,
            error=self._error,
        )

    # --- calls ---------------------------------------------------------------------------------

    async def run(self, call: Call) -> Any:
        """Run one operation at the peer, when one of its ``concurrency`` slots is free."""
        async with self._calls.entered(call.deadline):
            try:
                with self._open().used() as forwarder:
                    return await forwarder.run(call)
            except PeerError as error:
                self._say(error, call)
                raise

    async def stream(self, call: Call, send: Callable[[Any], Awaitable[None]]) -> None:
        """Pass a log on; whoever follows one takes no slot of the other calls."""
        async with self._streams.entered(call.deadline):
            try:
                with self._open().used() as forwarder:
                    await forwarder.stream(call, send)
            except PeerError as error:
                self._say(error, call)
                raise

    def _open(self) -> _Line:
        if self._line is None:
            raise lost(self.name)
        return self._line

    def _say(self, error: PeerError, call: Call) -> None:
        """Log what the peer said, which callers do not get to read: one line a minute."""
        now = time.monotonic()
        if now - self._logged.get(error.code(), -_LOG_EVERY) < _LOG_EVERY:
            return
        self._logged[error.code()] = now
        _log.warning(
            "remote host refused a call",
            extra={
                "host": self.name,
                "operation": str(call.operation),
                "task_type": call.category.name if call.category else "",
                "error": redact(str(error)),
            },
        )

    # --- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Ask the peer for the first time, within ``start_timeout``; then go on asking.

        Raises:
            ConfigError: The files for TLS cannot be used. A peer that is away is no error.
        """
        line = self._line = _Line(self.name, self._settings, self._listing)
        await self._ask(line, self._settings.start_timeout)
        self._keeping = asyncio.create_task(self._keep_asking(), name=f"list-{self.name}")

    async def close(self, grace: float) -> None:
        """Stop asking, and close the connections when their calls are done, or after ``grace``."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
            self._keeping = None
        if self._line is not None:
            self._leave(self._line)
            self._line = None
        leaving = dict(self._leaving)
        if leaving:
            await asyncio.wait(leaving.values(), timeout=grace)
        for line, task in leaving.items():
            task.cancel()
            await line.channel.close()  # fails what is still on it; nothing if it is closed
        await asyncio.gather(*leaving.values(), return_exceptions=True)

    async def reload(self) -> None:
        """Read the files again and connect anew; the old connection ends with its calls.

        Raises:
            HostError: The peer does not answer on the new connection, or the files cannot be used.
        """
        try:
            await self._replace()
        except (ConfigError, NoAnswerError) as error:
            self._on_event("reload_refused", str(error))
            raise HostError(f"{error} The connection as it was stays in use.") from None
        self._on_event("reloaded", self._settings.endpoint)

    async def _replace(self) -> None:
        """Put a connection that answers in place of the one there is."""
        fresh = _Line(self.name, self._settings, self._listing)
        async with self._asking:
            try:
                answer = await fresh.discovery.ask(self._settings.start_timeout)
            except BaseException:
                await fresh.channel.close()
                raise
            old, self._line = self._line, fresh
            self._answered(answer)
        if old is not None:
            self._leave(old)

    def _leave(self, line: _Line) -> None:
        task = asyncio.create_task(line.leave(), name=f"leave-{self.name}")
        self._leaving[line] = task
        task.add_done_callback(lambda _: self._leaving.pop(line, None))

    async def _keep_asking(self) -> None:
        while True:
            # One that is away is asked sooner: what it serves is wanted when it is back.
            soon = self._every * _SOON * 2 ** min(self._failures - 1, 16)
            await asyncio.sleep(min(soon, self._every) if self._failures else self._every)
            await self._ask(self._open(), self._settings.heartbeat_timeout)

    async def _ask(self, line: _Line, patience: float) -> None:
        """Ask the peer what it serves, and note what came of it."""
        async with self._asking:
            if line is not self._line:
                return  # replaced while we waited
            try:
                answer = await line.discovery.ask(patience)
            except NoAnswerError as error:
                self._unanswered(str(error))
            else:
                self._answered(answer)

    def _answered(self, answer: Mapping[FlyteProtocol, Mapping[TaskCategory, Offer]]) -> None:
        if self._status is not HostStatus.UP:
            _log.info("remote host is up", extra=self._facts())
            self._on_event("up", self._settings.endpoint)
        self._status, self._error, self._failures = HostStatus.UP, "", 0
        changes = [self._listing.answered(protocol, offers) for protocol, offers in answer.items()]
        if any(changes):
            for callback in self._callbacks:
                try:
                    callback()
                except Exception:  # noqa: BLE001 - a listener's; the host is up all the same
                    _log.exception("a change was not taken up", extra={"host": self.name})

    def _unanswered(self, error: str) -> None:
        if self._status is not HostStatus.DOWN:
            _log.warning("remote host is down", extra={**self._facts(), "error": error})
            self._on_event("down", error)
        self._status, self._error = HostStatus.DOWN, error
        self._failures += 1

    def _facts(self) -> dict[str, str]:
        return {"host": self.name, "endpoint": self._settings.endpoint}
