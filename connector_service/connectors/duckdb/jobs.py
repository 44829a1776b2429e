"""The jobs of one state folder: started once, stopped for good, purged when old."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from connector_service.connectors.duckdb.folder import JobFolder, poll
from connector_service.connectors.duckdb.options import secure_state_dir
from connector_service.errors import ConfigError, PermanentError, TransientError

if TYPE_CHECKING:
    from connector_service.connectors.duckdb.folder import Spec
    from connector_service.connectors.duckdb.options import Options

__all__ = ["Jobs", "reap"]

_MODULE = "connector_service.connectors.duckdb.job"
_PURGE_EVERY = 600.0  # seconds
_JOIN = 5.0  # seconds that a repeated create waits for the first one to have started
_SOFTLY, _HARDLY = 1.0, 3.0  # seconds from SIGTERM to SIGKILL, and from there to giving up

# What a job needs of the service's environment: no secret of another connector.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "NO_PROXY", "no_proxy")
_ENVIRONMENT_PREFIXES = (
    "SSL_CERT_",
    "AWS_",
    "GOOGLE_",
    "AZURE_",
    "FSSPEC_",
    "FLYTE_SECRETS_DEFAULT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "http_proxy",
    "https_proxy",
)

# Children belong to the process that started them, whichever connector object asked for them.
_children: set[subprocess.Popen[bytes]] = set()
_reaping = threading.Lock()


class Jobs:
    """Starts and stops job processes; any number of services may share the state folder."""

    def __init__(self, options: Options) -> None:
        """Take the options; nothing is touched before ``prepare``."""
        self.options = options
        self._state_dir = Path(options.state_dir)
        self._prepared = False
        self._purged_at = float("-inf")

    def prepare(self) -> None:
        """Create the state folder, or check that an existing one is safe.

        Raises:
            ConfigError: It is not, or cannot be made.
        """
        secure_state_dir(self.options)
        self._prepared = True

    def folder(self, job_id: str) -> JobFolder:
        """Name a job's folder, whether there is one or not."""
        return JobFolder(self._state_dir / job_id)

    def start(self, spec: Spec) -> None:
        """Start the job unless it was started before, by whomever.

        Raises:
            PermanentError: The state folder is not safe to use.
            TransientError: No process could be started; a repeat takes the job up.
        """
        reap()
        try:
            if not self._prepared or not self._state_dir.is_dir():
                self.prepare()
        except ConfigError as error:
            raise PermanentError(str(error)) from None
        self._purge()
        folder = self.folder(spec.job_id)
        try:
            self._start(folder, spec)
        except OSError as error:
            raise TransientError(f"Cannot start the job: {error.strerror or error}.") from error

    def stop(self, folder: JobFolder) -> None:
        """Kill the job's process unless it ended; its results stay.

        Raises:
            TransientError: The process does not end.
        """
        reap()
        if folder.result() is not None:
            return
        try:
            folder.deleted_path.touch(mode=0o600)
        except FileNotFoundError:
            return  # purged this very moment
        except OSError as error:  # a full disk must not keep a query running
            failed: OSError | None = error
        else:
            failed = None
        self._kill(folder)
        folder.remove_partial()
        if failed is not None:
            raise TransientError(f"Cannot mark the job as deleted: {failed.strerror}.")

    def _start(self, folder: JobFolder, spec: Spec) -> None:
        for _ in poll(_JOIN):
            folder.create()
            with contextlib.suppress(FileNotFoundError):  # purged in between: make it again
                descriptor = folder.lock()
                if descriptor is not None:
                    break
            if folder.state() is not None:
                return  # it runs
        else:
            return  # another create is at it; get will tell
        try:
            if folder.state() is None and folder.result() is None and not folder.is_deleted():
                folder.write(folder.spec_path, spec)
                self._spawn(folder, descriptor)
        finally:
            os.close(descriptor)

    def _spawn(self, folder: JobFolder, lock: int) -> None:
        log = os.open(folder.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            child = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                # -P: what lies in the working folder is no module.
                [sys.executable, "-P", "-m", _MODULE, str(folder.path)],
                cwd=folder.path,
                env=_environment(folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock,),
                start_new_session=True,  # a signal to the service is none to the job
            )
        finally:
            os.close(log)
        with _reaping:
            _children.add(child)

    def _kill(self, folder: JobFolder) -> None:
        for signal_number, patience in ((signal.SIGTERM, _SOFTLY), (signal.SIGKILL, _HARDLY)):
            sent = False
            for _ in poll(patience):
                if not folder.is_alive():
                    return
                state = folder.state()
                # A child that has not said its pid yet will see that it is deleted, and leave.
                if not sent and state is not None and folder.holds_lock(state.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(state.pid, signal_number)
                    sent = True
        if folder.is_alive():
            raise TransientError("The job's process does not end; trying again may help.")

    def _purge(self) -> None:
        """Remove the folders of jobs that ended ``keep_days`` ago."""
        now = time.monotonic()
        if now < self._purged_at + _PURGE_EVERY:
            return
        self._purged_at = now
        oldest = time.time() - self.options.keep_days * 86400
        with os.scandir(self._state_dir) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    old = entry.stat(follow_symlinks=False).st_mtime < oldest
                    if old and not entry.name.startswith(".") and entry.is_dir():
                        JobFolder(Path(entry.path)).purge()


def reap() -> int:
    """Take the exit codes of children that ended, so that no zombies pile up; count the others."""
    with _reaping:
        for child in [child for child in _children if child.poll() is not None]:
            _children.discard(child)
        return len(_children)


def _environment(folder: JobFolder) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _ENVIRONMENT or name.startswith(_ENVIRONMENT_PREFIXES)
    }
    return {
        **kept,
        "HOME": str(folder.work),
        "PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in sys.path if path),
    }
