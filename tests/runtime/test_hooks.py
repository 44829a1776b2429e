"""Listeners that misbehave, beside listeners that do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc.aio
import pytest
from flyteidl.core.literals_pb2 import Literal, LiteralMap
from flyteidl.core.tasks_pb2 import TaskTemplate

from connector_service import TaskCategory
from connector_service.config import ConnectorSection
from connector_service.runtime.hooks import CallRecord, Hook, Hooks
from connector_service.telemetry.calls import CallMeter
from connector_service.testing import serve

if TYPE_CHECKING:
    from collections.abc import Callable

    from connector_service import ConnectorBase
    from connector_service.runtime.dispatcher import Dispatcher
    from connector_service.runtime.hooks import Kind

RECORD = CallRecord(protocol="flyteidl", operation="get", task_type="t", code="OK", seconds=0.1)


class Hears(Hook):
    def __init__(self, heard: list[tuple[str, object]], name: str = "") -> None:
        self._heard = heard
        self._name = name

    def started(self, protocol: str, operation: str) -> None:
        self._heard.append((f"{self._name}started", (protocol, operation)))

    def ended(self, record: CallRecord) -> None:
        self._heard.append((f"{self._name}ended", record))


class Raises(Hook):
    def started(self, protocol: str, operation: str) -> None:
        raise RuntimeError("deaf at the start")

    def ended(self, record: CallRecord) -> None:
        raise RuntimeError("deaf at the end")


def test_hooks_hear_in_their_order() -> None:
    """Every hook hears every event, in the order in which the hooks were given."""
    heard: list[tuple[str, object]] = []
    hooks = Hooks([Hears(heard, "first "), Hears(heard, "second ")])
    hooks.started("flyteidl", "get")
    hooks.ended(RECORD)
    assert heard == [
        ("first started", ("flyteidl", "get")),
        ("second started", ("flyteidl", "get")),
        ("first ended", RECORD),
        ("second ended", RECORD),
    ]


@pytest.mark.parametrize("event", ["started", "ended"])
def test_a_hook_that_raises_is_logged_and_dropped(
    caplog: pytest.LogCaptureFixture, event: str
) -> None:
    """The log names the hook and the event with a traceback; the next hook still hears."""
    heard: list[tuple[str, object]] = []
    hooks = Hooks([Raises(), Hears(heard)])
    if event == "started":
        hooks.started("flyteidl", "get")
    else:
        hooks.ended(RECORD)
    assert [name for name, _fact in heard] == [event]
    (logged,) = caplog.records
    assert logged.getMessage() == f"A hook failed: Raises.{event}"
    assert logged.levelname == "ERROR"
    assert logged.exc_info is not None
    assert isinstance(logged.exc_info[1], RuntimeError)


def test_a_hook_may_hear_only_what_it_wants() -> None:
    """The base class ignores every event, so a hook overrides what it listens to."""
    hooks = Hooks([Hook()])
    hooks.started("flyteidl", "get")
    hooks.ended(RECORD)


async def test_a_service_whose_hook_raises_answers_all_the_same() -> None:
    """A broken listener costs its own records, never a call."""
    async with serve() as served, served.client() as client:
        dispatcher: Dispatcher = served.service._dispatcher
        heard: list[tuple[str, object]] = []
        dispatcher._hooks = Hooks([Raises(), Hears(heard)])
        assert await client.list_agents() == []
        assert [name for name, _fact in heard] == ["started", "ended"]


class Counts(Hook):
    """Counts calls as the service's metrics do."""

    def __init__(self) -> None:
        self.meter = CallMeter()

    def kind(self, protocol: str, operation: str, task_type: str) -> Kind:
        return self.meter.kind(protocol, operation, task_type)


class Brief(Hears):
    """Wants no record of what ended well, only its seconds; raises when it has heard them."""

    def well(self, protocol: str, operation: str, task_type: str) -> Callable[[float], None]:
        def hear(seconds: float) -> None:
            self._heard.append(("well", (protocol, operation, task_type)))
            raise RuntimeError("deaf in the end")

        return hear

    started = Hook.started


async def test_a_hook_may_hear_of_what_ended_well_without_a_record(
    caplog: pytest.LogCaptureFixture, fake: Callable[..., ConnectorBase]
) -> None:
    """It hears every create and delete once, counted with their inputs; failures are records."""
    heard: list[tuple[str, object]] = []
    counts = Counts()
    bare = ConnectorSection(guarantees=False)
    async with serve(fake("spark"), policy=bare) as served, served.client() as client:
        dispatcher: Dispatcher = served.service._dispatcher
        dispatcher._hooks = Hooks([counts, Brief(heard)])
        await client.create(TaskTemplate(type="spark"), LiteralMap(literals={"n": Literal()}))
        with pytest.raises(grpc.aio.AioRpcError):
            await client.delete(TaskCategory("spark"), b"no meta")
    (ended,) = [fact for name, fact in heard if name == "ended"]
    assert isinstance(ended, CallRecord)
    assert (ended.operation, ended.code) == ("delete", "INVALID_ARGUMENT")
    assert [fact for name, fact in heard if name == "well"] == [("flyteidl", "create", "spark")]
    (failed,) = [one for one in caplog.records if one.getMessage().startswith("A hook failed")]
    assert failed.exc_info is not None
    samples = {one.name: one.value for metric in counts.meter.collect() for one in metric.samples}
    assert samples["flyte_connector_input_literal_bytes_count"] == 1
    assert samples["flyte_connector_input_literal_bytes_sum"] == 7
