"""Process hosts with short times, calls to the faulty connector, and what is left of processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flyteidl.admin import agent_pb2

from connector_service.config import HostSection
from connector_service.hosts.process import ProcessHost, Timing
from connector_service.runtime.call import Call
from connector_service.sdk.method import Operation
from connector_service.sdk.resource import TaskCategory

CHILDREN = Path(__file__).parent / "hosts" / "children"
FAULTY = TaskCategory("faulty")
QUICK = Timing(
    heartbeat=0.1,
    first_wait=0.05,
    longest_wait=0.2,
    steady=8.0,
    short=4.0,
    patience=20.0,
    drain=10.0,
    last=2.0,
)


class Events:
    """What a host told of itself, and a way to wait for it."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self._more = asyncio.Event()

    def __call__(self, kind: str, detail: str) -> None:
        self.told.append((kind, detail))
        self._more.set()

    @property
    def counts(self) -> Counter[str]:
        return Counter(kind for kind, _ in self.told)

    async def seen(self, kind: str, times: int = 1, *, within: float = 30.0) -> None:
        async with asyncio.timeout(within):
            while self.counts[kind] < times:
                self._more.clear()
                await self._more.wait()


class Hosts:
    """Makes hosts of faulty connectors and ends them with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_dir = folder / "run"
        self.switch = folder / "fault"
        self.all: list[ProcessHost] = []

    def make(
        self,
        name: str = "faulty",
        *,
        timing: Timing = QUICK,
        program: str = "",
        env: dict[str, str] | None = None,
        **settings: Any,
    ) -> tuple[ProcessHost, Events]:
        events = Events()
        given = {
            "sources": ("module:faulty",),
            "cwd": str(CHILDREN),
            "env": {"FAULT_FILE": str(self.switch), **(env or {})},
            "start_timeout": 30.0,
            **settings,
        }
        more: dict[str, Any] = {"program": CHILDREN / program} if program else {}
        host = ProcessHost(
            name, HostSection(**given), self.run_dir, on_event=events, timing=timing, **more
        )
        self.all.append(host)
        return host, events

    async def started(self, name: str = "faulty", **more: Any) -> tuple[ProcessHost, Events]:
        host, events = self.make(name, **more)
        await host.start()
        return host, events

    async def close(self) -> None:
        for host in self.all:
            await host.close(0.0)


def get(what: str, argument: str = "", *, seconds: float | None = 20.0, **more: Any) -> Call:
    """Make a poll that has the connector do something."""
    deadline = None if seconds is None else time.monotonic() + seconds
    category = more.pop("category", FAULTY)
    request = agent_pb2.GetTaskRequest(
        task_category=agent_pb2.TaskCategory(name=category.name, version=category.version),
        resource_meta=json.dumps({"what": what, "argument": argument}).encode(),
    )
    return Call("flyteidl", Operation.GET, category, request, deadline=deadline)


def logs(messages: int | Path, *, seconds: float = 20.0) -> Call:
    """Make a call with so many answers, one in 50 ms, or with answers until there is a file."""
    request = agent_pb2.GetTaskLogsRequest(
        task_category=agent_pb2.TaskCategory(name="faulty"),
        resource_meta=json.dumps({"what": "logs", "argument": str(messages)}).encode(),
    )
    deadline = time.monotonic() + seconds
    return Call("flyteidl", Operation.GET_LOGS, FAULTY, request, deadline=deadline)


async def ask(host: ProcessHost, what: str, argument: str = "", **more: Any) -> str:
    """Poll, and return the resource's message."""
    message: str = (await host.run(get(what, argument, **more))).message
    return message


async def pid_of(host: ProcessHost, **more: Any) -> int:
    """Return the process that answered."""
    return int((await ask(host, "answer", **more)).split()[0])


async def until(condition: Callable[[], object], *, within: float = 30.0) -> None:
    """Wait for what nobody tells of."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - the kernel sets no event of ours
            await asyncio.sleep(0.02)


def runs(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        state = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # it may end while it is read
        return False
    return state not in ("Z", "X")


def own_children() -> set[int]:
    """Return the children of this process, zombies too."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == os.getpid():
            found.add(int(folder.name))
    return found


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    os.kill(pid, number)
