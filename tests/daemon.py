"""One running ``connector-service serve``, the installed one, for tests to drive and to kill."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

COMMAND = Path(sys.executable).with_name("connector-service")
STARTED = re.compile(
    r"serving on (?P<endpoint>[^\s,]+)(?: with \d+ workers)?,"
    r" metrics on http://(?P<metrics>\S+)/metrics"
)
PATIENCE = 30.0


class Daemon:
    """One running service; everything it writes to standard error is kept."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.errors: list[str] = []
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()
        assert process.stdout is not None
        line = process.stdout.readline()
        found = STARTED.search(line)
        if found is None:
            process.wait(PATIENCE)
            self._reader.join(PATIENCE)
            raise AssertionError(f"did not start: {line!r} {self.log}")
        self.announced = line
        self.endpoint = found["endpoint"]
        self.metrics = f"http://{found['metrics']}"

    @property
    def log(self) -> str:
        return "".join(self.errors)

    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self.endpoint, options=[("grpc.enable_http_proxy", 0)])

    def health(self, service: str = "") -> str:
        with self.channel() as channel:
            response = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=5
            )
        return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(self.process.stderr)


Serve = Callable[..., Daemon]


def policies_of_threads(pid: int) -> dict[str, set[int]]:
    """Return the scheduling policies of a process's threads but its first, by their names."""
    policies: dict[str, set[int]] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        if int(task.name) != pid:
            policy = os.sched_getscheduler(int(task.name))
            policies.setdefault((task / "comm").read_text().strip(), set()).add(policy)
    return policies


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait until ``condition`` holds; fail with ``what`` when it never does."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.02)
