"""Run a real query through a real service, step by step: what ``make demo`` shows.

It makes TPC-H's lineitem table (600,572 rows), starts ``connector-service serve`` on free ports,
and drives one ``duckdb`` job over gRPC with Flyte's own stubs, as Flyte 1's propeller does.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import duckdb
import grpc
from flyteidl.admin import agent_pb2
from flyteidl.core.execution_pb2 import TaskExecution
from flyteidl.core.interface_pb2 import TypedInterface, Variable, VariableMap
from flyteidl.core.tasks_pb2 import Sql, TaskTemplate
from flyteidl.core.types_pb2 import LiteralType, SimpleType, StructuredDatasetType
from flyteidl.service import agent_pb2_grpc
from texttable import Texttable

from connector_service import StructuredDataset, to_literal_map

if TYPE_CHECKING:
    from collections.abc import Iterator

BIN = Path(sys.executable).parent
CATEGORY = agent_pb2.TaskCategory(name="duckdb")
TERMINAL = {
    TaskExecution.SUCCEEDED,
    TaskExecution.FAILED,
    TaskExecution.ABORTED,
    TaskExecution.RETRYABLE_FAILED,
}
# TPC-H's first query: what was shipped until a day, by return flag and line status.
QUERY = """
select l_returnflag as flag, l_linestatus as status, sum(l_quantity)::double as quantity,
       round(sum(l_extendedprice * (1 - l_discount)), 2)::double as revenue,
       round(avg(l_discount), 4)::double as discount, count(*) as lines
from lineitem where l_shipdate <= $until::date
group by all order by all
"""


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Print what is done and how long it took."""
    started = time.monotonic()
    yield
    tick = click.style("✓", fg="green")
    click.echo(f"{tick} {what:<58} {time.monotonic() - started:6.2f} s")


def make_lineitem(folder: Path) -> Path:
    """Generate the table as a Parquet file."""
    subprocess.run(
        [BIN / "tpchgen-cli", "parquet", "-q", "-s", "0.1", "-T", "lineitem", "-o", folder],
        check=True,
    )
    return folder / "lineitem.parquet"


def start_service() -> tuple[subprocess.Popen[str], str]:
    """Start the daemon on free ports and read where it is from the line it prints."""
    command = [str(BIN / "connector-service"), "serve", "--port=0", "--prometheus-port=0"]
    options = ["--drain-delay=0", "--log-level=error"]
    service = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    assert service.stdout is not None
    line = service.stdout.readline()
    found = re.search(r"serving on (\S+),", line)
    if found is None:
        raise SystemExit(f"The service did not start (exit code {service.wait()}).")
    return service, found[1]


def template() -> TaskTemplate:
    """Build what flytekit would register for this task."""

    def variable(**kind: Any) -> Variable:
        return Variable(type=LiteralType(**kind))

    table = variable(structured_dataset_type=StructuredDatasetType(format="parquet"))
    return TaskTemplate(
        type="duckdb",
        sql=Sql(statement=QUERY, dialect=Sql.ANSI),
        interface=TypedInterface(
            inputs=VariableMap(
                variables={"lineitem": table, "until": variable(simple=SimpleType.STRING)}
            ),
            outputs=VariableMap(variables={"summary": table}),
        ),
    )


def show(uri: str) -> None:
    """Print the Parquet file that the job wrote."""
    path = uri.removeprefix("file://")
    result = duckdb.connect().execute(f"from read_parquet('{path}')")
    names = [name for name, *_ in result.description or ()]
    table = Texttable(max_width=0)  # as wide as it is
    table.set_deco(Texttable.HEADER)
    table.set_header_align(["r"] * len(names))
    table.set_cols_align(["r"] * len(names))
    table.set_cols_dtype(["t"] * len(names))
    table.header(names)
    for row in result.fetchall():
        table.add_row([f"{cell:,}" if isinstance(cell, int | float) else cell for cell in row])
    click.echo(f"\nTPC-H query 1, scale factor 0.1\n\n{table.draw()}\n")


def main() -> None:
    """Do every step, and leave nothing behind."""
    with tempfile.TemporaryDirectory(prefix="connector-service-demo-") as name:
        folder = Path(name)
        with step("generate TPC-H lineitem as Parquet"):
            lineitem = make_lineitem(folder)
        with step("start connector-service"):
            service, endpoint = start_service()
        try:
            with grpc.insecure_channel(endpoint) as channel:
                drive(channel, lineitem, (folder / "outputs").as_uri())
        finally:
            with step("SIGTERM: drain, finish, exit"):
                service.send_signal(signal.SIGTERM)
                code = service.wait()
        click.echo(f"The service left with exit code {code}.")
        sys.exit(code)


def drive(channel: grpc.Channel, lineitem: Path, prefix: str) -> None:
    """Create, poll and delete one job, as propeller does."""
    jobs: Any = agent_pb2_grpc.AsyncAgentServiceStub(channel)
    metadata: Any = agent_pb2_grpc.AgentMetadataServiceStub(channel)
    task = template()
    with step("ListAgents"):
        agents = metadata.ListAgents(agent_pb2.ListAgentsRequest()).agents
    offered = ", ".join(t for a in agents for t in a.supported_task_types)
    click.echo(f"  offered: {offered}")
    inputs = {
        "lineitem": StructuredDataset(uri=lineitem.as_uri(), format="parquet"),
        "until": "1998-09-02",
    }
    with step("CreateTask: the query, a table and a date as inputs"):
        meta = jobs.CreateTask(
            agent_pb2.CreateTaskRequest(
                template=task,
                inputs=to_literal_map(inputs, task.interface.inputs.variables),
                output_prefix=prefix,
            )
        ).resource_meta
    click.echo(f"  resource meta: {meta.decode()}")
    poll = agent_pb2.GetTaskRequest(
        task_category=CATEGORY, resource_meta=meta, output_prefix=prefix
    )
    with step("GetTask until the job ends"):
        resource = jobs.GetTask(poll).resource
        while resource.phase not in TERMINAL:
            time.sleep(0.1)
            resource = jobs.GetTask(poll).resource
    click.echo(f"  {TaskExecution.Phase.Name(resource.phase)}: {resource.message}")
    if resource.phase != TaskExecution.SUCCEEDED:
        raise SystemExit("The job failed.")
    show(resource.outputs.literals["summary"].scalar.structured_dataset.uri)
    with step("DeleteTask: nothing left to stop, the results stay"):
        jobs.DeleteTask(agent_pb2.DeleteTaskRequest(task_category=CATEGORY, resource_meta=meta))


if __name__ == "__main__":
    main()
