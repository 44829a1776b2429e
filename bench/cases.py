"""The calls that are measured, by name: what is sent, and which floor answers the same."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

from bench import messages
from bench.messages import FLYTE1, FLYTE2

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.load import Body

__all__ = ["CASES", "Case"]

_JOBS = {
    FLYTE1: "/flyteidl.service.AsyncAgentService/",
    FLYTE2: "/flyteidl2.connector.AsyncConnectorService/",
}


class Case(NamedTuple):
    """One kind of call.

    ``target`` is the row of ``targets.toml``. ``native`` says that the protocol and the
    connector's shape are of the same Flyte: upstream's services answer no other.
    """

    name: str
    target: str
    title: str
    protocol: str
    task_type: str
    path: str
    make: Callable[[], Body]
    native: bool = True
    large: bool = False

    @property
    def counted(self) -> bool:
        """Tell whether its connector counts the calls that reach it, and can be asked."""
        return self.target != "sync_1k"

    @property
    def get_path(self) -> str:
        """The path of its protocol's GetTask."""
        return _JOBS[self.protocol] + "GetTask"


def _get(name: str, target: str, title: str, protocol: str, task_type: str) -> Case:
    native = task_type.startswith("v1" if protocol == FLYTE1 else "v2")
    make = functools.partial(messages.get, protocol, task_type)
    return Case(name, target, title, protocol, task_type, _JOBS[protocol] + "GetTask", make, native)


def _create(
    name: str, target: str, title: str, protocol: str, task_type: str, *, large: bool = False
) -> Case:
    native = task_type.startswith("v1" if protocol == FLYTE1 else "v2")
    path = _JOBS[protocol] + "CreateTask"

    def make() -> Body:
        inputs = messages.inputs_1m() if large else messages.inputs_1k()
        return messages.create(protocol, task_type, inputs)

    return Case(name, target, title, protocol, task_type, path, make, native, large)


_ALL = (
    _get("get-1", "get", "GetTask, no-op", FLYTE1, "v1_noop"),
    _get("get-2", "get", "GetTask, no-op", FLYTE2, "v2_noop"),
    _get("outputs-1", "outputs", "GetTask, Python outputs", FLYTE1, "v1_outputs"),
    _get("outputs-2", "outputs", "GetTask, Python outputs", FLYTE2, "v2_outputs"),
    _get("plain-1", "plain", "GetTask, plain `def`", FLYTE1, "v1_plain"),
    _get("plain-2", "plain", "GetTask, plain `def`", FLYTE2, "v2_plain"),
    _create("create-1k-1", "create_1k", "CreateTask, 1 KB of inputs", FLYTE1, "v1_noop"),
    _create("create-1k-2", "create_1k", "CreateTask, 1 KB of inputs", FLYTE2, "v2_noop"),
    _create("create-1m-1", "create_1m", "CreateTask, 1 MB", FLYTE1, "v1_noop", large=True),
    _create("create-1m-2", "create_1m", "CreateTask, 1 MB", FLYTE2, "v2_noop", large=True),
    Case(
        "sync-1k",
        "sync_1k",
        "ExecuteTaskSync, 1 KB of inputs",
        FLYTE1,
        "v1_sync",
        "/flyteidl.service.SyncAgentService/ExecuteTaskSync",
        lambda: messages.execute("v1_sync", messages.inputs_1k()),
    ),
    _get("cross-get-1on2", "cross", "GetTask on the other shape", FLYTE1, "v2_noop"),
    _get("cross-get-2on1", "cross", "GetTask on the other shape", FLYTE2, "v1_noop"),
    _create("cross-create-1on2", "cross", "CreateTask, 1 KB, other shape", FLYTE1, "v2_noop"),
    _create("cross-create-2on1", "cross", "CreateTask, 1 KB, other shape", FLYTE2, "v1_noop"),
)
CASES = {case.name: case for case in _ALL}
