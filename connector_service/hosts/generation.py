"""One child of a host, from its start to its end: its process, its channel, its heart."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import secrets
import signal
import time
import urllib.parse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import grpc
import grpc.aio
import msgspec

from connector_service.errors import ConfigError, TransientError
from connector_service.hosts.channels import CHILD_OPTIONS
from connector_service.hosts.forward import Forwarder
from connector_service.hosts.handshake import VERSION, Handshake, Offer
from connector_service.hosts.output import Output, Throttle
from connector_service.hosts.spawn import Process
from connector_service.hosts.statuses import ERROR_KEY, PeerError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping
    from pathlib import Path

    from connector_service.config import HostSection
    from connector_service.hosts.procfs import Sizes
    from connector_service.runtime.call import Call

__all__ = ["Generation", "Plan", "StartError", "Timing", "surely"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

TOKEN = "connector-host-token"  # noqa: S105 - the name of the metadata
_PING = "/connector_service.host.v1.Host/Ping"
_LONGEST_SOCKET = 107  # bytes; unix(7)

# What a call ends with when the other side of its connection dies.
_BROKEN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
)


class Timing(NamedTuple):
    """The constants of a process host; seconds, where nothing else is said."""

    heartbeat: float = 1.0  # between two pings
    first_wait: float = 0.2  # before the first restart, then doubled ...
    longest_wait: float = 30.0  # ... up to this
    steady: float = 60.0  # of life, after which the next wait is the first again
    short: float = 30.0  # of life; less is an end too soon
    crash_loop: int = 3  # ends too soon in a row
    patience: float = 8.0  # that a call without a worker waits; less than propeller's 10
    margin: float = 0.1  # before a call's deadline, so that our answer is there first
    drain: float = 60.0  # that calls in flight get when their process is replaced
    last: float = 3.0  # between SIGTERM and SIGKILL
    memory_kill: float = 1.5  # times memory_limit: no time for a replacement
    lines: int = 200  # of output a second


@dataclass(frozen=True)
class Plan:
    """All that the children of one host have in common."""

    name: str
    section: HostSection
    run_dir: Path
    command: tuple[str, ...]
    folder: str | None
    environ: dict[str, str]
    timing: Timing
    throttle: Throttle
    sizes: Sizes
    log_level: str = "info"
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def socket(self, worker: int, number: int) -> Path:
        """Name the socket of a worker's n-th child.

        Raises:
            ConfigError: The folder's path is too long for any socket.
        """
        plain = self.name if re.fullmatch(r"[\w.-]+", self.name, re.ASCII) else ""
        short = hashlib.sha256(self.name.encode()).hexdigest()[:8]
        for name in filter(None, (plain, short)):
            path = self.run_dir / f"{name}-{worker}-{number}.sock"
            if len(os.fsencode(path)) <= _LONGEST_SOCKET:
                return path
        raise ConfigError(
            f"The folder for sockets, {self.run_dir}, has a path too long for a socket, which has"
            f" {_LONGEST_SOCKET} bytes at most; choose a shorter one with --run-dir."
        )


class StartError(Exception):
    """A child did not come up; the text is one redacted sentence without a subject."""


class Generation:
    """A child that shook hands. It is used until it ends, is replaced, or hangs."""

    def __init__(
        self, plan: Plan, worker: int, process: Process, output: Output, socket: Path
    ) -> None:
        """Take a process that was just started; ``start`` makes one."""
        self.plan = plan
        self.worker = worker
        self.pid = process.pid
        self.output = output
        self.offer = Offer()
        self.calls = 0
        self.rss = 0
        self.doomed = ""  # why we killed it
        self.draining = False
        self._process = process
        self._socket = socket
        self._idle = asyncio.Event()
        self._channel: grpc.aio.Channel | None = None
        self._metadata: tuple[tuple[str, str], ...] = ()
        self._forwarder: Any = None
        self._beating: asyncio.Task[None] | None = None
        self._since = time.monotonic()
        self._heard = self._since

    @classmethod
    async def start(cls, plan: Plan, worker: int, number: int) -> Generation:
        """Start a child and return it when it has answered.

        Raises:
            StartError: It did not.
            ConfigError: It can never be started as it is configured.
        """
        socket = plan.socket(worker, number)
        socket.unlink(missing_ok=True)
        token = secrets.token_hex(32)
        output = Output(plan.name, worker, plan.throttle)
        section = plan.section
        settings = {
            "v": VERSION,
            "host": plan.name,
            "worker": worker,
            "socket": str(socket),
            "token": token,
            "sources": section.sources,
            "enable": section.enable,
            "disable": section.disable,
            "threads": section.threads,
            "log_level": plan.log_level,
            "options": plan.options,
        }
        try:
            process = Process(
                list(plan.command),
                plan.folder,
                plan.environ,
                msgspec.json.encode(settings) + b"\n",
                output,
            )
        except OSError as error:
            raise ConfigError(
                f"[hosts.{plan.name}] python = {plan.command[0]!r} cannot be started"
                f" ({error.strerror or error}); set it to a Python interpreter, and cwd to a folder"
                f" that exists."
            ) from error
        generation = cls(plan, worker, process, output, socket)
        try:
            async with asyncio.timeout(section.start_timeout):
                await generation._shake_hands(token)
        except BaseException as error:
            process.kill()
            await surely(generation.finish())
            if isinstance(error, TimeoutError):
                raise StartError(
                    f"did not answer within {section.start_timeout:g} s of its start; raise"
                    f" start_timeout if its connectors need longer" + generation._last_words()
                ) from None
            if isinstance(error, _EndedError):
                raise StartError(generation.epitaph()) from None
            raise
        return generation

    @property
    def alive(self) -> bool:
        """Tell whether calls may be sent to it."""
        return not self._process.ended.is_set() and not self.doomed and not self.draining

    @property
    def quiet(self) -> bool:
        """Tell whether it owes an answer: another worker is the better choice then."""
        silence = time.monotonic() - self._heard
        return silence > 2 * self.plan.timing.heartbeat + self.plan.section.heartbeat_timeout / 10

    @property
    def age(self) -> float:
        """Return the seconds since it was started."""
        return time.monotonic() - self._since

    def serves(self, call: Call) -> bool:
        """Tell whether it offers what the call is for."""
        return call.category in self.offer.categories

    def beat(self, on_beat: Callable[[Generation], None], on_hang: Callable[[], None]) -> None:
        """Ping it from now on; kill it, after telling, when it is silent for too long."""
        self._beating = asyncio.get_running_loop().create_task(
            self._beat(on_beat, on_hang), name=f"heartbeat of {self.plan.name}/{self.worker}"
        )

    async def run(self, call: Call) -> Any:
        """Run one operation there."""
        return await self._with(call, self._forwarder.run(call))

    async def stream(self, call: Call, send: Callable[[Any], Awaitable[None]]) -> None:
        """Run one that answers with many messages."""
        await self._with(call, self._forwarder.stream(call, send))

    def kill(self, reason: str) -> None:
        """End it at once; its calls fail."""
        self.doomed = self.doomed or reason
        self._process.kill()

    async def retire(self, grace: float) -> None:
        """Let its calls end within ``grace`` seconds, then end it and wait until it is gone."""
        self.draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                while self.calls and not self._process.ended.is_set():
                    self._idle.clear()
                    await _first(self._idle.wait(), self._process.ended.wait())
        self._process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.ended.wait(), self.plan.timing.last)
        self._process.kill()
        await self.finish()

    async def finish(self) -> None:
        """Wait until the process is gone and leave nothing of it."""
        await self._process.gone.wait()
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
        if self._channel is not None:
            await self._channel.close()
        self._socket.unlink(missing_ok=True)

    async def ended(self) -> None:
        """Wait until its process does not run any more."""
        await self._process.ended.wait()

    def epitaph(self) -> str:
        """Say how it ended, in a sentence without a subject."""
        how = self.manner
        if self.doomed:
            return f"was killed: {self.doomed}"
        if how == "SIGKILL":
            how = "SIGKILL (out of memory, unless somebody sent it)"
        verb = "exited with" if how.startswith("code") else "was ended by"
        return f"{verb} {how} after {self.age:.1f} s" + self._last_words()

    @property
    def manner(self) -> str:
        """Return the exit code or the signal's name."""
        code = self._process.code
        if code is None or code >= 0:
            return f"code {code}"
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"

    async def _shake_hands(self, token: str) -> None:
        await self._process.listen()
        handshake = self._process.handshake
        line = await self._while_alive(_result(handshake))
        try:
            hands = Handshake.parse(line)
        except ValueError as error:
            raise StartError(
                f"is no child of this service: {error}; let python name an environment whose"
                f" packages match this service"
            ) from None
        self.offer = Offer.of(hands)
        protocols = hands.protocols()
        self._metadata = ((TOKEN, token),)
        self._channel = grpc.aio.insecure_channel(
            f"unix:{urllib.parse.quote(str(self._socket))}", options=CHILD_OPTIONS
        )
        self._forwarder = Forwarder(
            self._channel,
            name=self.plan.name,
            metadata=self._metadata,
            protocols_of=lambda category: protocols.get(category, ()),
        )
        try:
            await self._while_alive(self._ping(None))
        except grpc.aio.AioRpcError as error:
            raise StartError(
                f"shook hands and then refused its first ping: {error.code().name}"
            ) from None

    async def _ping(self, timeout: float | None) -> None:  # noqa: ASYNC109 - gRPC's own
        assert self._channel is not None  # noqa: S101 - it shook hands
        ask: Any = self._channel.unary_unary(_PING)
        answer = await ask(
            b"", timeout=timeout, metadata=self._metadata, wait_for_ready=timeout is None
        )
        self._heard = time.monotonic()
        with contextlib.suppress(ValueError, TypeError, KeyError):
            self.rss = int(msgspec.json.decode(answer)["rss"])

    async def _beat(
        self, on_beat: Callable[[Generation], None], on_hang: Callable[[], None]
    ) -> None:
        limit, interval = self.plan.section.heartbeat_timeout, self.plan.timing.heartbeat
        self._heard = time.monotonic()
        while not self._process.ended.is_set():
            await asyncio.sleep(interval)
            # At least one whole interval: a stall of this process convicts nobody.
            left = max(self._heard + limit - time.monotonic(), min(interval, limit))
            try:
                await self._ping(left)
            except grpc.aio.AioRpcError:
                if time.monotonic() - self._heard < limit or self._process.ended.is_set():
                    continue
                on_hang()
                self.kill(f"it did not answer for {limit:g} s")
                return
            if self.plan.section.memory_bytes:
                self.rss = await self.plan.sizes.of(self.pid) or self.rss
            on_beat(self)

    async def _with(self, call: Call, running: Awaitable[T]) -> T:
        """Await an operation; if the process ends under it, say so."""
        self.calls += 1
        try:
            return await running
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._process.ended.is_set() or (task is not None and task.cancelling()):
                raise
            raise self._lost() from None  # the channel was closed under it
        except (TransientError, PeerError) as error:
            # The broken connection is often seen before the end of the process.
            if _is_broken(error) and await self._has_ended(call.deadline):
                raise self._lost() from error
            raise
        finally:
            self.calls -= 1
            if not self.calls:
                self._idle.set()

    async def _has_ended(self, deadline: float | None) -> bool:
        left = 0.3 if deadline is None else min(0.3, deadline - time.monotonic())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.ended.wait(), max(left, 0.0))
        return self._process.ended.is_set() or bool(self.doomed)

    def _lost(self) -> TransientError:
        return TransientError(
            f"The process of host {self.plan.name} ended while the call ran; it is being started"
            f" again: try again."
        )

    async def _while_alive(self, doing: Coroutine[Any, Any, T]) -> T:
        """Await ``doing``, but no longer than the process lives."""
        task = asyncio.get_running_loop().create_task(doing)
        try:
            await _first(_result(task), self._process.ended.wait())
            if task.done() and not task.cancelled():
                return task.result()
            raise _EndedError
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _last_words(self) -> str:
        words = self.output.last_words
        return f"; its last words: {words}" if words else ""


class _EndedError(Exception):
    """The process ended before it answered."""


def _is_broken(error: BaseException) -> bool:
    """Tell whether the connection failed, not the connector: a child describes what that raised."""
    status = error.__context__
    if not isinstance(status, grpc.aio.AioRpcError):
        return isinstance(status, asyncio.CancelledError | grpc.aio.BaseError)
    trailing = status.trailing_metadata() or ()
    return status.code() in _BROKEN and ERROR_KEY not in dict(trailing)


async def _result(future: asyncio.Future[T]) -> T:
    return await asyncio.shield(future)


async def _first(*doing: Coroutine[Any, Any, Any]) -> None:
    """Wait until one of these is done and cancel the others."""
    tasks = [asyncio.ensure_future(each) for each in doing]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def surely(doing: Coroutine[Any, Any, Any]) -> None:
    """Await ``doing`` to its end, and only then be cancelled."""
    task = asyncio.ensure_future(doing)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
