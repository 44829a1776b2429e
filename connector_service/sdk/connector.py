"""The base classes that connector authors subclass, in the shapes of flytekit and of Flyte 2."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from connector_service.errors import ConfigError
from connector_service.sdk.resource import ResourceMeta, TaskCategory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flyteidl.admin.agent_pb2 import TaskExecutionMetadata
    from flyteidl.core.literals_pb2 import LiteralMap
    from flyteidl.core.tasks_pb2 import TaskTemplate
    from flyteidl2.connector.connector_pb2 import TaskExecutionMetadata as TaskExecutionMetadata2
    from flyteidl2.core.tasks_pb2 import TaskTemplate as TaskTemplate2

__all__ = ["AsyncConnector", "AsyncConnectorBase", "ConnectorBase", "SyncConnectorBase"]

M = TypeVar("M", bound=ResourceMeta)


class ConnectorBase(ABC):  # noqa: B024 - its two subclasses have the abstract methods
    """A connector for one task category.

    ``name`` is what people see; it defaults to the class's name. Any method may be ``async def``
    or plain ``def``: plain ones run on threads, so they may block. Arguments that a method
    neither names nor takes as ``**kwargs`` are not passed to it.
    """

    name: str = "Base Connector"
    # Exceptions of the backend's library that no second try mends (a syntax error, say): like
    # PermanentError they fail the task for good, and their text is shown to its user.
    permanent_errors: tuple[type[Exception], ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # A name that is a base's default is nobody's choice.
        defaults = {ConnectorBase.name, *(base.__name__ for base in cls.__mro__[1:])}
        if "name" not in vars(cls) and cls.name in defaults:
            cls.name = cls.__name__

    def __init__(self, task_type_name: str, task_type_version: int = 0, **kwargs: Any) -> None:
        """Take the task category; further keywords are ignored, as upstream does."""
        self._task_category = TaskCategory(task_type_name, task_type_version)

    @property
    def task_category(self) -> TaskCategory:
        """The task type and version that this connector serves."""
        return self._task_category

    def configure(self, options: Mapping[str, Any]) -> None:
        """Take the operator's ``[connectors.<task type>.options]``, once, before the first call.

        Raises:
            ConfigError: An option is unknown or malformed. This default knows none.
        """
        if options:
            raise ConfigError(
                f"[connectors.{self.task_category.name}.options]: {self.name} takes no options,"
                f" got {', '.join(sorted(options))}."
            )


class AsyncConnectorBase(ConnectorBase):
    """A connector whose jobs run elsewhere: create one, poll it, delete it."""

    # The most jobs that one call of ``get_many`` is asked for.
    batch_size: int = 100

    def __init__(self, metadata_type: type[ResourceMeta] = ResourceMeta, **kwargs: Any) -> None:
        """Take the class that this connector's resource meta decodes to, and the category."""
        super().__init__(**kwargs)
        self._metadata_type = metadata_type

    @property
    def metadata_type(self) -> type[ResourceMeta]:
        """The dataclass that identifies a job of this connector."""
        return self._metadata_type

    @abstractmethod
    def create(
        self,
        task_template: TaskTemplate,
        output_prefix: str,
        inputs: LiteralMap | None,
        task_execution_metadata: TaskExecutionMetadata | None,
        **kwargs: Any,
    ) -> Any:
        """Start a job and return the ``ResourceMeta`` that identifies it.

        The client delivers at least once: the same ``output_prefix`` may come again.
        """

    @abstractmethod
    def get(self, resource_meta: Any, **kwargs: Any) -> Any:
        """Return the ``Resource``: the job's phase now, and its outputs once it succeeded."""

    def get_many(self, resource_metas: list[Any], **kwargs: Any) -> Any:
        """Return a list, with a ``Resource`` or an exception for each meta in its order; optional.

        Polls that come together are answered by it, ``batch_size`` at most; one alone by ``get``.
        """
        raise NotImplementedError

    @abstractmethod
    def delete(self, resource_meta: Any, **kwargs: Any) -> Any:
        """Stop the job; a missing, finished or already deleted one is fine. Keep its results."""

    def get_metrics(self, resource_meta: Any, **kwargs: Any) -> Any:
        """Return a ``GetTaskMetricsResponse``; optional."""
        raise NotImplementedError

    def get_logs(self, resource_meta: Any, **kwargs: Any) -> Any:
        """Return or yield ``GetTaskLogsResponse`` messages; optional.

        Bodies first, then one header with the next page's token, omitted on the last page.
        """
        raise NotImplementedError


class SyncConnectorBase(ConnectorBase):
    """A connector that answers within the call: ask a model, look a value up."""

    @abstractmethod
    def do(
        self,
        task_template: TaskTemplate,
        output_prefix: str,
        inputs: LiteralMap | None = None,
        **kwargs: Any,
    ) -> Any:
        """Do the work and return its ``Resource``, in a terminal phase."""


class AsyncConnector(ConnectorBase, Generic[M]):
    """An async connector in Flyte 2's shape: class attributes, Python inputs, a connection.

    ``create``, ``get`` and ``delete`` also get the secrets and configs of the task's connection,
    by name; a secret wins over a config. A key that is called like one of our arguments is
    refused. Flyte 1 sends no connection.
    """

    task_type_name: ClassVar[str] = ""
    task_type_version: ClassVar[int] = 0
    metadata_type: type[M]
    # The most jobs that one call of ``get_many`` is asked for.
    batch_size: int = 100

    def __init__(self) -> None:
        """Need nothing: the class says it all, and a subclass need not call this."""

    @property
    def task_category(self) -> TaskCategory:
        """The task type and version that the class names."""
        return TaskCategory(self.task_type_name, self.task_type_version)

    @abstractmethod
    def create(
        self,
        task_template: TaskTemplate2,
        output_prefix: str,
        inputs: dict[str, Any] | None = None,
        task_execution_metadata: TaskExecutionMetadata2 | None = None,
        **kwargs: Any,
    ) -> Any:
        """Start a job with Python inputs and return its resource meta; see AsyncConnectorBase."""

    @abstractmethod
    def get(self, resource_meta: M, **kwargs: Any) -> Any:
        """Return the ``Resource``: the job's phase now, and its outputs once it succeeded."""

    def get_many(self, resource_metas: list[M], **kwargs: Any) -> Any:
        """Return a list, with a ``Resource`` or an exception for each meta in its order; optional.

        Polls that come together are answered by it, ``batch_size`` at most; one alone by ``get``.
        """
        raise NotImplementedError

    @abstractmethod
    def delete(self, resource_meta: M, **kwargs: Any) -> Any:
        """Stop the job; a missing, finished or already deleted one is fine. Keep its results."""

    def get_metrics(self, resource_meta: M, **kwargs: Any) -> Any:
        """Return a ``GetTaskMetricsResponse`` of either protocol; optional."""
        raise NotImplementedError

    def get_logs(self, resource_meta: M, **kwargs: Any) -> Any:
        """Return or yield ``GetTaskLogsResponse`` messages of either protocol; optional."""
        raise NotImplementedError
