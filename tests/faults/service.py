"""The installed service in front of the remote backend, on a port that it keeps over kills."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path
from typing import Self

from daemon import COMMAND, Daemon
from faults import remote

TESTS = Path(__file__).parent.parent


class Service:
    """One ``connector-service serve`` with the remote connector: ``start``, ``kill``, again."""

    def __init__(
        self, backend: remote.Remote, folder: Path, *flags: str, **section: object
    ) -> None:
        """Take the backend, a folder of its own, flags, and settings of the connector."""
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.endpoint = f"127.0.0.1:{self.port}"
        self.logs: list[str] = []
        self.daemon: Daemon | None = None
        self._folder = folder
        self._flags = (
            f"--port={self.port}",
            "--prometheus-port=0",
            "--drain-delay=0",
            "--module=faults.remote",
            "--enable=remote",
            *flags,
        )
        lines = [f"{name} = {str(value).lower()}" for name, value in section.items()]
        table = [f"[connectors.{remote.TASK_TYPE}]", *lines, ""]
        (folder / "connector-service.toml").write_text("\n".join(table))
        self._environ = {k: v for k, v in os.environ.items() if not k.startswith("CONNECTOR_")}
        self._environ |= {"PYTHONPATH": str(TESTS), remote.PORT: str(backend.port)}

    def start(self) -> Self:
        """Start it, and return when it answers."""
        process = subprocess.Popen(
            [str(COMMAND), "serve", *self._flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environ,
            cwd=self._folder,
        )
        try:
            self.daemon = Daemon(process)
        except BaseException:
            process.kill()
            process.wait()
            raise
        return self

    def kill(self) -> None:
        """End it with kill -9 if it runs, and keep what it logged."""
        daemon, self.daemon = self.daemon, None
        if daemon is None:
            return
        daemon.kill(signal.SIGKILL)
        self.logs.append(daemon.log)
        for pipe in (daemon.process.stdout, daemon.process.stderr):
            if pipe is not None:
                pipe.close()

    @property
    def log(self) -> str:
        """Everything that it logged, in all its lives."""
        return "".join([*self.logs, self.daemon.log if self.daemon else ""])

    def metric(self, name: str, **labels: str) -> float:
        """Read a counter of this life; 0 when it was never counted."""
        assert self.daemon is not None
        url = f"{self.daemon.metrics}/metrics"
        with urllib.request.urlopen(url, timeout=5) as response:
            text = response.read().decode()
        total = 0.0
        for found, given, value in re.findall(r"^(\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
            have = dict(re.findall(r'(\w+)="([^"]*)"', given))
            if found == name and labels.items() <= have.items():
                total += float(value)
        return total
