"""What the tests of the crossings share: both of Flyte's clients, and connectors in every shape."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon import COMMAND, Daemon
from flyte_clients import SHAPES, Flyte, make_connector

FLYTES = ("flyteidl", "flyteidl2")


@pytest.fixture
async def reach() -> AsyncIterator[Callable[[str, str], Flyte]]:
    """Make a client of a protocol for an endpoint."""
    async with contextlib.AsyncExitStack() as stack:

        def make(protocol: str, endpoint: str) -> Flyte:
            flyte = Flyte(protocol, endpoint)
            stack.push_async_callback(flyte.channel.close)
            return flyte

        yield make


@pytest.fixture(params=FLYTES)
def flyte(request: pytest.FixtureRequest, reach: Any) -> Callable[[Any], Flyte]:
    """Make the client under test for a served service: Flyte 1's, then Flyte 2's."""
    return lambda served: reach(request.param, served.endpoint)


class Crossed:
    """Makes connectors of one shape."""

    def __init__(self, shape: str) -> None:
        self.shape = shape

    def __call__(self, **methods: Any) -> Any:
        return make_connector(self.shape, **methods)


@pytest.fixture(params=SHAPES)
def crossed(request: pytest.FixtureRequest) -> Crossed:
    """Make the connector under test: in Flyte 1's shape, then in Flyte 2's."""
    return Crossed(request.param)


Starts = Callable[..., Daemon]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Starts]:
    """Start the installed service, as often as the test likes, with a module of connectors."""
    running: list[Daemon] = []

    def start(source: str, *flags: str) -> Daemon:
        (tmp_path / "crossing_connectors.py").write_text(source)
        environ = {k: v for k, v in os.environ.items() if not k.startswith("CONNECTOR_SERVICE_")}
        process = subprocess.Popen(
            [
                str(COMMAND),
                "serve",
                "--port=0",
                "--prometheus-port=0",
                "--drain-delay=0",
                "--module=crossing_connectors",
                *flags,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ | {"PYTHONPATH": str(tmp_path)},
            cwd=tmp_path,
        )
        running.append(Daemon(process))
        return running[-1]

    yield start
    for one in running:
        if one.process.poll() is None:
            one.kill()
        for pipe in (one.process.stdout, one.process.stderr):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
