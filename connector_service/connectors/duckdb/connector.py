"""DuckDB: one SQL task, one child process that outlives the service, Parquet out.

The SQL is ``task_template.sql.statement``. docs/duckdb.md says what operators and users need.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flyteidl.admin import agent_pb2
from flyteidl.core import literals_pb2
from flyteidl.core.execution_pb2 import TaskExecution

from connector_service.connectors.duckdb.files import FORMATS, Files, local_path, scheme_of
from connector_service.connectors.duckdb.folder import (
    JobFolder,
    Output,
    Spec,
    TableInput,
    pack,
)
from connector_service.connectors.duckdb.jobs import Jobs, reap
from connector_service.connectors.duckdb.log import log_pages
from connector_service.connectors.duckdb.options import Options, read_options
from connector_service.connectors.duckdb.types import is_scalar, is_table
from connector_service.connectors.duckdb.usage import metric_results, samples
from connector_service.errors import GoneError, InvalidInputError, InvalidMetaError
from connector_service.sdk import AsyncConnectorBase, Phase, Resource, ResourceMeta, to_python

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from flyteidl.core.literals_pb2 import Literal, LiteralMap
    from flyteidl.core.tasks_pb2 import TaskTemplate
    from flyteidl.core.types_pb2 import LiteralType

__all__ = ["DuckdbConnector", "DuckdbMeta"]

_TASK_TYPE = "duckdb"
_JOB_ID = re.compile(r"[0-9a-f]{32}")
_OUTPUT_NAME = re.compile(r"\w[\w.-]{0,127}")
_LONGEST_SQL = 1 << 20  # bytes
_MOST_INPUTS = 1000
_LARGEST_INPUTS = 16 << 20  # bytes


@dataclass
class DuckdbMeta(ResourceMeta):
    """Which job it is; no SQL, no parameter and no secret is in it."""

    job_id: str


class DuckdbConnector(AsyncConnectorBase):
    """Runs SQL on the service's own machine, each job in a process of its own."""

    name = "DuckDB Connector"

    def __init__(self) -> None:
        """Serve the task type ``duckdb`` with the default options."""
        super().__init__(metadata_type=DuckdbMeta, task_type_name=_TASK_TYPE)
        self._jobs = Jobs(self._options({}))

    def configure(self, options: Mapping[str, Any]) -> None:
        """Take ``[connectors.duckdb.options]``; docs/duckdb.md lists them.

        Raises:
            ConfigError: An option is unknown or malformed, or the state folder is not safe.
        """
        self._jobs = Jobs(self._options(options))
        self._jobs.prepare()

    def create(
        self,
        task_template: TaskTemplate,
        output_prefix: str,
        inputs: LiteralMap | None = None,
        task_execution_metadata: Any = None,
        idempotency_key: str = "",
        **_kwargs: Any,
    ) -> DuckdbMeta:
        """Start the SQL in a process of its own; the same key or prefix finds the same job.

        Raises:
            InvalidInputError: The template, an input or the output prefix is wrong.
            TransientError: The process could not be started.
        """
        job_id = _job_id(task_template, output_prefix, idempotency_key)
        spec = _spec(task_template, output_prefix, inputs, job_id, self._jobs.options)
        self._jobs.start(spec)
        return DuckdbMeta(job_id)

    def get(self, resource_meta: DuckdbMeta, **_kwargs: Any) -> Resource:
        """Return the phase now; the outputs are complete on disk before it is SUCCEEDED.

        Raises:
            GoneError: This machine knows no such job.
        """
        reap()
        folder = self._known(resource_meta)
        # Alive first: a job that ends between the two questions has a result at the second.
        alive = folder.is_alive()
        if result := folder.result():
            outputs = None
            if result.outputs is not None:
                outputs = literals_pb2.LiteralMap.FromString(result.outputs)
            return Resource(Phase.Value(result.phase), result.message, outputs=outputs)
        if folder.is_deleted():
            return Resource(TaskExecution.ABORTED, "The job was deleted.")
        state = folder.state()
        if not alive:
            folder.remove_partial()
            message = "The job ended without a result (killed: out of memory?)."
            if state is None:
                message = "The job never started; its log may say why."
            return Resource(TaskExecution.RETRYABLE_FAILED, message)
        if state is None or state.started_at is None:
            return Resource(TaskExecution.QUEUED, "Waiting to start.")
        return Resource(TaskExecution.RUNNING, "The SQL is running.")

    def delete(self, resource_meta: DuckdbMeta, **_kwargs: Any) -> None:
        """Kill the query; an unknown, ended or deleted job is fine, and results stay."""
        folder = self._folder(resource_meta)
        if folder.path.is_dir():
            self._jobs.stop(folder)

    def get_logs(
        self, resource_meta: DuckdbMeta, lines: int = 0, token: str = "", **_kwargs: Any
    ) -> Iterator[agent_pb2.GetTaskLogsResponse]:
        """Yield a page of the job's log and, unless it is the last, the next page's token.

        Raises:
            GoneError: This machine knows no such job.
            InvalidRequestError: The token is none of this log's.
        """
        folder = self._known(resource_meta)
        yield from log_pages(folder.log_path, lines, token)

    def get_metrics(
        self,
        resource_meta: DuckdbMeta,
        queries: Sequence[str] = (),
        start_time: Any = None,
        end_time: Any = None,
        step: Any = None,
        **_kwargs: Any,
    ) -> agent_pb2.GetTaskMetricsResponse:
        """Return CPU (cores) and memory (bytes) as range queries, measured each second.

        Raises:
            GoneError: This machine knows no such job.
            InvalidRequestError: A query is unknown.
        """
        folder = self._known(resource_meta)
        results = metric_results(
            samples(folder),
            queries,
            labels={"job_id": resource_meta.job_id},
            start_time=start_time,
            end_time=end_time,
            step=step,
        )
        return agent_pb2.GetTaskMetricsResponse(results=results)

    def _options(self, options: Mapping[str, Any]) -> Options:
        return read_options(options, section=f"connectors.{_TASK_TYPE}.options")

    def _known(self, meta: DuckdbMeta) -> JobFolder:
        folder = self._folder(meta)
        if not folder.path.is_dir():
            raise GoneError(
                f"This machine knows no DuckDB job {meta.job_id}: it ran on another one, or its"
                f" folder was purged after {self._jobs.options.keep_days:g} days."
            )
        return folder

    def _folder(self, meta: DuckdbMeta) -> JobFolder:
        if not _JOB_ID.fullmatch(meta.job_id):
            raise InvalidMetaError("The resource meta's job_id is none that this connector wrote.")
        return self._jobs.folder(meta.job_id)


