"""Connectors that do what connectors do at their worst; our own source loads them."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, ClassVar

from flyteidl.admin import agent_pb2

from connector_service import (
    AsyncConnectorBase,
    ConnectorRegistry,
    GoneError,
    InvalidInputError,
    PermanentError,
    Phase,
    Resource,
    ResourceMeta,
    SyncConnectorBase,
    TransientError,
)
from connector_service.errors import SecretNotFoundError

print("printed while it loads")  # noqa: T201 - as plugins do
os.write(1, b"written to descriptor 1\n")
logging.getLogger("odd").warning("loading with password=hunter22")


@dataclass
class Meta(ResourceMeta):
    word: str = ""


class Refused(Exception):  # noqa: N818 - a stranger's
    """What the connector calls permanent."""


class Response:
    status_code = 503
    headers: ClassVar[dict[str, str]] = {"Retry-After": "3"}


class HttpError(OSError):
    status_code = 429
    retry_after = 7
    response = Response()


class RpcError(Exception):
    def code(self) -> Any:
        class Code:
            name = "UNAVAILABLE"

        return Code


class Unspeakable(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise RuntimeError("no text")

    @property
    def status_code(self) -> int:
        raise SystemExit(3)


def wrapped() -> Exception:
    error = OSError("outer")
    error.reason = ConnectionResetError(104, "inner")  # type: ignore[attr-defined]
    return error


ERRORS = {
    "http": HttpError("busy"),
    "rpc": RpcError("busy"),
    "unspeakable": Unspeakable(),
    "wrapped": wrapped(),
    "group": ExceptionGroup("both", [TimeoutError("one"), ConnectionError("two")]),
    "refused": Refused("never"),
    "transient": TransientError("later", retry_after=2.5),
    "permanent": PermanentError("no", code="Quota", origin="system"),
    "input": InvalidInputError("mend it"),
    "gone": GoneError("gone"),
    "secret": SecretNotFoundError("token", "nowhere"),
    "exit": SystemExit(9),
    "interrupt": KeyboardInterrupt(),
    "stop": StopIteration("end"),
    "long": ValueError("é" * 50_000),
    "unmapped": ValueError("Unrecognized state: napping"),
}


class Odd(AsyncConnectorBase):
    name = "Odd"
    permanent_errors = (Refused,)

    def __init__(self, task_type: str) -> None:
        super().__init__(task_type_name=task_type, metadata_type=Meta)
        self.loops: set[int] = set()
        self.left = threading.Event()

    async def create(
        self, task_template: Any, inputs: Any, idempotency_key: str = "", **_: Any
    ) -> Meta:
        size = len(inputs.literals["large"].scalar.primitive.string_value) if inputs else 0
        return Meta(word=f"{task_template.id.name}|{idempotency_key}|{size}")

    async def get(self, resource_meta: Meta, **_: Any) -> Resource:
        self.loops.add(id(asyncio.get_running_loop()))
        what, _, argument = resource_meta.word.partition(":")
        if what == "raise":
            raise ERRORS[argument]
        if what == "spawn":
            asyncio.get_running_loop().create_task(self._exit())
            await asyncio.sleep(0.05)
        if what == "block":
            time.sleep(float(argument))  # noqa: ASYNC251 - the fault
        if what == "hold":  # the interpreter's lock too
            ctypes.PyDLL(None).sleep(int(argument))
        if what == "child":
            child = subprocess.Popen(  # noqa: ASYNC220 - as plugins do
                [sys.executable, "-c", "import time; time.sleep(600)"]
            )
            return Resource(phase=Phase.RUNNING, message=str(child.pid))
        if what == "fork":  # which a preexec_fn needs: Python uses vfork without one
            codes = [
                subprocess.run(["true"], check=False, preexec_fn=os.getpid).returncode  # noqa: ASYNC221
                for _ in range(int(argument))
            ]
            return Resource(phase=Phase.RUNNING, message=str(sorted(set(codes))))
        if what == "wait":
            try:
                await asyncio.sleep(600)
            finally:
                self.left.set()
        if what == "left":
            return Resource(phase=Phase.RUNNING, message=str(self.left.is_set()))
        if what == "log":
            try:
                raise ValueError("api_key=verysecret")  # noqa: TRY301
            except ValueError:
                logging.getLogger("odd").exception("it failed")
        name = threading.current_thread().name
        return Resource(phase=Phase.SUCCEEDED, message=f"{len(self.loops)} {name}")

    async def _exit(self) -> None:
        raise SystemExit(5)

    def delete(self, resource_meta: Meta, **_: Any) -> None:
        if resource_meta.word == "exit":
            sys.exit(11)

    async def get_logs(
        self, resource_meta: Meta, **_: Any
    ) -> AsyncIterator[agent_pb2.GetTaskLogsResponse]:
        try:
            for number in range(1_000_000 if resource_meta.word == "endless" else 3):
                yield agent_pb2.GetTaskLogsResponse(
                    body=agent_pb2.GetTaskLogsResponseBody(results=[str(number)])
                )
        finally:
            self.left.set()


class Quick(SyncConnectorBase):
    name = "Quick"

    def __init__(self) -> None:
        super().__init__(task_type_name="quick")

    def do(self, task_template: Any, inputs: Any = None, **_: Any) -> Resource:
        return Resource(phase=Phase.SUCCEEDED, message=task_template.type)


ConnectorRegistry.register(Odd("odd"))
ConnectorRegistry.register(Odd("other"))
ConnectorRegistry.register(Quick())
