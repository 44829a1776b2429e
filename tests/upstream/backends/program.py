"""A backend as a process of its own, on a free port of 127.0.0.1, for as long as a test needs it.

The interpreters are those of the locked environments that ``make test-upstream`` builds; a
variable names each. Nothing here is imported by the service or by a plugin.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import pytest

PATIENCE = 60.0
HERE = Path(__file__).parent


def interpreter(name: str) -> Path:
    """Return the interpreter of a locked environment; skip the test where there is none."""
    variable = f"CONNECTOR_SERVICE_{name.upper().replace('-', '_')}_PYTHON"
    text = os.environ.get(variable)
    if not text:
        pytest.skip(f"{variable} is not set: run `make test-upstream`")
    return Path(text)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def bare_environment(home: Path, settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment with nothing of this run's but PATH: no proxy, account or setting."""
    home.mkdir(parents=True, exist_ok=True)
    return {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(home),
        "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
        "LANG": "C.UTF-8",
        **(settings or {}),
    }


class Program:
    """One server process that is up once its port accepts; it can be ended and started again."""

    def __init__(
        self,
        command: Sequence[str | Path],
        port: int,
        folder: Path,
        settings: Mapping[str, str] | None = None,
        name: str = "backend",
    ) -> None:
        self.command = [str(part) for part in command]
        self.port = port
        self.folder = folder
        self.environ = bare_environment(folder, settings)
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> Self:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environ,
                cwd=self.folder,
            )
        end = time.monotonic() + PATIENCE
        while not self._accepts():
            code = self._process.poll()
            assert code is None, f"{self.command[0]} ended with {code}:\n{self.text()}"
            assert time.monotonic() < end, f"{self.command[0]} never listened:\n{self.text()}"
            time.sleep(0.02)
        return self

    def stop(self) -> None:
        """End the process by its id; a second call does nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def text(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Have the backend gone, its port refusing, inside the block."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def _accepts(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
