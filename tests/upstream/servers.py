"""The two ways a published plugin is served here: by our service, and by upstream's own server.

A test that is given both drives the same plugin, in the same environment, through either; what
differs is then the server.
"""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from daemon import COMMAND, Daemon
from upstream.backends.program import Program, bare_environment, free_port

PROTOCOLS = {"flytekit": "flyteidl", "flyte": "flyteidl2"}


def templates(python: Path, program: Path, folder: Path, *arguments: str) -> dict[str, bytes]:
    """Have a program of a plugin's environment print its users' task templates."""
    done = subprocess.run(
        [python, "-W", "ignore", program, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=bare_environment(folder),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {
        name: base64.b64decode(text)
        for name, text in json.loads(done.stdout.splitlines()[-1]).items()
    }


class Theirs(Program):
    """Upstream's own server: ``pyflyte serve connector`` for flytekit, ``c0`` for Flyte 2."""

    def __init__(
        self,
        sdk: str,
        python: Path,
        folder: Path,
        env: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        port, metrics = free_port(), free_port()
        start = {"flytekit": ("pyflyte", "serve", "connector"), "flyte": ("c0",)}[sdk]
        command = [python.with_name(start[0]), *start[1:]]
        flags = ["--port", str(port), "--prometheus_port", str(metrics)]
        super().__init__([*command, *flags], port, folder, env, name="server")

    @property
    def endpoint(self) -> str:
        return self.address

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def is_up(self) -> bool:
        assert self._process is not None
        return self._process.poll() is None


class Ours:
    """The installed ``connector-service serve`` with hosts in its configuration file."""

    def __init__(
        self,
        folder: Path,
        hosts: Mapping[str, Mapping[str, Any]],
        flags: Sequence[str] = (),
        more: str = "",
        command: Sequence[str | Path] = (COMMAND,),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "service.toml"
        config.write_text("".join(_section(name, host) for name, host in hosts.items()) + more)
        defaults = ("--port=0", "--prometheus-port=0", "--drain-delay=0")
        process = subprocess.Popen(
            [*map(str, command), "serve", "--config", str(config), *defaults, *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=bare_environment(folder),
            cwd=folder,
        )
        try:
            self.daemon = Daemon(process)
        except BaseException:
            process.kill()
            process.wait()
            raise

    @property
    def endpoint(self) -> str:
        return self.daemon.endpoint

    def log_text(self) -> str:
        return self.daemon.log

    def is_up(self) -> bool:
        return self.daemon.process.poll() is None

    def stop(self) -> None:
        """End it by its id, its hosts with it; a second call does nothing."""
        process = self.daemon.process
        if process.poll() is None:
            process.terminate()
            try:
                self.daemon.wait()
            except subprocess.TimeoutExpired:
                process.kill()
                self.daemon.wait()
        for pipe in (process.stdout, process.stderr):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()


Server = Ours | Theirs


@contextlib.contextmanager
def serving(
    side: str,
    sdk: str,
    python: Path,
    folder: Path,
    env: Mapping[str, str] | None = None,
    **settings: Any,
) -> Iterator[Server]:
    """Serve every plugin of an environment from ``ours`` or ``theirs``; both get the same ``env``.

    ``settings`` are further ones of our host; upstream's servers have none.
    """
    server: Server
    if side == "theirs":
        server = Theirs(sdk, python, folder, env).start()
    else:
        host = {"python": str(python), "sources": [sdk], "env": dict(env or {}), **settings}
        server = Ours(folder, {"plugins": host})
    try:
        yield server
    finally:
        server.stop()


def _section(name: str, host: Mapping[str, Any]) -> str:
    # JSON's strings, lists and numbers are TOML's too.
    lines = [f"{key} = {json.dumps(value)}" for key, value in host.items() if key != "env"]
    env = [f"{json.dumps(k)} = {json.dumps(v)}" for k, v in host.get("env", {}).items()]
    return "\n".join([f"[hosts.{name}]", *lines, f"[hosts.{name}.env]", *env, ""])
