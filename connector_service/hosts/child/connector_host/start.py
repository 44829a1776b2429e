"""The life of a child: it reads its settings, loads its sources, serves, ends with its parent."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import json
import logging
import os
import platform
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from typing import Any, NoReturn

from . import output
from .loop import drain_wake_ups

__all__ = ["CannotStartError", "Settings", "main"]

_log = logging.getLogger(__name__)

VERSION = 1
CANNOT_START = 4
PARENT_GONE = 5

_PR_SET_PDEATHSIG = 1
_OOM_SCORE = 500  # more than the parent's: the kernel then takes this process first
_DRAIN = 3_600.0  # seconds; the parent has drained before it asks us to end
_LONGEST_LINE = 4 * 1024 * 1024

_guarding: subprocess.Popen[bytes] | None = None


class CannotStartError(Exception):
    """One sentence for the operator on why this child does not start, and what to do."""


@dataclass(frozen=True)
class Settings:
    """The parent's first line on standard input."""

    host: str
    worker: int
    socket: str
    token: str
    sources: tuple[str, ...]
    enable: tuple[str, ...] = ()
    disable: tuple[str, ...] = ()
    threads: int = 32
    log_level: str = "info"
    options: dict[str, Any] = field(default_factory=dict)  # of connectors, by task type


def main() -> NoReturn:
    """Run one child; the exit code is 0 when it was asked to end."""
    # What plugins print must not stand between the parent and the one line that it waits for.
    answers = os.dup(1)
    os.dup2(2, 1)
    orders = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    try:
        settings = _settings(_first_line(orders))
        _end_with_parent(orders)
        output.install(settings.log_level)
        output.learn(settings.token)
        output.learn_mounted()
        _offer_to_the_kernel()
        asyncio.run(_serve(settings, _load(settings), answers))
    except CannotStartError as error:
        output.say("connector-host-error", {"error": output.redact(str(error))})
        _leave(CANNOT_START)
    except BaseException:  # noqa: BLE001 - whatever it was, the process ends here
        _log.critical("the child failed", exc_info=True)
        _leave(1)
    _leave(0)


def _leave(code: int) -> NoReturn:
    """End now: threads that never return keep nobody."""
    if _guarding is not None:
        _guarding.kill()
        _guarding.wait()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


# --- the parent --------------------------------------------------------------------------------


def _first_line(descriptor: int) -> bytes:
    data = b""
    while b"\n" not in data and len(data) < _LONGEST_LINE:
        more = os.read(descriptor, 65_536)
        if not more:
            break
        data += more
    return data.partition(b"\n")[0]


