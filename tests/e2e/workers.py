"""What tests of ``serve --workers`` share: connectors, clients, and what runs."""

from __future__ import annotations

import contextlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
from daemon import PATIENCE, Daemon, eventually
from flyteidl.admin import agent_pb2
from flyteidl.core.literals_pb2 import LiteralMap
from flyteidl.core.tasks_pb2 import TaskTemplate
from flyteidl.service import agent_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

MODULE = """
import asyncio, ctypes, os, pathlib
from dataclasses import dataclass
from connector_service import (
    AsyncConnectorBase, ConnectorRegistry, Phase, Resource, ResourceMeta, SyncConnectorBase)

class Who(SyncConnectorBase):
    def __init__(self):
        super().__init__(task_type_name="who")

    async def do(self, output_prefix):
        folder = pathlib.Path(output_prefix)
        if output_prefix:
            (folder / "entered").touch()
            while not (folder / "open").exists():
                await asyncio.sleep(0.02)
        return Resource(Phase.SUCCEEDED, message=str(os.getpid()))

@dataclass
class Meta(ResourceMeta):
    pid: int

class Job(AsyncConnectorBase):
    def __init__(self):
        super().__init__(task_type_name="job", metadata_type=Meta)

    async def create(self, output_prefix):
        folder = pathlib.Path(output_prefix)
        with open(folder / "created", "a") as file:
            file.write(f"{os.getpid()}\\n")
        while (folder / "closed").exists():
            await asyncio.sleep(0.02)
        return Meta(os.getpid())

    async def get(self, resource_meta):
        return Resource(Phase.RUNNING)

    async def delete(self, resource_meta):
        pass

class Freeze(SyncConnectorBase):
    def __init__(self):
        super().__init__(task_type_name="freeze")

    def do(self, output_prefix):
        (pathlib.Path(output_prefix) / "entered").touch()
        ctypes.PyDLL(None).sleep(600)  # and holds the interpreter's lock all the while

ConnectorRegistry.register(Freeze())
ConnectorRegistry.register(Who())
ConnectorRegistry.register(Job())
"""
FLAGS = ("--module=workers_module", "--workers=2")


@contextlib.contextmanager
def client(daemon: Daemon) -> Iterator[grpc.Channel]:
    """Open a connection that no other channel of this process shares."""
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(daemon.endpoint, options=options) as channel:
        yield channel


def who(channel: grpc.Channel, prefix: str = "", task_type: str = "who") -> int:
    """Return the process that answered."""
    header = agent_pb2.CreateRequestHeader(
        template=TaskTemplate(type=task_type), output_prefix=prefix
    )
    requests = [
        agent_pb2.ExecuteTaskSyncRequest(header=header),
        agent_pb2.ExecuteTaskSyncRequest(inputs=LiteralMap()),
    ]
    stream = agent_pb2_grpc.SyncAgentServiceStub(channel).ExecuteTaskSync(
        iter(requests), timeout=PATIENCE, wait_for_ready=True
    )
    answer = next(stream).header.resource.message
    assert list(stream) == []
    return int(answer)


def create(channel: grpc.Channel, prefix: Path) -> bytes:
    request = agent_pb2.CreateTaskRequest(
        template=TaskTemplate(type="job"), output_prefix=str(prefix)
    )
    stub = agent_pb2_grpc.AsyncAgentServiceStub(channel)
    meta: bytes = stub.CreateTask(request, timeout=9, wait_for_ready=True).resource_meta
    return meta


@contextlib.contextmanager
def one_of_each(daemon: Daemon, workers: int = 2) -> Iterator[dict[int, grpc.Channel]]:
    """Open connections until there is one to each worker."""
    with contextlib.ExitStack() as stack:
        found: dict[int, grpc.Channel] = {}
        for _ in range(200):
            channel = stack.enter_context(client(daemon))
            found.setdefault(who(channel), channel)
            if len(found) == workers:
                break
        assert len(found) == workers
        yield found


def folder(tmp_path: Path, name: str) -> Path:
    made = tmp_path / name
    made.mkdir()
    return made


def fetch(daemon: Daemon, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"{daemon.metrics}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def metrics(daemon: Daemon) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return every sample that only grows, and every gauge, by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(fetch(daemon, "/metrics")[1])
        for sample in family.samples
    }


def counted(daemon: Daemon) -> float:
    """Return how many calls of ``who`` the service says were answered."""
    labels = (("operation", "do"), ("task_type", "who"))
    return metrics(daemon).get(("flyte_connector_requests_success_total", labels), 0.0)


def children(pid: int) -> set[int]:
    return {int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def wait_for_successor(daemon: Daemon, victim: int) -> None:
    """Wait until another serves in the place of a worker that was killed."""

    def replaced() -> bool:
        now = children(daemon.process.pid)
        return len(now) == 2 and victim not in now and fetch(daemon, "/readyz")[1] == "ready\n"

    eventually(replaced, "a successor")
