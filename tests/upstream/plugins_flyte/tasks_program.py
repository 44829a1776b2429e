"""Print, as JSON, the task templates that users of Flyte 2's plugins register, in base64.

Runs in the plugins' environment: every task is made by the plugin's own task class and serialised
by flyte. Arguments: the port of the Snowflake server, the address of the Databricks workspace, and
a folder that the Slurm cluster can write.
"""

import base64
import contextlib
import json
import sys

import flyte
from flyte._internal.runtime.task_serde import get_proto_task
from flyte.io import DataFrame, File
from flyte.models import SerializationContext
from flyteplugins.bigquery import BigQueryConfig, BigQueryTask
from flyteplugins.databricks import Databricks
from flyteplugins.slurm import Slurm, SlurmScriptTask
from flyteplugins.snowflake import Snowflake, SnowflakeConfig

SNOWFLAKE, DATABRICKS, FOLDER = sys.argv[1:]
CLUSTER = Slurm(working_dir=FOLDER)
# The port is text: a number of a protobuf Struct comes back as a float, 80.0.
WAREHOUSE = SnowflakeConfig(
    account="acme-eu",
    database="shop",
    schema="public",
    warehouse="small",
    user="flyte",
    connection_kwargs={
        "host": "127.0.0.1",
        "port": SNOWFLAKE,
        "protocol": "http",
        "password": "made-up",
    },
)


def bigquery(name: str, query: str, **more: object) -> BigQueryTask:
    return BigQueryTask(
        name=name,
        query_template=query,
        plugin_config=BigQueryConfig(ProjectID="acme", Location="US"),
        output_dataframe_type=DataFrame,
        google_application_credentials="google_account",
        **more,
    )


def script(name: str, text: str, **more: object) -> SlurmScriptTask:
    return SlurmScriptTask(name=name, script=f"#!/bin/bash\n{text}", plugin_config=CLUSTER, **more)


env = flyte.TaskEnvironment(
    name="spark",
    image="example.org/spark:1",
    plugin_config=Databricks(
        spark_conf={"spark.driver.memory": "1g"},
        databricks_conf={
            "run_name": "flyte",
            "new_cluster": {"spark_version": "13.3.x-scala2.12", "num_workers": 1},
        },
        databricks_instance=DATABRICKS,
        databricks_token="databricks_token",
        executor_path="/usr/bin/python3",
        applications_path="local:///main.py",
    ),
)
node = flyte.TaskEnvironment(name="node", image="example.org/node:1", plugin_config=CLUSTER)


@env.task
async def databricks(a: int) -> int:
    return a


@node.task
async def native(a: int) -> int:
    return a


TASKS = {
    "bigquery": bigquery("bigquery", "SELECT 1 + 1 AS two"),
    "bigquery_inputs": bigquery(
        "bigquery_inputs",
        "SELECT @word AS word, @number AS number",
        inputs={"word": str, "number": int},
    ),
    "bigquery_failing": bigquery("bigquery_failing", "SELECT * FROM acme.nowhere.nothing"),
    "snowflake": Snowflake(
        name="snowflake",
        query_template="SELECT 1 + 1 AS two",
        plugin_config=WAREHOUSE,
        output_dataframe_type=DataFrame,
    ),
    "snowflake_inputs": Snowflake(
        name="snowflake_inputs",
        query_template="SELECT %(word)s AS word, %(number)s AS number",
        plugin_config=WAREHOUSE,
        inputs={"word": str, "number": int},
        output_dataframe_type=DataFrame,
    ),
    "snowflake_failing": Snowflake(
        name="snowflake_failing",
        query_template="SELECT * FROM nothing_of_the_kind",
        plugin_config=WAREHOUSE,
    ),
    "databricks": databricks,
    "slurm_echo": script("slurm_echo", "echo hello from slurm\nsleep 1\n"),
    "slurm_fail": script("slurm_fail", "echo about to fail >&2\nexit 5\n"),
    "slurm_wait": script("slurm_wait", "sleep 300\n"),
    "slurm_files": script(
        "slurm_files",
        'echo "$FLYTE_INPUT_WORD" > "$FLYTE_OUTPUT_MADE"\n',
        inputs={"word": str},
        outputs={"made": File},
    ),
    "slurm_native": native,
}


def main() -> None:
    for name, task in TASKS.items():
        if isinstance(task, SlurmScriptTask):
            flyte.TaskEnvironment.from_task(f"of_{name}", task)
    context = SerializationContext(
        version="1", project="p", domain="development", org="o", root_dir="/"
    )
    templates = {}
    with contextlib.redirect_stdout(sys.stderr):
        for name, task in TASKS.items():
            template = get_proto_task(task, context)
            templates[name] = base64.b64encode(template.SerializeToString()).decode()
    print(json.dumps(templates))  # noqa: T201 - the answer


main()
