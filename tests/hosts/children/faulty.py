"""A connector whose calls misbehave as its task's type says; a child loads it as a module.

The resource meta names what get does, and an argument.
"""

# ruff: noqa: ASYNC110, ASYNC220, ASYNC240, T201

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from flyteidl.admin import agent_pb2

from connector_service import AsyncConnectorBase, ConnectorRegistry, Resource, ResourceMeta
from connector_service.sdk.resource import Phase

HELD: list[bytearray] = []


@dataclass
class Order(ResourceMeta):
    """What get shall do."""

    what: str
    argument: str = ""


class Faulty(AsyncConnectorBase):
    """Does in get what the resource meta says."""

    name = "Faulty"

    def __init__(self, task_type: str) -> None:
        super().__init__(metadata_type=Order, task_type_name=task_type)

    async def create(self, task_template, output_prefix, inputs=None, **kwargs):
        return Order(task_template.custom.fields["what"].string_value)

    async def get(self, resource_meta, **kwargs):
        argument = resource_meta.argument
        message = await getattr(self, f"do_{resource_meta.what}")(argument)
        return Resource(phase=Phase.RUNNING, message=message or "")

    async def delete(self, resource_meta, **kwargs):
        return None

    async def get_logs(self, resource_meta, **kwargs):
        most = resource_meta.argument
        number = 0
        while number < int(most) if most.isdigit() else not Path(most).exists():
            number += 1
            body = agent_pb2.GetTaskLogsResponseBody(results=[str(number)])
            yield agent_pb2.GetTaskLogsResponse(body=body)
            await asyncio.sleep(0.05)

    async def do_answer(self, argument):
        return f"{os.getpid()} {os.environ.get('GENERATION', '')}"

    async def do_environ(self, argument):
        return os.environ.get(argument, "-")

    async def do_cwd(self, argument):
        return str(Path.cwd())

    async def do_exit(self, argument):
        os._exit(int(argument))

    async def do_sys_exit(self, argument):
        sys.exit(int(argument))

    async def do_sleep(self, argument):
        await asyncio.sleep(float(argument))
        return str(os.getpid())

    async def do_wait(self, argument):
        """Wait until there is such a file."""
        while not Path(argument).exists():
            await asyncio.sleep(0.02)
        return str(os.getpid())

    async def do_hold_lock(self, argument):
        # A C call that keeps the interpreter's lock, as a broken extension does.
        ctypes.PyDLL(None).sleep(int(argument))

    async def do_eat(self, argument):
        HELD.append(bytearray(os.urandom(1024)) * (int(argument) * 1024))
        return str(os.getpid())

    async def do_burn(self, argument):
        """Keep the CPU and most of the lock with threads that compute."""
        until = time.monotonic() + float(argument)
        threads = [threading.Thread(target=_compute, args=(until,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        while time.monotonic() < until:
            await asyncio.sleep(0.05)

    async def do_spawn(self, argument):
        """Start a process that would outlive this one, and say its pid."""
        code = "import time; time.sleep(600)"
        detached = argument == "detached"
        child = subprocess.Popen(
            [sys.executable, "-c", code],
            start_new_session=detached,
            process_group=0 if argument == "group" else None,
            stdin=subprocess.DEVNULL,
        )
        return str(child.pid)

    async def do_fork(self, argument):
        """Fork a process that would outlive this one and holds all it has open; say its pid."""
        # The C library's own: gRPC's handlers in Python's are no part of what is tested.
        libc = ctypes.PyDLL(None)
        pid = libc.fork()
        if pid == 0:
            libc.sleep(600)
            libc._exit(0)
        return str(pid)

    async def do_print(self, argument):
        print(argument, flush=True)

    async def do_flood(self, argument):
        line = b"flood " * 20 + b"\n"
        for _ in range(int(argument)):
            os.write(2, line)
        return "done"

    async def do_bytes(self, argument):
        os.write(2, bytes.fromhex(argument))


def _compute(until):
    while time.monotonic() < until:
        sum(range(10_000))


switch = os.environ.get("FAULT_FILE")
if switch and Path(switch).exists():
    what = Path(switch).read_text()
    if what == "exit":
        os._exit(1)
    if what == "raise":
        raise RuntimeError("the fault is switched on")
    if what == "hang":
        time.sleep(600)
    if what == "empty":
        print("nothing to register")
    if what == "crash soon":
        threading.Timer(0.3, os._exit, (9,)).start()

if not (switch and Path(switch).exists() and Path(switch).read_text() == "empty"):
    for task_type in os.environ.get("TASK_TYPES", "faulty").split(","):
        ConnectorRegistry.register(Faulty(task_type))
