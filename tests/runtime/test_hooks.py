"""Listeners that misbehave, beside listeners that do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from connector_service.runtime.hooks import CallRecord, Hook, Hooks
from connector_service.testing import serve

if TYPE_CHECKING:
    from connector_service.runtime.dispatcher import Dispatcher

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
