"""Sleep: a job that takes the seconds it is told and needs nothing, to try a service with.

There is no job but its resource meta, so any replica answers for it, and a restart changes nothing.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flyteidl.core.execution_pb2 import TaskExecution

from connector_service.errors import InvalidInputError
from connector_service.sdk import AsyncConnectorBase, Resource, ResourceMeta, to_python

if TYPE_CHECKING:
    from flyteidl.core.literals_pb2 import LiteralMap
    from flyteidl.core.tasks_pb2 import TaskTemplate

__all__ = ["SleepConnector", "SleepMeta"]

_QUEUED = 0.1  # the part of the time, a second at most, that a job stays QUEUED


@dataclass
class SleepMeta(ResourceMeta):
    """When the job started, in seconds since 1970, and how many seconds it takes."""

    started_at: float
    seconds: float


class SleepConnector(AsyncConnectorBase):
    """Ends after the input ``seconds``, or ``seconds`` of the template's custom, or at once."""

    name = "Sleep Connector"

    def __init__(self) -> None:
        """Serve the task type ``sleep``."""
        super().__init__(metadata_type=SleepMeta, task_type_name="sleep")

    def create(
        self,
        task_template: TaskTemplate,
        output_prefix: str = "",
        inputs: LiteralMap | None = None,
        task_execution_metadata: Any = None,
        **_kwargs: Any,
    ) -> SleepMeta:
        """Note the time.

        Raises:
            InvalidInputError: The seconds are no number, negative or without end.
        """
        return SleepMeta(time.time(), _seconds(task_template, inputs))

    def get(self, resource_meta: SleepMeta, **_kwargs: Any) -> Resource:
        """Return QUEUED at first, RUNNING for the rest of the time, then SUCCEEDED."""
        slept = max(0.0, time.time() - resource_meta.started_at)
        seconds = resource_meta.seconds
        if slept >= seconds:
            return Resource(TaskExecution.SUCCEEDED, f"Slept {seconds:g} s.", outputs={})
        queued = slept < min(1.0, seconds * _QUEUED)
        return Resource(
            TaskExecution.QUEUED if queued else TaskExecution.RUNNING,
            f"Slept {slept:.1f} of {seconds:g} s.",
        )

    def delete(self, resource_meta: SleepMeta, **_kwargs: Any) -> None:
        """Do nothing: nothing runs."""


def _seconds(template: TaskTemplate, inputs: LiteralMap | None) -> float:
    value: Any = 0
    if inputs is not None and "seconds" in inputs.literals:
        value = to_python(inputs.literals["seconds"], path="inputs.seconds")
    elif "seconds" in template.custom.fields:
        value = template.custom["seconds"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInputError(f"seconds is a number, not a {type(value).__name__}.")
    if not (math.isfinite(value) and value >= 0):
        raise InvalidInputError(f"seconds is {value}; it must be a finite number, 0 or more.")
    return float(value)
