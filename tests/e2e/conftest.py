"""The installed ``connector-service serve``, as processes of their own on free ports."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon import COMMAND, Daemon, Serve


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start daemons with flags of the test's choice; end by process id whatever still runs."""
    running: list[Daemon] = []

    def start(
        *flags: str, prefix: tuple[str, ...] = (), modules: Path | None = None, **settings: str
    ) -> Daemon:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("CONNECTOR_SERVICE_")}
        environ |= {f"CONNECTOR_SERVICE_{key.upper()}": text for key, text in settings.items()}
        if modules is not None:
            environ["PYTHONPATH"] = str(modules)
        defaults = ("--port=0", "--prometheus-port=0", "--drain-delay=0")
        process = subprocess.Popen(
            [*prefix, str(COMMAND), "serve", *defaults, *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ,
            cwd=tmp_path,
        )
        try:
            daemon = Daemon(process)
        except BaseException:
            process.kill()
            process.wait()
            raise
        running.append(daemon)
        return daemon

    yield start
    for daemon in running:
        if daemon.process.poll() is None:
            daemon.process.kill()
            daemon.wait()
        for pipe in (daemon.process.stdout, daemon.process.stderr):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
