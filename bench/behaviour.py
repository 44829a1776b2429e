"""What the measured connectors do, whichever service runs them: nothing, and count it.

The job "count" is answered with how many calls reached the connector: so the bench knows that its
calls were not answered from a memory before it.
"""

from __future__ import annotations

import itertools
import time
from typing import Any, ClassVar

__all__ = ["BLOCKING", "COUNT", "OUTPUTS", "Async", "Behaviour", "Blocking", "Ended", "Plain"]

OUTPUTS: dict[str, Any] = {"text": "a result", "more": "another result", "count": 42, "ratio": 0.5}
BLOCKING = 0.05  # seconds
COUNT = "count"


class Behaviour:
    """Answers calls and counts them; ``job`` and ``resource`` are the service's own classes."""

    job: ClassVar[Any]
    resource: ClassVar[Any]
    phase: ClassVar[Any]
    outputs: ClassVar[dict[str, Any] | None] = None
    phases: ClassVar[Any]

    _counter: itertools.count[int]
    _reached = 0

    def reached(self) -> None:
        """Count one call; threads may do so at once."""
        if self._reached == 0:
            self._counter = itertools.count(1)
        self._reached = next(self._counter)

    def made(self) -> Any:
        """Answer a create."""
        self.reached()
        return self.job(job="0000000000")

    def answer(self, meta: Any) -> Any:
        """Answer a poll."""
        if meta.job == COUNT:
            return self.resource(phase=self.phases.RUNNING, message=str(self._reached))
        self.reached()
        if self.outputs is None:
            return self.resource(phase=self.phases.RUNNING)
        return self.resource(phase=self.phases.SUCCEEDED, outputs=self.outputs)


class Async(Behaviour):
    """Answers at once, on the loop."""

    async def create(
        self,
        task_template: Any,
        output_prefix: str,
        inputs: Any = None,
        task_execution_metadata: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Take every argument, and start nothing."""
        return self.made()

    async def get(self, resource_meta: Any, **kwargs: Any) -> Any:
        """Answer at once."""
        return self.answer(resource_meta)

    async def delete(self, resource_meta: Any, **kwargs: Any) -> None:
        """Do nothing."""


class Ended(Async):
    """Answers with outputs."""

    outputs = OUTPUTS


class Plain(Behaviour):
    """Answers at once, from a thread."""

    def create(self, task_template: Any, **kwargs: Any) -> Any:
        """Start nothing."""
        return self.made()

    def get(self, resource_meta: Any, **kwargs: Any) -> Any:
        """Answer at once."""
        return self.answer(resource_meta)

    def delete(self, resource_meta: Any, **kwargs: Any) -> None:
        """Do nothing."""


class Blocking(Plain):
    """Answers after a while in which it holds its thread."""

    def get(self, resource_meta: Any, **kwargs: Any) -> Any:
        """Hold the thread."""
        time.sleep(BLOCKING)
        return self.answer(resource_meta)
