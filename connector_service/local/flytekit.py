"""Run flytekit's tasks: templates, inputs and outputs are flytekit's own affair.

Imported only for a class that is mixed with a task of flytekit, which then is loaded anyway.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flytekit import FlyteContextManager, PythonFunctionTask
from flytekit.configuration import (
    ImageConfig,
    SerializationSettings,
)
from flytekit.core.context_manager import ExecutionState
from flytekit.core.type_engine import TypeEngine
from flytekit.models.literals import (
    LiteralMap as FlytekitLiteralMap,
)
from flytekit.tools.translator import get_serializable

from connector_service.local.runner import Heard, Job, LocalRun

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from flyteidl.core.literals_pb2 import LiteralMap
    from flyteidl.core.tasks_pb2 import TaskTemplate

__all__ = ["FlytekitFiles", "FlytekitTask"]

_LAST_WORD = 60.0  # seconds until flytekit's own signal handler ends the process


class FlytekitTask:
    """A task of flytekit, as what a local run needs to know of it."""

    def __init__(self, task: Any) -> None:
        """Take the task, in the flytekit context of this thread."""
        self._task = task
        self._context: Any = FlyteContextManager.current_context()

    def template(self) -> TaskTemplate:
        """Return the template that registering the task would give Flyte."""
        settings = self._context.serialization_settings or SerializationSettings(
            image_config=ImageConfig.auto_default_image()
        )
        template: TaskTemplate = get_serializable(
            OrderedDict(), settings, self._task
        ).template.to_flyte_idl()
        return template

    def prepare(self, inputs: Mapping[str, Any], *, is_sync: bool | None) -> Job:
        """Build the job of one call; flytekit's type engine encodes the inputs."""
        is_function = isinstance(self._task, PythonFunctionTask)
        context = self._context
        if is_function:
            # Elsewhere than here the function runs, so files among its inputs are uploaded.
            state = context.new_execution_state().with_params(
                mode=ExecutionState.Mode.TASK_EXECUTION
            )
            context = context.new_builder().with_execution_state(state).build()
        with FlyteContextManager.with_context(context.new_builder()) as entered:
            literals = TypeEngine.dict_to_literal_map(
                entered, dict(inputs), self._task.get_input_types()
            )
        files = self._context.file_access
        return Job(
            self._task.name,
            self.template(),
            literals.to_flyte_idl(),
            output_prefix=str(files.get_random_remote_directory()),
            is_sync=is_sync,
            writes_inputs=is_function,
            storage=FlytekitFiles(files),
        )

    def finish(self, outputs: LiteralMap) -> Any:
        """Return the outputs as flytekit's literals, which it decodes by the task's interface."""
        return FlytekitLiteralMap.from_flyte_idl(outputs)

    @contextlib.contextmanager
    def listening(self, hear: Heard, run: LocalRun) -> Iterator[None]:
        """Off the main thread, hear the SIGINT that flytekit's own handler tells its listeners."""
        if threading.current_thread() is threading.main_thread():
            yield
            return

        def handler(number: int, frame: Any) -> None:
            hear(number, frame)
            run.wait(_LAST_WORD)  # flytekit ends the process after its last listener

        FlyteContextManager.add_signal_handler(handler)
        try:
            yield
        finally:
            FlyteContextManager.signal_handlers.remove(handler)


class FlytekitFiles:
    """Storage as flytekit's context reaches it."""

    def __init__(self, files: Any) -> None:
        """Take the context's file access."""
        self._files = files

    def read(self, uri: str) -> bytes | None:
        """Return what is at ``uri``; None when there is nothing."""
        filesystem = self._files.get_filesystem_for_path(uri)
        if not filesystem.exists(uri):
            return None
        path = self._files.get_random_local_path()
        self._files.get_data(uri, path)
        return Path(path).read_bytes()

    def write(self, uri: str, data: bytes) -> None:
        """Put ``data`` at ``uri``."""
        path = Path(self._files.get_random_local_path())
        path.write_bytes(data)
        self._files.put_data(str(path), uri)
