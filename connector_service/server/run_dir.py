"""The private folder of sockets that one service owns on its machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from connector_service.errors import ConfigError

if TYPE_CHECKING:
    from connector_service.config import Config

__all__ = ["RunDir", "run_dir"]

_LONGEST = 70  # characters; a socket's whole path may have 107, and its name needs the rest


def run_dir(config: Config) -> Path:
    """Return where the sockets of a service with these settings are.

    The port tells services of one machine apart; with port 0 the process does.
    """
    if config.hosting.run_dir:
        return Path(config.hosting.run_dir).absolute()
    name = f"connector-service-{config.listen.port or f'pid{os.getpid()}'}"
    own = os.environ.get("XDG_RUNTIME_DIR")
    if own:
        return Path(own) / name
    return Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}"


class RunDir:
    """Makes the folder, private to its user, and holds it: two services never share one."""

    def __init__(self, path: Path) -> None:
        """Take where it shall be."""
        self.path = path
        self._lock: int | None = None

    @property
    def admin_socket(self) -> Path:
        """Where the service answers its own operator."""
        return self.path / "admin.sock"

    def of_worker(self, index: int) -> RunDir:
        """Return the folder within this one that a worker of the service has for itself."""
        return RunDir(self.path / f"w{index}")

    def of_workers(self) -> list[RunDir]:
        """Return the folders that workers have here, or have left, in their order."""
        names = [path.name[1:] for path in self.path.glob("w*")]
        return [self.of_worker(index) for index in sorted(int(n) for n in names if n.isdigit())]

    def open(self) -> None:
        """Make the folder and take it.

        Raises:
            ConfigError: It cannot be made, another user could change it, or a service has it.
        """
        if len(str(self.path)) > _LONGEST:
            raise ConfigError(
                f"The folder for sockets, {self.path}, has a path of over {_LONGEST} characters,"
                f" more than a socket may have; choose a shorter one with --run-dir."
            )
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.path.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                raise ConfigError(
                    f"{self.path} is not a folder of this user's own; remove it or choose another"
                    f" with --run-dir."
                )
            self.path.chmod(0o700)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"Cannot make the folder for sockets {self.path}: {error.strerror}; choose"
                f" another with --run-dir."
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise ConfigError(
                f"Another service has its sockets in {self.path}; choose another folder with"
                f" --run-dir."
            ) from None
        for stale in self.path.glob("*.sock"):  # of a service that was killed
            stale.unlink(missing_ok=True)

    def close(self) -> None:
        """Give the folder up, and remove it when it is empty; fine twice."""
        if self._lock is None:
            return
        with contextlib.suppress(OSError):
            self.admin_socket.unlink(missing_ok=True)
            (self.path / "lock").unlink(missing_ok=True)
            self.path.rmdir()
        os.close(self._lock)
        self._lock = None
