"""The sleep connector needs nothing: its meta is the whole job."""

from __future__ import annotations

import time
from typing import Any

import pytest
from flyteidl.core import tasks_pb2
from flyteidl.core.execution_pb2 import TaskExecution
from google.protobuf.struct_pb2 import Struct

from connector_service.connectors.sleep import SleepConnector, SleepMeta
from connector_service.errors import ConfigError, InvalidInputError
from connector_service.sdk import Registry, TaskCategory, to_literal_map


def template(**custom: Any) -> tasks_pb2.TaskTemplate:
    made = tasks_pb2.TaskTemplate(type="sleep", custom=Struct())
    made.custom.update(custom)
    return made


def test_a_job_passes_through_its_phases() -> None:
    """QUEUED, RUNNING, then SUCCEEDED with empty outputs, on any replica."""
    sleep = SleepConnector()
    now = time.time()
    for started_at, seconds, phase in (
        (now, 60.0, TaskExecution.QUEUED),
        (now - 30, 60.0, TaskExecution.RUNNING),
        (now - 61, 60.0, TaskExecution.SUCCEEDED),
        (now, 0.0, TaskExecution.SUCCEEDED),
        (now + 5, 60.0, TaskExecution.QUEUED),
    ):
        meta = SleepMeta.decode(SleepMeta(started_at, seconds).encode())
        resource = sleep.get(meta)
        assert resource.phase == phase
        assert (resource.outputs == {}) == (phase == TaskExecution.SUCCEEDED)
        sleep.delete(meta)
        sleep.delete(meta)


def test_seconds_come_from_the_input_or_the_template() -> None:
    """The input wins; without either the job ends at once."""
    sleep = SleepConnector()
    for made, inputs, seconds in (
        (template(), {"seconds": 3}, 3.0),
        (template(seconds=7), {"seconds": 0.5}, 0.5),
        (template(seconds=7), {}, 7.0),
        (template(), {}, 0.0),
    ):
        assert sleep.create(made, "", to_literal_map(inputs), None).seconds == seconds
    assert sleep.create(template(), "", None, None).seconds == 0


@pytest.mark.parametrize("wrong", ["long", True, -1, float("nan"), float("inf"), None])
def test_seconds_that_are_none(wrong: Any) -> None:
    """Refused at once, with what was given."""
    with pytest.raises(InvalidInputError, match="seconds is"):
        SleepConnector().create(template(), "", to_literal_map({"seconds": wrong}), None)


def test_it_registers_and_takes_no_options() -> None:
    """Under ``sleep``; an option is a mistake."""
    registry = Registry()
    registry.register(SleepConnector())
    assert TaskCategory("sleep") in registry
    SleepConnector().configure({})
    with pytest.raises(ConfigError, match="takes no options"):
        SleepConnector().configure({"x": 1})
