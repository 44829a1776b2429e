"""Print, as JSON, the task templates that users of flytekit's Slurm plugin register, in base64.

Runs in the plugin's environment. Arguments: a folder that the cluster can write, a private key's
file, the user's name, and the names of login hosts for which the tasks are made.
"""

import base64
import contextlib
import json
import sys

from flytekit import task
from flytekit.configuration import Image, ImageConfig, SerializationSettings
from flytekit.core.base_task import PythonTask
from flytekit.tools.translator import get_serializable
from flytekitplugins.slurm import (
    SlurmConfig,
    SlurmFunctionConfig,
    SlurmScriptConfig,
    SlurmShellTask,
    SlurmTask,
)

FOLDER, KEY, USER, *HOSTS = sys.argv[1:]
SBATCH = {"output": f"{FOLDER}/%j.out", "chdir": FOLDER}
SCRIPTS = {
    "echo": "echo hello from slurm\nsleep 1\n",
    "fail": "echo about to fail\nexit 5\n",
    "wait": "sleep 300\n",
}


def ssh(host: str) -> dict[str, object]:
    # The published plugin says that the user's name may be left out; asyncssh then refuses None.
    return {"host": host, "username": USER, "client_keys": [KEY]}


@task(
    task_config=SlurmFunctionConfig(
        ssh_config=ssh(HOSTS[0]),
        sbatch_config=SBATCH,
        script="#!/bin/bash\necho {task.fn}\nsleep 300\n",
    ),
    container_image="example.org/slurm:1",
)
def function(a: int) -> int:
    return a


def tasks(host: str) -> dict[str, PythonTask]:
    config = {"ssh_config": ssh(host), "sbatch_config": SBATCH}
    made: dict[str, PythonTask] = {
        f"{host}/{name}": SlurmShellTask(
            name=name, script=f"#!/bin/bash\n{script}", task_config=SlurmConfig(**config)
        )
        for name, script in SCRIPTS.items()
    }
    made[f"{host}/remote"] = SlurmTask(
        name="remote",
        task_config=SlurmScriptConfig(
            batch_script_path=f"{FOLDER}/there.sh", batch_script_args=["one", "two"], **config
        ),
    )

    return made


def main() -> None:
    settings = SerializationSettings(
        image_config=ImageConfig(Image("default", "example.org/flytekit", "1")),
        project="p",
        domain="development",
        version="1",
    )
    templates = {}
    with contextlib.redirect_stdout(sys.stderr):
        made = {"function": function}
        for host in HOSTS:
            made |= tasks(host)
        for name, one in made.items():
            spec = get_serializable({}, settings, one).to_flyte_idl()
            templates[name] = base64.b64encode(spec.template.SerializeToString()).decode()
    print(json.dumps(templates))  # noqa: T201 - the answer


main()
