"""What a large task costs the service: its peak is measured in a process of its own."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from daemon import eventually
from flyteidl.core.literals_pb2 import LiteralMap
from flyteidl.core.tasks_pb2 import TaskTemplate
from google.protobuf import __version__ as protobuf_version
from google.protobuf.internal import api_implementation

from connector_service import to_literal_map

if not sys.platform.startswith("linux"):
    pytest.skip("the peak of a process is read from /proc", allow_module_level=True)

SOURCE = """
from connector_service import *

class Base(AsyncConnectorBase):
    def __init__(self):
        super().__init__(task_type_name="base")

    async def create(self, task_template, output_prefix, inputs, **kwargs):
        assert inputs.literals
        return ResourceMeta()

    def get(self, resource_meta):
        return Resource(Phase.SUCCEEDED)

    delete = get

class Two(AsyncConnector):
    task_type_name = "connector"
    metadata_type = ResourceMeta

    async def create(self, task_template, output_prefix, inputs, **kwargs):
        assert inputs
        return ResourceMeta()

    def get(self, resource_meta):
        return Resource(Phase.SUCCEEDED)

    delete = get

class Sync(SyncConnectorBase):
    def __init__(self):
        super().__init__(task_type_name="sync")

    async def do(self, task_template, output_prefix, inputs):
        assert inputs.literals
        return Resource(Phase.SUCCEEDED)

for connector in (Base(), Two(), Sync()):
    ConnectorRegistry.register(connector)
"""
SIZE = 10_000_000
INPUTS: dict[str, dict[str, Any]] = {
    "one": {"text": "x" * SIZE},
    "ten": {f"text_{number}": "x" * (SIZE // 10) for number in range(10)},
    "lines": {"lines": ["x" * 1000] * (SIZE // 1000)},
}
CALLS = 3


def memory(pid: int, name: str) -> int:
    """Return a process's VmRSS or VmHWM in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def forget_peak(pid: int) -> None:
    """Let a process's VmHWM start anew, at what it uses now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


@pytest.mark.skipif(
    api_implementation.Type() != "upb", reason="protobuf in pure Python has objects of its own"
)
@pytest.mark.parametrize("protocol", ["flyteidl", "flyteidl2"])
@pytest.mark.parametrize("task_type", ["base", "connector", "sync"])
@pytest.mark.parametrize("kind", INPUTS)
async def test_a_large_task_peaks_below_four_times_its_size(
    daemon: Any, reach: Any, protocol: str, task_type: str, kind: str
) -> None:
    """Create with 10 MB of inputs: grpc's own three copies while it receives are the peak."""
    service = daemon(SOURCE)
    pid = service.process.pid
    flyte = reach(protocol, service.endpoint)
    sync = task_type == "sync" and protocol == "flyteidl"
    call = flyte.do if sync else flyte.create
    inputs: LiteralMap = to_literal_map(INPUTS[kind])
    for _ in range(3):  # what the first call of all loads is no cost of a large one
        await call(TaskTemplate(type=task_type), to_literal_map({"text": "x"}))
    growths = []
    for _ in range(CALLS):
        before = memory(pid, "VmRSS")
        forget_peak(pid)
        await call(TaskTemplate(type=task_type), inputs)
        growths.append((memory(pid, "VmHWM") - before) / inputs.ByteSize())
    # protobuf 6 parses the messages of a stream with a copy more than 7 does.
    most = 6 if sync and int(protobuf_version.partition(".")[0]) < 7 else 4
    assert max(growths) < most, growths
    # And little of it is kept: what grpc frees after its answer is given back a moment later.
    eventually(lambda: memory(pid, "VmRSS") < before + inputs.ByteSize(), "memory given back")
