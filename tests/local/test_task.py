"""Our own task runs a job through the daemon's dispatcher and codec, and returns Python values."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import signal
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flyteidl.core.tasks_pb2 import TaskTemplate
from local.fakes import (
    LINK,
    AsyncDoubler,
    Clumsy,
    Doubler,
    Endless,
    Ends,
    Flyte2Adder,
    PlainRecorder,
    Recorder,
    SlowToStart,
    Writer,
    blip,
    registry_of,
    task_class,
)

from connector_service import (
    ConnectorRegistry,
    InvalidInputError,
    Phase,
    Registry,
    Resource,
    SyncConnectorBase,
    from_literal_map,
)
from connector_service.errors import (
    AuthorError,
    ConnectorFault,
    ConnectorNotFoundError,
    JobFailedError,
    WrongKindError,
)
from connector_service.local import (
    AsyncConnectorExecutorMixin,
    ConnectorTask,
    ContainerSpec,
    InProcess,
    Job,
    LocalRun,
    Remote,
    SyncConnectorExecutorMixin,
)
from connector_service.sdk.registry import registering_into
from connector_service.testing import serve_in_thread

NUMBERS = {"inputs": {"a": int, "b": int}, "outputs": {"total": int}}


@pytest.mark.parametrize("bases", [(), (AsyncConnectorExecutorMixin,)], ids=["bare", "mixed"])
@pytest.mark.parametrize("kind", [Recorder, PlainRecorder, Writer])
def test_an_async_job_runs_to_its_outputs(kind: type, bases: tuple[type, ...]) -> None:
    """Create, poll, outputs: inline or from outputs.pb; nothing is deleted that ended by itself."""
    connector = kind()
    task = task_class(*bases, connectors=[connector])("sum", kind.task_type, **NUMBERS)
    assert task(a=2, b=40) == 42
    assert "delete" not in connector.calls


def test_a_folder_stays_only_when_the_job_used_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand runs leave no thousand empty folders; what outputs point into is kept."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = task_class(connectors=[Recorder(), Ends(), Writer()])
    made("sum", "recorder", **NUMBERS)(a=2, b=40)
    with pytest.raises(JobFailedError):
        made("t", "ends", custom={"phase": "FAILED"})()
    assert list(tmp_path.iterdir()) == []
    made("sum", "writer", **NUMBERS)(a=2, b=40)
    [folder] = tmp_path.iterdir()
    assert (folder / "outputs.pb").stat().st_size > 0


@pytest.mark.parametrize(
    "bases",
    [(), (SyncConnectorExecutorMixin,), (AsyncConnectorExecutorMixin,)],
    ids=["bare", "sync mixin", "async mixin"],
)
@pytest.mark.parametrize("task_type", ["doubler", "async_doubler"])
def test_a_sync_task_answers(task_type: str, bases: tuple[type, ...]) -> None:
    """A sync connector answers by either mixin: over create its result rides in the meta."""
    made = task_class(*bases, connectors=[Doubler(), AsyncDoubler()])
    assert made("double", task_type, inputs={"a": int}, outputs={"twice": int})(a=21) == 42


def test_a_sync_mixin_cannot_follow_a_job() -> None:
    """The sync mixin on an async connector is told which call is wrong."""
    made = task_class(SyncConnectorExecutorMixin, connectors=[Recorder()])
    with pytest.raises(WrongKindError, match="asynchronously"):
        made("sum", "recorder", **NUMBERS)(a=1, b=2)


def test_a_connector_of_flyte_2_s_shape_gets_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both shapes run; Flyte 2's in its own protocol, with secrets of this environment."""
    monkeypatch.setenv("_FSEC_ACME_TOKEN", "s3cret-value")
    task = task_class(connectors=[Flyte2Adder()])(
        "sum",
        "flyte2",
        inputs={"a": int, "b": int},
        outputs={"total": int, "seen": str},
        custom={"secrets": {"token": "acme_token"}, "configs": {"region": "eu"}, "other": 1},
    )
    total, seen = result = task(a=1, b=2)
    assert (total, seen) == (3, "s3cret-value@eu s3cret-value")
    assert result.total == 3


@dataclass
class Row:
    name: str
    at: dt.datetime


