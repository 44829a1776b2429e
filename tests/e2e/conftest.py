"""The installed ``connector-service serve``, as processes of their own on free ports."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon import COMMAND, Daemon, Serve
from e2e.workers import MODULE


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


@pytest.fixture
def runtime_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Keep what killed supervisors leave in one folder, whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="cs-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """Write the connectors that tests of workers share where a service finds them."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "workers_module.py").write_text(MODULE)
    return folder
