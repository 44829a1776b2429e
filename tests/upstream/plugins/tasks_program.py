"""Print, as JSON, the task templates that users of flytekit's plugins register, in base64.

Runs in the plugins' environment: every task is made by the plugin's own task class and serialised
by flytekit, so that no request of these tests is an invention. Values that a test must choose
(a name, an address) go through inputs or are set on the template afterwards.
"""

import base64
import contextlib
import json
import sys
from datetime import timedelta

from flytekit import StructuredDataset, kwtypes, task
from flytekit.configuration import Image, ImageConfig, SerializationSettings
from flytekit.extras.webhook import WebhookTask
from flytekit.sensor.file_sensor import FileSensor
from flytekit.tools.translator import get_serializable
from flytekitplugins.awssagemaker_batch_transform import SageMakerTransformJobTask
from flytekitplugins.awssagemaker_hyperparameter_tuning import SageMakerHyperParameterTuningJobTask
from flytekitplugins.awssagemaker_inference import BotoConfig, BotoTask, SageMakerEndpointTask
from flytekitplugins.awssagemaker_processing import SageMakerProcessingJobTask
from flytekitplugins.awssagemaker_training import SageMakerTraining, SageMakerTrainingJobTask
from flytekitplugins.bigquery import BigQueryConfig, BigQueryTask
from flytekitplugins.openai import BatchEndpointTask, ChatGPTTask
from flytekitplugins.sleep import Sleep
from flytekitplugins.snowflake import SnowflakeConfig, SnowflakeTask
from flytekitplugins.spark import DatabricksV2

REGION = "us-east-1"
ROLE = "arn:aws:iam::123456789012:role/flyte"
WAREHOUSE = SnowflakeConfig(
    user="flyte", account="acme-eu", database="shop", schema="public", warehouse="small"
)
RESOURCES = {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1}


def bigquery(name: str, query: str, **more: object) -> BigQueryTask:
    return BigQueryTask(
        name=name,
        query_template=query,
        task_config=BigQueryConfig(ProjectID="acme", Location="US"),
        output_structured_dataset_type=StructuredDataset,
        **more,
    )


def boto(method: str, config: dict[str, object], **inputs: type) -> BotoTask:
    wanted = BotoConfig(service="sagemaker", method=method, config=config, region=REGION)
    return BotoTask(name=method, task_config=wanted, inputs=inputs)


@task(
    task_config=DatabricksV2(
        spark_conf={"spark.driver.memory": "1g"},
        databricks_conf={
            "run_name": "flyte",
            "new_cluster": {"spark_version": "13.3.x-scala2.12", "num_workers": 1},
        },
    ),
    container_image="example.org/spark:1",
)
def databricks(a: int) -> int:
    return a


@task(
    task_config=SageMakerTraining(execution_role_arn=ROLE, region=REGION),
    container_image="example.org/training:1",
)
def training_function(a: int) -> int:
    return a


@task(task_config=Sleep())
def sleep(duration: timedelta) -> None:
    """Wait."""