class Echo(SyncConnectorBase):
    def __init__(self) -> None:
        super().__init__(task_type_name="echo")

    def do(self, task_template: Any, output_prefix: str, inputs: Any = None) -> Resource:  # type: ignore[override]
        return Resource(Phase.SUCCEEDED, outputs=inputs)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (float, 1.0),
        (list[int], [1, 2]),
        (Row, Row("x", dt.datetime(2025, 1, 1, tzinfo=dt.UTC))),
        (dict[str, Row], {"k": Row("y", dt.datetime(2025, 1, 1, tzinfo=dt.UTC))}),
        (dt.timedelta, dt.timedelta(days=1)),
        (int | None, None),
        (tuple[int, str], (1, "a")),
    ],
)
def test_values_come_back_as_the_declared_types(kind: Any, value: Any) -> None:
    """Python in, literals through the connector, Python of the declared types out."""
    task = task_class(connectors=[Echo()])("echo", "echo", inputs={"x": kind}, outputs={"x": kind})
    back = task(x=value)
    assert back == value
    assert type(back) is type(value)


def test_no_outputs_are_none_and_an_optional_input_may_be_left_out() -> None:
    """Without outputs a call returns None."""
    task = task_class(connectors=[Echo()])("echo", "echo", inputs={"x": int | None})
    assert task() is None


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"a": 1}, "sum needs the input b"),
        ({"a": 1, "b": 2, "c": 3}, "sum has no input 'c'; it has a, b"),
        ({"a": 1, "b": "two"}, r"sum\.inputs\.b"),
    ],
)
def test_wrong_inputs_start_no_job(inputs: dict[str, Any], said: str) -> None:
    """A missing, an unknown and a wrongly typed input are named before anything is created."""
    connector = Recorder()
    task = task_class(connectors=[connector])("sum", "recorder", **NUMBERS)
    with pytest.raises(InvalidInputError, match=said):
        task(**inputs)
    assert connector.calls == []


def test_a_task_that_flyte_could_not_have_is_refused() -> None:
    """A type without a literal form, custom that is no JSON, an output without a Python name."""
    with pytest.raises(InvalidInputError, match=r"t\.inputs\.x"):
        ConnectorTask("t", "x", inputs={"x": set})
    with pytest.raises(AuthorError, match="custom is not JSON"):
        ConnectorTask("t", "x", custom={"x": object()})
    with pytest.raises(AuthorError, match="sql or a container, not both"):
        ConnectorTask("t", "x", sql="select 1", container=ContainerSpec("image"))
    with pytest.raises(AuthorError, match="'a b' is no Python name"):
        ConnectorTask("t", "x", outputs={"a b": int})


@pytest.mark.parametrize("phase", ["FAILED", "ABORTED", "RETRYABLE_FAILED"])
@pytest.mark.parametrize("bases", [(), (AsyncConnectorExecutorMixin,)], ids=["bare", "mixed"])
def test_a_job_that_fails_raises_one_error(phase: str, bases: tuple[type, ...]) -> None:
    """Every terminal phase ends the run at once: the error has phase, message and log links."""
    connector = Ends()
    task = task_class(*bases, connectors=[connector])("t", "ends", custom={"phase": phase})
    with pytest.raises(JobFailedError) as caught:
        task()
    assert caught.value.phase == phase
    assert caught.value.message == "as it was told"
    assert list(caught.value.log_links) == [LINK]
    assert str(caught.value) == (
        f"The job of 't' ended {phase}: as it was told\n  console: https://backend.example/jobs/1"
    )
    assert connector.calls == ["get"]


def test_a_success_without_its_outputs_is_a_failure() -> None:
    """SUCCEEDED without inline outputs or outputs.pb, or without one of them, is told as such."""
    made = task_class(connectors=[Ends(), Recorder()])
    assert made("t", "ends", custom={"phase": "SUCCEEDED"})() is None
    with pytest.raises(
        JobFailedError, match=r"ended SUCCEEDED: .*there is no file:///.*outputs.pb"
    ):
        made("t", "ends", custom={"phase": "SUCCEEDED"}, outputs={"x": int})()
    with pytest.raises(JobFailedError, match="its outputs lack more"):
        made("t", "recorder", outputs={"total": int, "more": int})()


def test_an_unknown_task_type_is_answered_with_what_there_is() -> None:
    """The sentence names the type and what is registered; no mixin needed, none in the way."""
    for bases in ((), (AsyncConnectorExecutorMixin,), (SyncConnectorExecutorMixin,)):
        made = task_class(*bases, connectors=[Recorder()])
        with pytest.raises(ConnectorNotFoundError) as caught:
            made("t", "nobody", task_type_version=2)()
        assert str(caught.value) == (
            "No connector for task type 'nobody' version 2; registered: recorder v0."
        )


def test_an_error_that_is_no_error_of_ours_is_wrapped_with_its_place() -> None:
    """A bug in a connector comes out as its author needs it: what, where, and the cause."""
    connector = Clumsy()
    connector.failures = [KeyError("rows")]
    task = task_class(connectors=[connector])("t", "clumsy")
    with pytest.raises(ConnectorFault, match=r"get of task type 'clumsy' .*KeyError.*fakes\.py:\d"):
        task()
    assert connector.calls == ["create", "get", "delete"]


