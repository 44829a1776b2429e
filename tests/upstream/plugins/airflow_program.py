"""Print, as JSON, the task templates that flytekit makes of Airflow operators, in base64.

Runs in the plugin's environment, in a workflow as its users write one: the plugin turns each
operator there into a task. Argument: a folder of the test's.
"""

import base64
import contextlib
import json
import sys

FOLDER = sys.argv[1]

with contextlib.redirect_stdout(sys.stderr):
    import flytekitplugins.airflow  # noqa: F401 - it changes Airflow's operators
    from airflow.operators.bash import BashOperator
    from airflow.providers.http.operators.http import HttpOperator
    from airflow.sensors.bash import BashSensor
    from airflow.sensors.filesystem import FileSensor
    from flytekit import workflow
    from flytekit.configuration import Image, ImageConfig, SerializationSettings
    from flytekit.tools.translator import get_serializable


@workflow
def operators() -> None:
    FileSensor(task_id="file", filepath=f"{FOLDER}/awaited")
    BashSensor(task_id="bash_sensor", bash_command=f"test -e {FOLDER}/awaited")
    BashOperator(task_id="bash", bash_command=f"echo once >> {FOLDER}/ran")
    BashOperator(task_id="bash_failing", bash_command="exit 3")
    HttpOperator(task_id="http", endpoint="job", method="GET")


def main() -> None:
    settings = SerializationSettings(
        image_config=ImageConfig(Image("default", "example.org/flytekit", "1")),
        project="p",
        domain="development",
        version="1",
    )
    templates = {}
    with contextlib.redirect_stdout(sys.stderr):
        for node in operators.nodes:
            task = node.flyte_entity
            spec = get_serializable({}, settings, task).to_flyte_idl()
            templates[task.name] = base64.b64encode(spec.template.SerializeToString()).decode()
    print(json.dumps(templates))  # noqa: T201 - the answer


main()