def _job_id(template: TaskTemplate, output_prefix: str, idempotency_key: str) -> str:
    """Name the job; without a key of the service's, as where guarantees are off, by its prefix."""
    if not output_prefix:
        return secrets.token_hex(16)
    name = template.id
    key = idempotency_key or "\0".join(
        (output_prefix, name.project, name.domain, name.name, name.version)
    )
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _spec(
    template: TaskTemplate,
    output_prefix: str,
    inputs: LiteralMap | None,
    job_id: str,
    options: Options,
) -> Spec:
    """Check all that can be checked before a process is started for it."""
    sql = template.sql.statement
    if not sql.strip():
        raise InvalidInputError("The task template has no SQL: sql.statement is empty.")
    if len(sql.encode()) > _LONGEST_SQL:
        raise InvalidInputError(f"The SQL is longer than {_LONGEST_SQL} bytes.")
    if output_prefix:
        _check_place(output_prefix, options)
    parameters: dict[str, Any] = {}
    unbindable: dict[str, str] = {}
    tables = []
    if inputs is not None:
        if len(inputs.literals) > _MOST_INPUTS or inputs.ByteSize() > _LARGEST_INPUTS:
            raise InvalidInputError(
                f"The inputs are too many or too large: {_MOST_INPUTS} inputs of"
                f" {_LARGEST_INPUTS >> 20} MiB in all are the most."
            )
        declared = template.interface.inputs.variables
        for name, literal in inputs.literals.items():
            kind = declared[name].type if name in declared else None
            if table := _table_input(name, literal, kind):
                _check_place(table.uri, options)
                tables.append(table)
                continue
            try:
                parameters[name] = pack(to_python(literal, kind, path=f"inputs.{name}"))
            except TypeError as error:
                unbindable[name] = f"a {error}"
            except (InvalidInputError, RecursionError) as error:
                unbindable[name] = f"unreadable ({error})"
    return Spec(
        job_id=job_id,
        sql=sql,
        parameters=parameters,
        unbindable=unbindable,
        tables=tuple(tables),
        outputs=_outputs(template),
        output_prefix=output_prefix,
        options=options,
    )


def _table_input(name: str, literal: Literal, declared: LiteralType | None) -> TableInput | None:
    while literal.scalar.WhichOneof("value") == "union":
        literal = literal.scalar.union.value
    scalar = literal.scalar
    kind = scalar.WhichOneof("value")
    if kind == "schema":
        return TableInput(name, scalar.schema.uri, "parquet")
    if kind != "structured_dataset":
        return None
    dataset = scalar.structured_dataset
    said = dataset.metadata.structured_dataset_type.format
    if not said and declared is not None:
        said = declared.structured_dataset_type.format
    format_name = said.lower() or "parquet"
    if format_name not in FORMATS:
        raise InvalidInputError(
            f"The input {name} has the format {said!r}; tables are read as {', '.join(FORMATS)}."
        )
    return TableInput(name, dataset.uri, format_name)


def _outputs(template: TaskTemplate) -> tuple[Output, ...]:
    outputs = []
    for name, variable in template.interface.outputs.variables.items():
        table = is_table(variable.type)
        if not table and not is_scalar(variable.type):
            raise InvalidInputError(
                f"The output {name} is declared as {variable.type.WhichOneof('type')}; DuckDB"
                f" fills a structured dataset, and primitives by column name."
            )
        if not _OUTPUT_NAME.fullmatch(name):
            raise InvalidInputError(f"The output {name!r} has a name that no file can have.")
        outputs.append(Output(name, variable.type.SerializeToString(), table))
    if sum(output.is_table for output in outputs) > 1:
        names = ", ".join(sorted(output.name for output in outputs if output.is_table))
        raise InvalidInputError(f"SQL has one result; the interface declares the tables {names}.")
    return tuple(sorted(outputs, key=lambda output: output.name))


def _check_place(uri: str, options: Options) -> None:
    """Refuse early what the child could never reach."""
    scheme = scheme_of(uri)
    if not scheme:
        local_path(uri)
        return
    Files.check_scheme(uri, scheme, options)
    if importlib.util.find_spec("fsspec") is None:
        raise InvalidInputError(
            f"{scheme}:// needs fsspec on the service's machine; its operator runs:"
            f" pip install 'connector-service[fsspec]'"
        )
