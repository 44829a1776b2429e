"""flytekitplugins-awssagemaker against moto's server: plain calls, jobs and endpoints.

moto ends every job at once; where a test needs one that still runs or that failed, it writes the
state into moto's own store.
"""

from __future__ import annotations

import pickletools
import uuid
from pathlib import Path
from typing import Any

import pytest
from upstream.plugins.conftest import Backends
from upstream.plugins.jobs import (
    FAILED,
    RUNNING,
    SUCCEEDED,
    Client,
    absorbed,
    ended,
    inputs,
    outputs,
    refused,
)


@pytest.fixture
def name() -> str:
    """A name of this test's own, for the account is shared."""
    return f"job-{uuid.uuid4().hex[:12]}"


def strings(meta: bytes) -> set[str]:
    """Return every text in a meta of cloudpickle's, unread: its classes are not here."""
    return {arg for _, arg, _ in pickletools.genops(meta) if isinstance(arg, str)}


def rendered(template: Any, folder: Path) -> Any:
    """Return the function's template with its command's placeholders filled, as propeller does."""
    made = template("training_function")
    for place, word in enumerate(made.container.args):
        made.container.args[place] = word.replace("{{.", f"{folder}/").replace("}}", "")
    return made


async def make_endpoint(flyte: Client, template: Any, name: str) -> bytes:
    """Make a model, its configuration and an endpoint, as a SageMaker workflow does."""
    for step in ("boto_model", "boto_config"):
        resource = await flyte.do(template(step), inputs(name=name))
        assert resource.phase == SUCCEEDED
    return await flyte.create(template("endpoint"), inputs(name=name))


async def test_a_plain_call_is_made(flyte: Client, template: Any) -> None:
    """A boto task, a sync one, succeeds with what AWS answered."""
    resource = await flyte.do(template("boto_list"))
    assert resource.phase == SUCCEEDED
    kind, packed = outputs(resource)["result"]
    assert kind == "msgpack"
    assert b"TrainingJobSummaries" in packed


async def test_a_plain_call_that_is_refused(flyte: Client, template: Any) -> None:
    """A call that AWS refuses is an error for the caller."""
    await refused(flyte, flyte.do(template("boto_failing")))


async def test_a_training_job_goes_its_way(
    flyte: Client, template: Any, backends: Backends, name: str
) -> None:
    """A training job is RUNNING, then succeeds and names its model; its meta is cloudpickle's."""
    meta = await flyte.create(template("training"), inputs(name=name))
    assert "SageMakerTrainingJobMetadata" in strings(meta)
    backends.aws.control(
        "training_jobs", name, training_job_status="InProgress", secondary_status="Training"
    )
    resource = await flyte.get(meta, "sagemaker-training-job")
    assert (resource.phase, resource.message) == (RUNNING, "Training")
    backends.aws.control("training_jobs", name, training_job_status="Completed")
    resource = await flyte.get(meta, "sagemaker-training-job")
    assert resource.phase == SUCCEEDED
    assert f"s3://acme/out/{name}/output/model.tar.gz".encode() in outputs(resource)["result"][1]


async def test_a_training_job_that_fails(
    flyte: Client, template: Any, backends: Backends, name: str
) -> None:
    """A training job that SageMaker ends as failed is FAILED with its reason."""
    meta = await flyte.create(template("training"), inputs(name=name))
    backends.aws.control(
        "training_jobs", name, training_job_status="Failed", failure_reason="no data"
    )
    resource = await flyte.get(meta, "sagemaker-training-job")
    assert (resource.phase, resource.message) == (FAILED, "no data")


async def test_a_transform_job_goes_its_way(flyte: Client, template: Any, name: str) -> None:
    """A transform job succeeds and names where its output is."""
    meta = await flyte.create(template("transform"), inputs(name=name))
    _, resource = await ended(flyte, meta, "sagemaker-transform-job")
    assert resource.phase == SUCCEEDED
    assert b"s3://acme/out" in outputs(resource)["result"][1]


async def test_a_tuning_job_goes_its_way(flyte: Client, template: Any, name: str) -> None:
    """A tuning job succeeds with the model of the best of its training jobs."""
    # moto names this one as the best, and has it only if somebody made it.
    best = "FakeTrainingJobName"
    await flyte.create(template("training"), inputs(name=best))
    meta = await flyte.create(template("tuning"), inputs(name=name))
    _, resource = await ended(flyte, meta, "sagemaker-hyperparameter-tuning-job")
    assert resource.phase == SUCCEEDED
    packed = outputs(resource)["result"][1]
    assert name.encode() in packed
    assert f"s3://acme/out/{best}/output/model.tar.gz".encode() in packed


async def test_a_function_that_trains(
    flyte: Client, template: Any, backends: Backends, tmp_path: Path
) -> None:
    """A function in a training job succeeds once its outputs lie under the output prefix."""
    task_type = "sagemaker-training-task"
    meta = await flyte.create(rendered(template, tmp_path), prefix=str(tmp_path))
    (job,) = {arg for arg in strings(meta) if arg.startswith("flyte-")}
    backends.aws.control("training_jobs", job, training_job_status="InProgress")
    assert (await flyte.get(meta, task_type)).phase == RUNNING
    (tmp_path / "outputs.pb").touch()
    backends.aws.control("training_jobs", job, training_job_status="Completed")
    resource = await flyte.get(meta, task_type)
    assert resource.phase == SUCCEEDED
    assert outputs(resource) == {}


async def test_a_function_that_wrote_nothing(flyte: Client, template: Any, tmp_path: Path) -> None:
    """A function whose job ended without outputs is a failed task that says so."""
    meta = await flyte.create(rendered(template, tmp_path), prefix=str(tmp_path))
    _, resource = await ended(flyte, meta, "sagemaker-training-task")
    assert resource.phase == FAILED
    assert "outputs.pb" in resource.message


async def test_a_running_processing_job_is_stopped(
    flyte: Client, template: Any, backends: Backends, name: str
) -> None:
    """Delete stops a running processing job; its next poll says that it did not succeed."""
    meta = await flyte.create(template("processing"), inputs(name=name))
    backends.aws.control("processing_jobs", name, processing_job_status="InProgress")
    assert (await flyte.get(meta, "sagemaker-processing-job")).phase == RUNNING
    await flyte.delete(meta, "sagemaker-processing-job")
    assert (await flyte.get(meta, "sagemaker-processing-job")).phase == FAILED


async def test_an_endpoint_comes_up_and_goes(
    flyte: Client, template: Any, backends: Backends, name: str
) -> None:
    """An endpoint is RUNNING while it is made, then succeeds; delete removes it."""
    meta = await make_endpoint(flyte, template, name)
    backends.aws.control("endpoints", name, endpoint_status="Creating")
    assert (await flyte.get(meta, "sagemaker-endpoint")).phase == RUNNING
    backends.aws.control("endpoints", name, endpoint_status="InService")
    _, resource = await ended(flyte, meta, "sagemaker-endpoint")
    assert resource.phase == SUCCEEDED
    assert name.encode() in outputs(resource)["result"][1]
    await flyte.delete(meta, "sagemaker-endpoint")
    assert not backends.aws.control("endpoints", name)


async def test_an_endpoint_in_a_state_that_nobody_knows(
    flyte: Client, template: Any, backends: Backends, name: str
) -> None:
    """A state that the plugin has no phase for is RUNNING here, an error at upstream's server."""
    meta = await make_endpoint(flyte, template, name)
    backends.aws.control("endpoints", name, endpoint_status="Updating")
    await absorbed(flyte, meta, "sagemaker-endpoint")