def test_polls_that_may_pass_are_repeated_for_a_while() -> None:
    """Five transient failures in a row are waited out, the sixth ends and deletes the job."""
    connector = Clumsy()
    connector.failures = [blip() for _ in range(5)]
    made = task_class(connectors=[connector])
    assert made("t", "clumsy")() is None
    assert "delete" not in connector.calls
    connector.failures = [blip() for _ in range(6)]
    with pytest.raises(Exception, match="The backend restarts"):
        made("t", "clumsy")()
    assert connector.calls[-1] == "delete"


@pytest.mark.parametrize("bases", [(), (AsyncConnectorExecutorMixin,)], ids=["bare", "mixed"])
async def test_a_task_runs_inside_a_running_event_loop(bases: tuple[type, ...]) -> None:
    """As in a notebook's cell; the loop is blocked for the call, and fine afterwards."""
    task = task_class(*bases, connectors=[Recorder()])("sum", "recorder", **NUMBERS)
    assert asyncio.get_running_loop().is_running()
    assert task(a=1, b=1) == 2
    await asyncio.sleep(0)


async def test_tasks_run_side_by_side_on_threads() -> None:
    """Several threads may run jobs at the same time; a job's loop is the same for all."""
    seen = set()

    class Looks(Recorder):
        task_type = "looks"

        async def get(self, resource_meta: Any) -> Resource:
            seen.add(id(asyncio.get_running_loop()))
            return self.ended(resource_meta)

    task = task_class(connectors=[Looks()])("sum", "looks", **NUMBERS)
    results = await asyncio.gather(*(asyncio.to_thread(task, a=n, b=1) for n in range(5)))
    assert results == [1, 2, 3, 4, 5]
    assert len(seen) == 1


async def test_a_cancelled_run_deletes_its_job_once() -> None:
    """Awaited on a loop of the caller's, cancelling the run deletes the job."""
    connector = Endless()
    job = Job("t", TaskTemplate(type="endless"))
    run = LocalRun(InProcess(registry_of(connector)), job, poll=0.01)
    driving = asyncio.create_task(run.drive())
    await asyncio.to_thread(connector.running.wait, 10)
    driving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await driving
    assert connector.calls.count("delete") == 1