TASKS = {
    "bigquery": bigquery("bigquery", "SELECT 1 + 1 AS two"),
    "bigquery_inputs": bigquery(
        "bigquery_inputs",
        "SELECT @word AS word, @number AS number",
        inputs=kwtypes(word=str, number=int),
    ),
    "bigquery_failing": bigquery("bigquery_failing", "SELECT * FROM acme.nowhere.nothing"),
    "snowflake": SnowflakeTask(
        name="snowflake",
        query_template="SELECT 1 + 1 AS two",
        task_config=WAREHOUSE,
        output_schema_type=StructuredDataset,
    ),
    "snowflake_inputs": SnowflakeTask(
        name="snowflake_inputs",
        query_template="SELECT %(word)s AS word, %(number)s AS number",
        task_config=WAREHOUSE,
        inputs=kwtypes(word=str, number=int),
        output_schema_type=StructuredDataset,
    ),
    "snowflake_failing": SnowflakeTask(
        name="snowflake_failing",
        query_template="SELECT * FROM nothing_of_the_kind",
        task_config=WAREHOUSE,
    ),
    "databricks": databricks,
    "chatgpt": ChatGPTTask(
        name="chatgpt", openai_organization="acme", chatgpt_config={"model": "gpt-4o-mini"}
    ),
    "openai_batch": BatchEndpointTask(name="batch", openai_organization="acme", config={}),
    "boto_list": boto("list_training_jobs", {"MaxResults": 5}),
    "boto_model": boto(
        "create_model",
        {
            "ModelName": "{inputs.name}",
            "PrimaryContainer": {"Image": "example.org/model:1"},
            "ExecutionRoleArn": ROLE,
        },
        name=str,
    ),
    "boto_config": boto(
        "create_endpoint_config",
        {
            "EndpointConfigName": "{inputs.name}",
            "ProductionVariants": [
                {
                    "VariantName": "all",
                    "ModelName": "{inputs.name}",
                    "InitialInstanceCount": 1,
                    "InstanceType": "ml.m5.large",
                }
            ],
        },
        name=str,
    ),
    "boto_failing": boto("describe_endpoint", {"EndpointName": "nothing-of-the-kind"}),
    "endpoint": SageMakerEndpointTask(
        name="endpoint",
        config={"EndpointName": "{inputs.name}", "EndpointConfigName": "{inputs.name}"},
        region=REGION,
        inputs=kwtypes(name=str),
    ),
    "training": SageMakerTrainingJobTask(
        name="training",
        config={
            "TrainingJobName": "{inputs.name}",
            "AlgorithmSpecification": {
                "TrainingImage": "{images.model}",
                "TrainingInputMode": "File",
            },
            "RoleArn": ROLE,
            "OutputDataConfig": {"S3OutputPath": "s3://acme/out"},
            "ResourceConfig": RESOURCES,
            "StoppingCondition": {"MaxRuntimeInSeconds": 60},
        },
        region=REGION,
        images={"model": "example.org/model:1"},
        inputs=kwtypes(name=str),
    ),
    "training_function": training_function,
    "tuning": SageMakerHyperParameterTuningJobTask(
        name="tuning",
        config={
            "HyperParameterTuningJobName": "{inputs.name}",
            "HyperParameterTuningJobConfig": {
                "Strategy": "Random",
                "ResourceLimits": {"MaxNumberOfTrainingJobs": 1, "MaxParallelTrainingJobs": 1},
            },
        },
        region=REGION,
        inputs=kwtypes(name=str),
    ),
    "transform": SageMakerTransformJobTask(
        name="transform",
        config={
            "TransformJobName": "{inputs.name}",
            "ModelName": "{inputs.name}",
            "TransformInput": {
                "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://acme/in"}}
            },
            "TransformOutput": {"S3OutputPath": "s3://acme/out"},
            "TransformResources": {"InstanceType": "ml.m5.large", "InstanceCount": 1},
        },
        region=REGION,
        inputs=kwtypes(name=str),
    ),
    "processing": SageMakerProcessingJobTask(
        name="processing",
        config={
            "ProcessingJobName": "{inputs.name}",
            "ProcessingResources": {"ClusterConfig": RESOURCES},
            "AppSpecification": {"ImageUri": "{images.model}"},
            "RoleArn": ROLE,
        },
        region=REGION,
        images={"model": "example.org/model:1"},
        inputs=kwtypes(name=str),
    ),
    "webhook": WebhookTask(
        name="webhook",
        url="{inputs.url}",
        data={"text": "{inputs.text}"},
        headers={"x-from": "flyte"},
        dynamic_inputs={"url": str, "text": str},
        show_data=True,
        show_url=True,
    ),
    "sensor": FileSensor(name="sensor"),
    "sleep": sleep,
}


def main() -> None:
    settings = SerializationSettings(
        image_config=ImageConfig(Image("default", "example.org/flytekit", "1")),
        project="p",
        domain="development",
        version="1",
    )
    templates = {}
    with contextlib.redirect_stdout(sys.stderr):
        for name, one in TASKS.items():
            spec = get_serializable({}, settings, one).to_flyte_idl()
            templates[name] = base64.b64encode(spec.template.SerializeToString()).decode()
    json.dump(templates, sys.stdout)


main()