def _settings(line: bytes) -> Settings:
    try:
        given: dict[str, Any] = json.loads(line)
    except ValueError:
        raise CannotStartError(
            "Standard input has no settings: this program is started by connector-service alone."
        ) from None
    if given.get("v") != VERSION:
        raise CannotStartError(
            f"The parent speaks version {given.get('v')!r} and this child version {VERSION}:"
            f" start both from one release of connector-service."
        )
    try:
        return Settings(
            host=str(given["host"]),
            worker=int(given["worker"]),
            socket=str(given["socket"]),
            token=str(given["token"]),
            sources=tuple(given["sources"]),
            enable=tuple(given.get("enable", ())),
            disable=tuple(given.get("disable", ())),
            threads=int(given.get("threads", 32)),
            log_level=str(given.get("log_level", "info")),
            options=dict(given.get("options", {})),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CannotStartError(f"The parent's settings lack {error}.") from None


def _end_with_parent(orders: int) -> None:
    """See that this process and its children end when the parent does, whatever blocks."""
    if sys.platform == "linux":
        before = os.getppid()
        with contextlib.suppress(OSError, AttributeError):
            # For when a C call holds the interpreter's lock and no thread of ours can act.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != before:  # it died before the kernel knew of our wish
            _end_group()
    _guard(orders)
    threading.Thread(target=_watch, args=(orders,), name="parent", daemon=True).start()


def _guard(orders: int) -> None:
    """Have a shell wait for the parent's end too, and then kill what connectors started.

    The kernel kills this process before its own thread can do that. The second is for the thread,
    which says by its exit code why it ended.
    """
    global _guarding  # noqa: PLW0603 - one for the process
    if os.getpgrp() == os.getpid():
        with contextlib.suppress(OSError):  # no shell here
            _guarding = subprocess.Popen(
                ["/bin/sh", "-c", "while read -r _; do :; done; sleep 1; kill -9 0"],
                stdin=orders,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )


def _watch(orders: int) -> None:
    try:
        while os.read(orders, 4_096):
            pass
    except OSError:
        pass
    _end_group()


def _end_group() -> NoReturn:
    """End at once, with the processes that connectors started."""
    if os.getpgrp() == os.getpid():  # else the group is somebody else's
        _kill_others(os.getpid())
    os._exit(PARENT_GONE)


def _kill_others(group: int) -> None:
    try:
        processes = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    except OSError:  # no /proc on this system: ourselves too, then
        os.killpg(group, signal.SIGKILL)
        return
    for process in processes:
        if process != os.getpid():
            with contextlib.suppress(OSError):
                if os.getpgid(process) == group:
                    os.kill(process, signal.SIGKILL)


def _offer_to_the_kernel() -> None:
    path = "/proc/self/oom_score_adj"
    with contextlib.suppress(OSError, ValueError):
        with open(path, encoding="ascii") as file:  # noqa: PTH123 - as plain as the file
            score = int(file.read())
        with open(path, "w", encoding="ascii") as file:  # noqa: PTH123
            file.write(str(min(1_000, score + _OOM_SCORE)))


# --- the sources -------------------------------------------------------------------------------


def _load(settings: Settings) -> Any:
    """Load every source, before the main thread has an event loop.

    Raises:
        CannotStartError: grpc or a source's own library is missing.
    """
    # grpc's own handlers of a fork end it with SIGSEGV now and then, where a program that a plugin
    # starts has a preexec_fn (Airflow's operators do: 8 of 30 with grpcio 1.85 on two processors).
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    try:
        importlib.import_module("grpc.aio")
    except ImportError as error:
        raise CannotStartError(
            f"{sys.executable} cannot import grpcio ({error}): install it there; flytekit brings"
            f" it, and flyte with its extra, flyte[connector]."
        ) from None
    engines: Any = importlib.import_module(f"{__package__}.engine")
    tables: Any = importlib.import_module(f"{__package__}.table")
    engine = engines.Engine(settings.threads)
    plan = _plan(settings.sources)
    found = []
    for module, modules, entries in plan:
        options = tables.Options(
            settings.enable, settings.disable, modules, entries, settings.options
        )
        source: Any = importlib.import_module(f"{__package__}.{module}_source")
        try:
            found.append(source.find(options, engine))
        except ImportError as error:
            raise CannotStartError(
                f"{sys.executable} cannot import {module.replace('own', 'connector_service')}"
                f" ({_sentence(error)}): {source.REMEDY}"
            ) from error
        except BaseException as error:
            _log.critical("the source %s does not load", module, exc_info=True)
            raise CannotStartError(
                f"The source {module} does not load with {sys.executable}: {_sentence(error)}"
            ) from error
    return tables.Table(found)


def _plan(sources: tuple[str, ...]) -> list[tuple[str, tuple[str, ...], bool]]:
    """Say which source modules run: each with the modules it loads, and whether entry points.

    ``module:`` beside an SDK's source holds connectors of that SDK; by itself, our own.
    """
    modules = tuple(name.partition(":")[2] for name in sources if name.startswith("module:"))
    kits = [name for name in ("flytekit", "flyte") if name in sources]
    unknown = [
        name
        for name in sources
        if name not in ("flytekit", "flyte", "entry-points") and not name.startswith("module:")
    ]
    if unknown or not sources:
        raise CannotStartError(
            f"The host has no source {', '.join(unknown) or 'at all'}: give flytekit, flyte,"
            f" entry-points or module:NAME."
        )
    plan: list[tuple[str, tuple[str, ...], bool]] = []
    if "entry-points" in sources or (modules and not kits):
        plan.append(("own", () if kits else modules, "entry-points" in sources))
    plan += [(name, modules if name == kits[0] else (), True) for name in kits]
    return plan


def _sentence(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


# --- serving -----------------------------------------------------------------------------------


async def _serve(settings: Settings, table: Any, answers: int) -> None:
    serving: Any = importlib.import_module(f"{__package__}.serve")
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    drain_wake_ups(loop)
    loop.add_signal_handler(signal.SIGTERM, ending.set)
    # flytekit ends the process on it; a plain handler, for programs started here inherit SIG_IGN.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    try:
        server = await serving.open_server(serving.Service(table, settings.token), settings.socket)
    except (RuntimeError, OSError) as error:
        raise CannotStartError(
            f"The socket {settings.socket} cannot be served: {_sentence(error)}"
        ) from None
    output.say("connector-host", _handshake(settings, table), answers)
    os.close(answers)
    await ending.wait()
    await server.stop(_DRAIN)


def _handshake(settings: Settings, table: Any) -> dict[str, Any]:
    return {
        "v": VERSION,
        "pid": os.getpid(),
        "python": platform.python_version(),
        "address": f"unix:{settings.socket}",
        "versions": table.versions,
        "agents": table.agents(),
        "plugins": [vars(plugin) for plugin in table.plugins],
    }