async def test_a_run_cancelled_while_creating_waits_to_delete(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Only the answer of create tells what there is to delete, so it is waited for."""
    connector = SlowToStart()
    run = LocalRun(InProcess(registry_of(connector)), Job("t", TaskTemplate(type="slow")))
    driving = asyncio.create_task(run.drive())
    await asyncio.to_thread(connector.running.wait, 10)
    driving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await driving
    assert connector.calls == ["create", "delete"]
    said = capsys.readouterr().err
    assert "interrupted while the job is being created" in said
    assert "the job was deleted" in said


def test_stop_ends_a_run_from_another_thread() -> None:
    """``stop`` is for any thread; with ``delete=False`` the job is left running."""
    for delete in (True, False):
        connector = Endless()
        job = Job("t", TaskTemplate(type="endless"))
        run = LocalRun(InProcess(registry_of(connector)), job, poll=0.01)

        def stop(run: LocalRun = run, connector: Endless = connector, how: bool = delete) -> None:
            connector.running.wait(10)
            run.stop(delete=how)
            run.stop()

        thread = threading.Thread(target=stop)
        thread.start()
        with pytest.raises(asyncio.CancelledError):
            run.run()
        thread.join()
        assert connector.calls.count("delete") == int(delete)


def test_whatever_ends_the_wait_ends_the_job() -> None:
    """An exception of the waiting thread, a test's time limit say, leaves no job behind."""
    connector = Endless()
    task = task_class(connectors=[connector])("t", "endless")

    def late(_number: int, _frame: Any) -> None:
        raise TimeoutError("too late")

    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(TimeoutError, match="too late"):
            task()
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert connector.calls.count("delete") == 1


def test_the_handler_can_be_called_without_a_run() -> None:
    """``connector_signal_handler`` by itself deletes the job that the meta identifies."""
    connector = Recorder()
    made = task_class(AsyncConnectorExecutorMixin, connectors=[connector])
    task = made("sum", "recorder", **NUMBERS)
    task(a=1, b=2)
    assert task.resource_meta.values == {"a": 1, "b": 2}
    task.connector_signal_handler(task.resource_meta, 2, None)
    assert connector.calls[-1] == "delete"


def test_the_connector_sees_what_flyte_would_send() -> None:
    """The template has custom, config and the rendered container, and its files are there."""
    connector = Recorder()
    task = task_class(connectors=[connector])(
        "sum",
        "recorder",
        **NUMBERS,
        custom={"depth": 2},
        config={"k": "v"},
        container=ContainerSpec(
            "image:1",
            args=["--in={{.input}}", "{{.inputs.a}}", "{{.taskTemplatePath}}"],
            command=["{{.input}}"],
            env={"E": "1"},
        ),
    )
    task(a=1, b=2)
    seen = connector.template
    assert dict(seen.config) == {"k": "v"}
    assert seen.custom["depth"] == 2
    assert seen.id.name == connector.metadata.task_execution_id.task_id.name == "sum"
    assert seen.container.image == "image:1"
    assert list(seen.container.command) == ["{{.input}}"]
    assert seen.container.env[0].key == "E"
    where, number, template = seen.container.args
    assert number == "1"
    inputs = Path(where.removeprefix("--in=file://")).read_bytes()
    literals = type(task.prepare({"a": 1, "b": 2}).inputs).FromString(inputs)
    assert from_literal_map(literals) == {"a": 1, "b": 2}
    assert TaskTemplate.FromString(Path(template.removeprefix("file://")).read_bytes()) == seen
    made = task_class(connectors=[connector])(
        "q", "recorder", outputs={"total": int}, sql="select 1"
    )
    assert made() == 0
    assert connector.template.sql.statement == "select 1"


def test_a_task_runs_at_a_service_elsewhere() -> None:
    """With another backend the same task runs over gRPC."""
    connector = Recorder()
    with serve_in_thread(connector, Doubler()) as served:

        class Task(ConnectorTask):
            poll_interval = 0.01

            def connector_backend(self) -> Remote:  # type: ignore[override]
                return Remote(served.endpoint)

        assert Task("sum", "recorder", **NUMBERS)(a=1, b=2) == 3
        assert Task("d", "doubler", inputs={"a": int}, outputs={"twice": int})(a=2) == 4
        with pytest.raises(ConnectorNotFoundError, match="registered: doubler v0, recorder v0"):
            Task("x", "nobody")()


def test_what_is_registered_and_what_is_installed_run_by_default() -> None:
    """Without further ado a task is run by the default registry and the installed plugins."""
    with registering_into(Registry()):
        ConnectorRegistry.register(Recorder())
        assert ConnectorTask("sum", "recorder", **NUMBERS)(a=1, b=2) == 3
        assert ConnectorTask("nap", "sleep", inputs={"seconds": float})(seconds=0.01) is None
        with pytest.raises(ConnectorNotFoundError, match="recorder v0, sleep v0"):
            ConnectorTask("x", "nobody")()


def test_a_connector_is_configured_once_before_its_first_call() -> None:
    """Local runs give a connector its options as the service does, and never twice."""
    configured = []

    class Configured(Recorder):
        task_type = "configured"

        def configure(self, options: Any) -> None:
            configured.append(dict(options))

    with registering_into(Registry()):
        ConnectorRegistry.register(Configured())
        task = ConnectorTask("sum", "configured", **NUMBERS)
        assert task(a=1, b=2) == task(a=1, b=2) == 3
    assert configured == [{}]


def test_a_job_that_cannot_be_deleted_leaves_its_meta(capsys: pytest.CaptureFixture[str]) -> None:
    """Where the deletion fails, what is printed is enough to delete the job by hand."""

    class Sticky(Clumsy):
        task_type = "sticky"

        async def delete(self, resource_meta: Any) -> None:
            raise blip()

    connector = Sticky()
    connector.failures = [ValueError("x")]
    with pytest.raises(ConnectorFault):
        task_class(connectors=[connector])("t", "sticky")()
    said = capsys.readouterr().err
    assert "not deleted, the job may still run: The backend restarts." in said
    meta = base64.b64decode(said.split("call delete`: ")[1])
    assert b'"prefix": "file:///' in meta


def test_a_connector_cannot_wait_for_a_local_job_on_its_own_loop() -> None:
    """A task called within a connector's coroutine is refused, where it would wait for ever."""

    class Nested(Recorder):
        task_type = "nested"

        async def create(self, task_template: Any) -> Any:  # type: ignore[override]
            return task_class(connectors=[Recorder()])("sum", "recorder", **NUMBERS)(a=1, b=2)

    with pytest.raises(ConnectorFault, match="cannot wait for a local job: use a thread"):
        task_class(connectors=[Nested()])("t", "nested")()


def test_a_mixin_without_a_task_is_refused() -> None:
    """Who forgets the task's class is told which to take."""

    class Nothing(AsyncConnectorExecutorMixin):
        pass

    with pytest.raises(AuthorError, match="Nothing is no task: let it inherit"):
        Nothing().execute()
