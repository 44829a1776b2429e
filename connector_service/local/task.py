"""A small task of our own, to run a connector's jobs from Python without an SDK."""

from __future__ import annotations

import contextlib
import typing
from collections import namedtuple
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flyteidl.core.identifier_pb2 import Identifier, ResourceType
from flyteidl.core.interface_pb2 import TypedInterface, Variable, VariableMap
from flyteidl.core.literals_pb2 import KeyValuePair
from flyteidl.core.tasks_pb2 import Container, RuntimeMetadata, Sql, TaskMetadata, TaskTemplate
from google.protobuf import json_format

from connector_service.codec.literals import from_literal_map, to_literal_map, to_literal_type
from connector_service.errors import AuthorError, InvalidInputError
from connector_service.local.backends import Backend, InProcess
from connector_service.local.runner import POLL, Heard, Job, LocalRun
from connector_service.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flyteidl.core.literals_pb2 import LiteralMap

__all__ = ["ConnectorTask", "ContainerSpec"]


@dataclass(frozen=True)
class ContainerSpec:
    """The container of a task; ``args`` may hold templates such as ``{{.outputPrefix}}``."""

    image: str
    args: Sequence[str] = ()
    command: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)


class ConnectorTask:
    """One task of a connector: calling it runs a job and returns its Python outputs.

    >>> count = ConnectorTask("count", "sql", inputs={"day": str}, outputs={"rows": int}, sql="...")
    >>> count(day="2025-01-31")
    12
    """

    poll_interval: float = POLL  # seconds, at most, between two polls

    def __init__(
        self,
        name: str,
        task_type: str,
        *,
        task_type_version: int = 0,
        inputs: Mapping[str, Any] | None = None,
        outputs: Mapping[str, Any] | None = None,
        custom: Mapping[str, Any] | None = None,
        sql: str | None = None,
        container: ContainerSpec | None = None,
        config: Mapping[str, str] | None = None,
    ) -> None:
        """Take what Flyte's template of the task holds; inputs and outputs by name and type.

        An input whose type admits None may be left out of a call.

        Raises:
            CodecError: A type has no literal form.
            AuthorError: There are both ``sql`` and a container, of which Flyte has room for one;
                ``custom`` is not JSON, or an output's name is no Python name.
        """
        if sql is not None and container is not None:
            raise AuthorError(f"{name}: a task has sql or a container, not both.")
        self.name = name
        self.inputs = dict(inputs or {})
        self.outputs = dict(outputs or {})
        if wrong := [each for each in self.outputs if not each.isidentifier()]:
            raise AuthorError(f"{name}: the output {wrong[0]!r} is no Python name.")
        self._template = TaskTemplate(
            id=Identifier(
                resource_type=ResourceType.TASK, project="local", domain="local", name=name
            ),
            type=task_type,
            task_type_version=task_type_version,
            metadata=TaskMetadata(
                runtime=RuntimeMetadata(
                    type=RuntimeMetadata.OTHER, version=__version__, flavor="connector-service"
                )
            ),
            interface=TypedInterface(
                inputs=_variables(self.inputs, f"{name}.inputs"),
                outputs=_variables(self.outputs, f"{name}.outputs"),
            ),
            config=dict(config or {}),
            container=None if container is None else _container(container),
            sql=None if sql is None else Sql(statement=sql, dialect=Sql.ANSI),
        )
        if custom is not None:
            try:
                json_format.ParseDict(dict(custom), self._template.custom)
            except (json_format.ParseError, TypeError, ValueError) as error:
                raise AuthorError(f"{name}: custom is not JSON: {error}.") from None
        self._result = namedtuple("Outputs", self.outputs, rename=True)  # type: ignore[misc]

    def __call__(self, **inputs: Any) -> Any:
        """Run a job with these inputs and return its outputs, as ``execute``.

        Raises:
            InvalidInputError: An input is missing, unknown, or of another type than declared.
            JobFailedError: It ended in another phase than SUCCEEDED.
            ConnectorNotFoundError: Nobody registered the task type here.
        """
        return self.execute(**inputs)

    def execute(self, **kwargs: Any) -> Any:
        """Run a job to its end: one output is its value, several a named tuple, none None."""
        run = LocalRun(self.connector_backend(), self.prepare(kwargs), poll=self.poll_interval)
        return self.finish(run.run())

    def connector_backend(self) -> Backend:
        """Return what runs the job; override it to have a service elsewhere run it."""
        return InProcess()

    def template(self) -> TaskTemplate:
        """Return a copy of the template that connectors see, its arguments not yet rendered."""
        copy = TaskTemplate()
        copy.CopyFrom(self._template)
        return copy

    def prepare(self, inputs: Mapping[str, Any], *, is_sync: bool | None = None) -> Job:
        """Build the job of one call; raises as calling does."""
        if unknown := sorted(inputs.keys() - self.inputs.keys()):
            raise InvalidInputError(
                f"{self.name} has no input {unknown[0]!r}; it has {_listed(self.inputs)}."
            )
        optional = {name: None for name, kind in self.inputs.items() if _admits_none(kind)}
        values = {**optional, **inputs}
        if missing := [name for name in self.inputs if name not in values]:
            raise InvalidInputError(f"{self.name} needs the input {', '.join(missing)}.")
        variables = self._template.interface.inputs.variables
        literals = to_literal_map(values, variables, path=f"{self.name}.inputs")
        return Job(self.name, self.template(), literals, is_sync=is_sync)

    def finish(self, outputs: LiteralMap) -> Any:
        """Return a job's outputs as Python values of the declared types.

        Raises:
            CodecError: An output is not of its declared type.
        """
        values = from_literal_map(
            outputs,
            self._template.interface.outputs.variables,
            python_types=self.outputs,
            path=f"{self.name}.outputs",
        )
        declared = [values[name] for name in self.outputs]
        if not declared:
            return None
        return declared[0] if len(declared) == 1 else self._result(*declared)

    @contextlib.contextmanager
    def listening(self, _hear: Heard, _run: LocalRun) -> typing.Iterator[None]:
        """Listen nowhere else for signals: only SDKs have a place of their own for it."""
        yield


def _variables(types: Mapping[str, Any], path: str) -> VariableMap:
    variables = VariableMap()
    for name, kind in types.items():
        try:
            variables.variables[name].CopyFrom(Variable(type=to_literal_type(kind)))
        except InvalidInputError as error:
            raise type(error)(f"{path}.{name}: {error}") from None
    return variables


def _container(spec: ContainerSpec) -> Container:
    return Container(
        image=spec.image,
        command=list(spec.command),
        args=list(spec.args),
        env=[KeyValuePair(key=key, value=value) for key, value in spec.env.items()],
    )


def _admits_none(kind: Any) -> bool:
    return type(None) in typing.get_args(kind)


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "none"
