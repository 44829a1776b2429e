"""Starts the process of a child: what it is given, how it is watched, how it ends.

It is started with vfork and exec, never forked: this process has gRPC's threads, and a copy of it
could hang on any lock that one of them held. The pieces that would make ``subprocess`` fork
(``preexec_fn``) are therefore not used.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from connector_service.errors import ConfigError
from connector_service.hosts.output import HANDSHAKE, Reader
from connector_service.hosts.procfs import kill_session
from connector_service.sdk.secrets import mask, redact

if TYPE_CHECKING:
    from collections.abc import Mapping

    from connector_service.config import HostSection
    from connector_service.hosts.output import Output

__all__ = ["PROGRAM", "Process", "environment", "find_folder", "find_python"]

# The child's program; running the folder puts nothing else of ours on its path.
PROGRAM = Path(__file__).parent / "child"

_NOT_INHERITED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
_PREFIX = "CONNECTOR_SERVICE_"
_POLL = 0.1  # seconds between two looks at a process where the system has no pidfd
_PIPE = 60 * 1024  # bytes that a pipe takes at once
_LAST_WORDS = 0.5  # seconds in which a pipe must end once its writers are dead


def find_python(host: str, section: HostSection) -> str:
    """Return the absolute path of the host's interpreter; links are kept, as venvs need it.

    Raises:
        ConfigError: There is none, or it cannot be executed.
    """
    if not section.python:
        return sys.executable
    given = os.path.expanduser(section.python)  # noqa: PTH111 - a bare name is none of a path
    found = shutil.which(given)
    if found is not None:
        return str(Path(found).absolute())
    reason = "cannot be executed" if Path(given).exists() else "does not exist"
    raise ConfigError(
        f"[hosts.{host}] python = {section.python!r} {reason}; set it to the interpreter of the"
        f" environment that has the connectors, such as /opt/spark-venv/bin/python."
    )


def find_folder(host: str, section: HostSection) -> str | None:
    """Return the absolute working folder, None for our own.

    Raises:
        ConfigError: There is no such folder.
    """
    if not section.cwd:
        return None
    folder = Path(section.cwd).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"[hosts.{host}] cwd = {section.cwd!r} is no folder; create it, or set another."
        )
    return str(folder.absolute())


def environment(section: HostSection, python: str, ours: Mapping[str, str]) -> dict[str, str]:
    """Return the child's environment; secrets in the host's ``env`` are masked from now on."""
    inherited = {
        name: value
        for name, value in ours.items()
        if name not in _NOT_INHERITED and not name.startswith(_PREFIX)
    }
    # What a plugin starts by name comes from its own environment first.
    path = [str(Path(python).parent), *filter(None, [inherited.get("PATH", os.defpath)])]
    for name, value in section.env.items():
        if redact(f"{name}=value") != f"{name}=value":
            mask(value)
    return {**inherited, "PATH": os.pathsep.join(path), **section.env}


class Process:
    """One child process from its start until nothing of it is left.

    To be made on the thread of the event loop: a child that asked to die with its parent dies
    with the thread that started it.
    """

    def __init__(
        self,
        command: list[str],
        folder: str | None,
        environ: Mapping[str, str],
        first_line: bytes,
        output: Output,
    ) -> None:
        """Start it and hand it its first line.

        Raises:
            OSError: The system would not start it.
        """
        if len(first_line) > _PIPE:
            raise OSError(errno.E2BIG, "the host's settings are too long")
        loop = asyncio.get_running_loop()
        self.code: int | None = None
        self.ended = asyncio.Event()  # it does not run any more
        self.gone = asyncio.Event()  # ... and it is reaped, its group killed, its pipes closed
        self.handshake: asyncio.Future[bytes] = loop.create_future()
        self._output = output
        self._readers: list[Reader] = []
        self._pidfd: int | None = None
        stdin, self._life = os.pipe()
        try:
            # Written before it runs, and nothing after it: see _tie.
            os.write(self._life, first_line)
            self._popen = subprocess.Popen(  # noqa: S603 - the operator's interpreter
                command,
                cwd=folder,
                env=dict(environ),
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                # A group of its own, so that it ends with all that it started, and Ctrl+C in our
                # terminal is ours to handle.
                start_new_session=True,
            )
            self.pid = output.pid = self._popen.pid
            _tie(stdin, self.pid)
        except BaseException:
            os.close(self._life)
            raise
        finally:
            os.close(stdin)
        self._watch(loop)

    async def listen(self) -> None:
        """Begin to read what it prints."""
        loop = asyncio.get_running_loop()
        for pipe, reader in (
            (self._popen.stdout, Reader(self._output, self._on_stdout, skips=False)),
            (self._popen.stderr, Reader(self._output, self._output.line)),
        ):
            await loop.connect_read_pipe(lambda reader=reader: reader, pipe)  # type: ignore[misc]
            self._readers.append(reader)

    def terminate(self) -> None:
        """Ask it to end."""
        if not self.ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it and its group at once."""
        if not self.ended.is_set():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def _on_stdout(self, line: bytes) -> None:
        if line.startswith(HANDSHAKE) and not self.handshake.done():
            self.handshake.set_result(line.removeprefix(HANDSHAKE))
        else:
            self._output.line(line)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except (AttributeError, OSError):
            loop.call_later(_POLL, self._look, loop)
        else:
            loop.add_reader(self._pidfd, self._on_end)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._popen.poll() is None:
            loop.call_later(_POLL, self._look, loop)
        else:
            self._on_end()

    def _on_end(self) -> None:
        loop = asyncio.get_running_loop()
        if self._pidfd is not None:
            loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        # It is a zombie and no more: until it is reaped, its group's number is nobody else's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.ended.set()
        self._ending = loop.create_task(self._end(), name=f"end of process {self.pid}")

    async def _end(self) -> None:
        """Take away what is left of it."""
        await asyncio.to_thread(kill_session, self.pid)
        self.code = self._popen.poll()
        os.close(self._life)
        for reader in self._readers:
            # Whoever left the session with the pipe in hand does not keep us waiting.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.closed.wait(), _LAST_WORDS)
            reader.close()
        for pipe in (self._popen.stdout, self._popen.stderr):
            if pipe is not None and len(self._readers) < 2:
                pipe.close()
        self.handshake.cancel()
        self.gone.set()


def _tie(stdin: int, group: int) -> None:
    """Have the kernel kill the process group when our end of its standard input closes.

    So it does when we die, however that comes, and whatever the child is doing then: a child that
    holds the interpreter's lock cannot act on the end of a pipe, and PR_SET_PDEATHSIG spares what
    the child itself has started. See fcntl(2), F_SETSIG.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError):
        fcntl.fcntl(stdin, fcntl.F_SETOWN, -group)
        fcntl.fcntl(stdin, fcntl.F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(stdin, fcntl.F_GETFL)
        fcntl.fcntl(stdin, fcntl.F_SETFL, flags | os.O_ASYNC)
