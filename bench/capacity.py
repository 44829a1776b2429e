"""Proves that the client is not what is measured: the same load on a server of native code."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from bench.cases import CASES
from bench.environments import MissingToolError
from bench.load import Connection, Load
from bench.process import CLIENT_CORE, SERVER_CORE, free_port, on_core

__all__ = ["Capacity", "capacity"]

_LOADS = (("get-1", 16), ("get-1", 1), ("create-1k-1", 16), ("create-1m-1", 16))
_PATIENCE = 10.0  # seconds


class Capacity(NamedTuple):
    """What the client reaches when hardly any of the time is the server's."""

    case: str
    in_flight: int
    rate: float  # calls per second
    p50: float  # seconds
    p99: float
    client: float  # share of a core that the client used


def capacity(seconds: float) -> list[Capacity]:
    """Load nghttpd, nghttp2's example server in C++, as every other server is loaded.

    Raises:
        MissingToolError: nghttpd is not installed.
    """
    program = shutil.which("nghttpd")
    if program is None:
        raise MissingToolError(
            "nghttpd is not installed; `apt-get install nghttp2-server` brings the native server"
            " that shows what the client can do."
        )
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, in_flight in _LOADS:
            case = CASES[name]
            file = Path(folder, case.path.lstrip("/"))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"answer")
            load = Load(case.path, case.make(), in_flight, check=False)
            found.append(_measure(program, folder, load, seconds)._replace(case=name))
    return found


def _measure(program: str, folder: str, load: Load, seconds: float) -> Capacity:
    port = free_port()
    command = [program, "--no-tls", "-d", folder, "-w", "24", "-W", "28", str(port)]
    with on_core(SERVER_CORE):
        server = subprocess.Popen(  # noqa: S603 - found on the path
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    try:
        with on_core(CLIENT_CORE), contextlib.closing(_connect(port, load)) as connection:
            connection.run(seconds=0.3)
            sample = connection.run(seconds=seconds)
    finally:
        server.kill()
        server.wait()
    return Capacity(
        "",
        load.in_flight,
        sample.rate,
        sample.percentile(0.5),
        sample.percentile(0.99),
        sample.own_cpu / sample.seconds,
    )


def _connect(port: int, load: Load) -> Connection:
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return Connection("127.0.0.1", port, load)
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)
