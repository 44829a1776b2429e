"""A backend in a process of its own, over real HTTP: it outlives the service and keeps the truth.

``python remote.py`` is the backend. Imported with ``--module`` by a service it is the backend's
connector, which finds it by the environment variables below.

The backend has two ports. On the first, jobs are created, read and deleted, and there it has
faults; when it is away nobody listens. On the second, the test asks for the truth and sets faults.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from flyteidl.core.execution_pb2 import TaskExecution

from connector_service import (
    AsyncConnectorBase,
    ConnectorRegistry,
    GoneError,
    Resource,
    ResourceMeta,
)

PORT = "REMOTE_BACKEND_PORT"  # in the service's environment
TASK_TYPE = "remote"
SERVING = "serving on "
TIMEOUT = 5.0  # seconds, of the connector's requests
ENDS = ("SUCCEEDED", "FAILED")


def truth(name: str) -> str:
    """Return how the job of an output prefix ends: one in five fails, always the same ones."""
    return ENDS[hashlib.sha256(name.encode()).digest()[0] % 5 == 0]


# --- HTTP, as little as it takes -----------------------------------------------------------------


class HttpError(Exception):
    """What an HTTP library raises: the response with its status and headers."""

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        super().__init__(f"HTTP {status}")
        self.response = SimpleNamespace(status_code=status, headers=headers)


async def request(port: int, method: str, path: str, **query: object) -> Any:
    """Send one request on a connection of its own and return the JSON of the answer.

    Raises:
        HttpError: The status is not 200.
        ConnectionError: Nobody listens, or the connection ended before the answer.
    """
    text = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in query.items())
    async with asyncio.timeout(TIMEOUT):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(f"{method} {path}?{text} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
            answer = await reader.read()
        finally:
            writer.close()
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        raise ConnectionResetError("the connection ended before the answer")
    first, *lines = head.decode().split("\r\n")
    status = int(first.split()[1])
    if status != 200:
        raise HttpError(status, dict(line.split(": ", 1) for line in lines))
    return json.loads(body)


# --- the connector -------------------------------------------------------------------------------


@dataclass
class JobMeta(ResourceMeta):
    job: str


class RemoteConnector(AsyncConnectorBase):
    """A plain connector without a guarantee of its own: what it meets, it raises."""

    name = "Remote"

    def __init__(self) -> None:
        super().__init__(metadata_type=JobMeta, task_type_name=TASK_TYPE)
        self._port = int(os.environ[PORT])

    async def create(  # type: ignore[override]
        self, task_template: Any, output_prefix: str, idempotency_key: str | None = None
    ) -> JobMeta:
        job = await request(
            self._port, "POST", "/jobs", name=output_prefix, key=idempotency_key or ""
        )
        return JobMeta(job["id"])

    async def get(self, resource_meta: JobMeta) -> Resource:  # type: ignore[override]
        try:
            job = await request(self._port, "GET", "/jobs", id=resource_meta.job)
        except HttpError as error:
            if error.response.status_code == 404:
                raise GoneError(f"Job {resource_meta.job} no longer exists.") from error
            raise
        phase = "ABORTED" if job["state"] == "CANCELLED" else job["state"]
        return Resource(TaskExecution.Phase.Value(phase), message=resource_meta.job)

    async def delete(self, resource_meta: JobMeta) -> None:  # type: ignore[override]
        await request(self._port, "DELETE", "/jobs", id=resource_meta.job)


if PORT in os.environ:
    ConnectorRegistry.register(RemoteConnector())


# --- the backend ---------------------------------------------------------------------------------


class Backend:
    """Jobs, their faults, and two HTTP servers; times are real seconds."""

    def __init__(self, settings: argparse.Namespace) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.by_key: dict[str, str] = {}
        self.calls: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.set = settings
        self.random = random.Random(settings.seed)
        self.port = 0
        self.server: asyncio.Server | None = None

    async def serve(self) -> None:
        control = await asyncio.start_server(self._controlled, "127.0.0.1", 0)
        await self.listen()
        print(f"{SERVING}{self.port} {control.sockets[0].getsockname()[1]}", flush=True)  # noqa: T201
        await control.serve_forever()

    async def listen(self) -> None:
        self.server = await asyncio.start_server(
            self._asked, "127.0.0.1", self.port, backlog=1000, reuse_address=True
        )
        self.port = self.server.sockets[0].getsockname()[1]

    async def _asked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            method, query = await _read(reader)
            await self._answer(method, query, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # whoever asked was killed
        finally:
            writer.close()

    async def _answer(
        self, method: str, query: dict[str, str], writer: asyncio.StreamWriter
    ) -> None:
        self.calls[method] += 1
        fault = self._fault()
        if fault is not None:
            self.failed[method] += 1
            if fault:  # 0: the connection ends without an answer, and nothing was done
                headers = {"Retry-After": str(self.set.retry_after)} if fault == 429 else {}
                _send(writer, fault, {}, headers)
            return
        if method == "POST":
            job = self._make(query["name"], query["key"])
            # The job exists and nobody was told: who dies now has been in the crash window.
            await asyncio.sleep(self.set.latency)
            if self.random.random() < self.set.lost_answers:
                self.failed[method] += 1
                return
        else:
            found = self.jobs.get(query["id"])
            if found is None:
                _send(writer, 404, {})
                return
            job = found
            self._advance(job)
            if method == "DELETE" and job["state"] == "RUNNING":
                job["state"] = "CANCELLED"
        _send(writer, 200, job)

    def _fault(self) -> int | None:
        if self.set.burst:
            return 429
        if self.random.random() < self.set.error_rate:
            return self.random.choice((503, 503, 502, 504, 0))
        return None

    def _make(self, name: str, key: str) -> dict[str, Any]:
        if self.set.honours_keys and key in self.by_key:
            return self.jobs[self.by_key[key]]
        job_id = f"job-{len(self.jobs)}"
        born = time.monotonic()  # one clock for all processes of the machine
        ends = born + self.set.duration * self.random.uniform(0.5, 1.5)
        self.jobs[job_id] = {
            "id": job_id,
            "name": name,
            "born": born,
            "ends": ends,
            "state": "RUNNING",
        }
        if key:
            self.by_key[key] = job_id
        return self.jobs[job_id]

    def _advance(self, job: dict[str, Any]) -> None:
        if job["state"] == "RUNNING" and time.monotonic() >= job["ends"]:
            job["state"] = truth(job["name"])

    async def _controlled(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            _, query = await _read(reader)
        except asyncio.IncompleteReadError:
            return
        away = query.pop("away", None)
        if away == "1" and self.server is not None:
            # New connections are refused; a request that was taken is answered, so that an outage
            # loses no answer by itself: `lost_answers` does that, and is counted.
            self.server.close()
            self.server = None
        elif away == "0" and self.server is None:
            await self.listen()
        for name, value in query.items():
            setattr(self.set, name, float(value))
        for job in self.jobs.values():
            self._advance(job)
        counts = {"calls": dict(self.calls), "failed": dict(self.failed)}
        _send(writer, 200, {"jobs": list(self.jobs.values()), **counts})
        writer.close()


async def _read(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]]:
    head = await reader.readuntil(b"\r\n\r\n")
    method, target, _ = head.split(b"\r\n")[0].decode().split()
    query = parse_qs(urlsplit(target).query, keep_blank_values=True)
    return method, {name: values[0] for name, values in query.items()}


def _send(
    writer: asyncio.StreamWriter, status: int, body: Any, headers: dict[str, str] | None = None
) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = f"HTTP/1.1 {status} -\r\n{lines}\r\n"
    writer.write(head.encode() + json.dumps(body).encode())


# --- what a test holds of it ---------------------------------------------------------------------


class Remote:
    """The backend's process; ``set`` its faults, ask it for the ``truth``, ``close`` it."""

    def __init__(self, **settings: object) -> None:
        """Start it; ``settings`` are the options of this file's command line."""
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        environ = {name: value for name, value in os.environ.items() if name != PORT}
        self._process = subprocess.Popen(
            [sys.executable, __file__, *flags], stdout=subprocess.PIPE, text=True, env=environ
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith(SERVING), f"the backend did not start: {line!r}"
        self.port, self._control = map(int, line.removeprefix(SERVING).split())

    async def set(self, **faults: float) -> Any:
        """Set faults: ``away`` and ``burst`` are 0 or 1, others are options of the command line."""
        return await request(self._control, "POST", "/", **faults)

    async def truth(self) -> Any:
        """Return all jobs with their states, and how many calls there were and failed."""
        return await self.set()

    async def jobs(self) -> list[dict[str, Any]]:
        """Return all jobs."""
        found: list[dict[str, Any]] = (await self.truth())["jobs"]
        return found

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--honours-keys", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--error-rate", type=float, default=0.0)
    parser.add_argument("--lost-answers", type=float, default=0.0)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--duration", type=float, default=3600.0)
    parser.add_argument("--burst", type=float, default=0.0)
    parser.add_argument("--retry-after", type=int, default=1)
    asyncio.run(Backend(parser.parse_args()).serve())


if __name__ == "__main__":
    main()
