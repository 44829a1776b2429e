"""Jobs that run long enough to be moved: what each needs to be served, created and ended."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flyteidl.core import tasks_pb2
from flyteidl2.core import security_pb2
from upstream.backends.airflow import Outside
from upstream.backends.bigquery import BigQuery
from upstream.backends.program import interpreter
from upstream.backends.slurm import Slurm
from upstream.migration.plugins import PICKLED, install
from upstream.servers import PROTOCOLS

UPSTREAM = Path(__file__).parent.parent
FILES = "files"
Make = Callable[..., dict[str, bytes]]


@dataclass
class Job:
    """One job: the plugin's environment and settings, what Flyte sends, and how it ends."""

    sdk: str
    python: Path
    task_type: str
    template: bytes
    env: dict[str, str] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    end: Callable[[], object] = lambda: None
    cancelled: Callable[[bytes], bool] | None = None
    pickled: bool = False

    @property
    def protocol(self) -> str:
        return PROTOCOLS[self.sdk]


def files_template(path: Path) -> bytes:
    """A task whose name is the file that its job is; the same bytes are either protocol's."""
    template = tasks_pb2.TaskTemplate(type=FILES)
    template.id.name = str(path)
    return template.SerializeToString()


def files(sdk: str, folder: Path) -> Job:
    """A plugin of the test's own whose meta is a pickle."""
    site = install(folder / "site", PICKLED, FILES, sdk)
    path = folder / "job"
    return Job(
        sdk,
        interpreter({"flytekit": "flytekit-slurm", "flyte": "flyte-plugins"}[sdk]),
        FILES,
        files_template(path),
        env={"PYTHONPATH": str(site.folder)},
        end=lambda: path.write_text("done"),
        cancelled=lambda _: path.read_text() == "deleted",
        pickled=True,
    )


def airflow(make: Make, outside: Outside) -> Job:
    """The Airflow plugin of flytekit: a sensor that waits for a file; its meta is a pickle."""
    python = interpreter("flytekit-airflow")
    program = UPSTREAM / "plugins/airflow_program.py"
    awaited = outside.folder / "awaited"
    awaited.unlink(missing_ok=True)
    return Job(
        "flytekit",
        python,
        "airflow",
        make(python, program, str(outside.folder))["file"],
        env=outside.settings,
        end=awaited.touch,
        pickled=True,
    )


def warehouse(sdk: str, make: Make, bigquery: BigQuery) -> Job:
    """The BigQuery plugin of either SDK."""
    python = interpreter({"flytekit": "flytekit-plugins", "flyte": "flyte-plugins"}[sdk])
    settings = dict(bigquery.settings)
    more: dict[str, Any] = {}
    if sdk == "flytekit":
        tasks = make(python, UPSTREAM / "plugins/tasks_program.py")
    else:
        program = UPSTREAM / "plugins_flyte/tasks_program.py"
        tasks = make(python, program, "1", "nowhere.example", "/nowhere")
        account = Path(settings.pop("GOOGLE_APPLICATION_CREDENTIALS")).read_text()
        secrets = {"google_application_credentials": account}
        more = {"connection": security_pb2.Connection(secrets=secrets)}
    kind = "bigquery_query_job_task"
    return Job(sdk, python, kind, tasks["bigquery"], env=settings, more=more)


def slurm(sdk: str, make: Make, cluster: Slurm) -> Job:
    """The Slurm plugin of either SDK: a batch job that only a cancellation ends in time."""

    def cancelled(meta: bytes) -> bool:
        return cluster.state(json.loads(meta)["job_id"]) in {"CANCELLED", "COMPLETING"}

    if sdk == "flytekit":
        python = interpreter("flytekit-slurm")
        program = UPSTREAM / "plugins/slurm_program.py"
        arguments = (str(cluster.work), str(cluster.key_file), cluster.user, "login", "refused")
        template = make(python, program, *arguments)["login/wait"]
        env = {"HOME": str(cluster.home)}
        return Job(sdk, python, "slurm", template, env=env, cancelled=cancelled)
    python = interpreter("flyte-plugins")
    program = UPSTREAM / "plugins_flyte/tasks_program.py"
    template = make(python, program, "1", "nowhere.example", str(cluster.work))["slurm_wait"]
    env = {
        "FLYTE_SLURM_HOST": "127.0.0.1",
        "FLYTE_SLURM_PORT": str(cluster.port),
        "FLYTE_SLURM_USERNAME": cluster.user,
        "FLYTE_SLURM_SKIP_HOST_KEY_VERIFICATION": "true",
    }
    secrets = {"ssh_private_key": cluster.private_key}
    more = {"connection": security_pb2.Connection(secrets=secrets)}
    return Job(sdk, python, "slurm_script", template, env=env, more=more, cancelled=cancelled)
