"""``connector-service call``: every RPC, JSON in and out, and every mistake in one sentence."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from daemon import COMMAND, PATIENCE
from flyteidl.admin.agent_pb2 import TaskExecutionMetadata

from connector_service.cli import main as entry
from connector_service.errors import ConnectorServiceError

# The fixtures' types live in conftest.py, which cannot be imported.
Service = Any
Cli = Any


def created(cli: Cli, service: Service, mode: str) -> str:
    about = ("--endpoint", service.endpoint, "--task-type", "job")
    run = cli("call", "create", *about, "--inputs", json.dumps({"mode": mode}))
    assert run.code == 0, run.err
    return str(run.out)


def test_a_job_is_driven_by_hand_from_create_to_delete(service: Service, cli: Cli) -> None:
    """What `create` printed is what the other calls take, and each prints its message."""
    meta = created(cli, service, "done")
    assert set(json.loads(meta)) == {"resource_meta"}
    assert base64.b64decode(json.loads(meta)["resource_meta"]) == (
        b'{"mode": "done", "padding": ""}'
    )
    about = ("--endpoint", service.endpoint, "--task-type", "job:0", "--meta", meta)
    run = cli("call", "get", *about)
    assert (run.code, run.json["phase"], run.json["message"]) == (0, "SUCCEEDED", "done")
    assert run.json["outputs"]["literals"]["n"] == {"scalar": {"primitive": {"integer": "3"}}}
    run = cli("call", "logs", *about, "--lines", "5", "--token", "t")
    assert run.code == 0
    assert [json.loads(line) for line in run.out.splitlines()] == [
        {"body": {"results": ["first of 5 from t"]}},
        {"body": {"results": ["second of 5 from t"]}},
        {"header": {"token": "next"}},
    ]
    run = cli("call", "metrics", *about, "--query", "cpu", "--query", "io")
    assert run.json == {"results": [{"metric": "cpu"}, {"metric": "io"}]}
    run = cli("call", "delete", *about)
    assert (run.code, run.json) == (0, {})
    assert service.job.deleted == ["done"]


def test_a_sync_task_is_done_within_one_call(service: Service, cli: Cli) -> None:
    """`do` prints the resource with its outputs."""
    run = cli("call", "do", "--endpoint", service.endpoint, "--task-type", "ask")
    assert run.code == 0
    assert run.json == {
        "phase": "SUCCEEDED",
        "outputs": {"literals": {"answer": {"scalar": {"primitive": {"integer": "42"}}}}},
    }


def test_the_service_is_asked_about_itself(service: Service, here: Cli) -> None:
    """`list`, `agent` and `health` print what Flyte and the probes see."""
    at = ("--endpoint", service.endpoint)
    agents = here("call", "list", *at).json["agents"]
    assert [agent["name"] for agent in agents] == ["Ask", "Job Connector"]
    assert here("call", "agent", *at, "Ask").json == agents[0]
    assert here("call", "health", *at).json == {"status": "SERVING"}
    run = here("call", "health", *at, "flyteidl.service.AsyncAgentService")
    assert (run.code, run.json) == (0, {"status": "SERVING"})
    run = here("call", "health", *at, "no.such.Service")
    assert (run.code, run.json) == (1, {"status": "SERVICE_UNKNOWN"})


@pytest.mark.parametrize("form", ["base64", "json", "file of base64", "file of json"])
def test_a_meta_is_taken_in_any_form(
    form: str, service: Service, here: Cli, tmp_path: Path
) -> None:
    """Base64 or what `create` printed, typed or in a file, also when longer than a file's name."""
    printed = created(here, service, "long")
    text = printed if "json" in form else json.loads(printed)["resource_meta"]
    assert len(text) > 400
    if "file" in form:
        file = tmp_path / "meta"
        file.write_text(f"\n{text}\n")
        text = str(file)
    run = here("call", "get", "--endpoint", service.endpoint, "--task-type", "job", "--meta", text)
    assert (run.code, run.json["phase"]) == (0, "SUCCEEDED")


def test_a_meta_comes_through_a_pipe(service: Service, cli: Cli) -> None:
    """`call create ... | call get --meta -` works."""
    printed = created(cli, service, "done")
    about = ("--endpoint", service.endpoint, "--task-type", "job", "--meta", "-")
    assert cli("call", "get", *about, stdin=printed).json["phase"] == "SUCCEEDED"


VARIABLES = {"mode": {"type": {"simple": "STRING"}}, "share": {"type": {"simple": "FLOAT"}}}
TEMPLATE = json.dumps({"type": "job", "interface": {"inputs": {"variables": VARIABLES}}})


def test_a_template_types_the_inputs(service: Service, here: Cli, tmp_path: Path) -> None:
    """Plain JSON becomes literals of the declared types; prefix and metadata arrive too."""
    file = tmp_path / "template.json"
    file.write_text(TEMPLATE)
    about = ("--endpoint", service.endpoint, "--template", str(file))
    more = ("--output-prefix", "s3://bucket/x", "--metadata", '{"namespace": "n"}')
    run = here("call", "create", *about, *more, "--inputs", '{"mode": "done", "share": 1}')
    assert run.code == 0, run.err
    [(template, prefix, values, metadata)] = service.job.created
    assert (template.type, prefix) == ("job", "s3://bucket/x")
    assert values == {"mode": "done", "share": 1.0}
    assert isinstance(values["share"], float)
    assert metadata == TaskExecutionMetadata(namespace="n")


def test_what_failed_for_good_at_create_is_a_job_that_failed(service: Service, here: Cli) -> None:
    """A refused create prints a meta; `get` of it is FAILED with the reason, secrets masked."""
    about = ("--endpoint", service.endpoint, "--task-type", "job")
    run = here("call", "create", *about, "--inputs", '{"mode": "refuse"}')
    assert (run.code, run.err) == (0, "")
    meta = run.out
    run = here("call", "get", *about, "--meta", meta)
    assert run.code == 0
    assert run.json == {
        "phase": "FAILED",
        "message": "The table is unknown: password=***",
        "agent_error": {"code": "InvalidInput", "origin": "USER"},
    }
    assert here("call", "delete", *about, "--meta", meta).code == 0
    assert service.job.deleted == service.job.polls == []


def test_inputs_may_be_literals_already(service: Service, here: Cli) -> None:
    """A LiteralMap in JSON is sent as it is."""
    literals = {"literals": {"mode": {"scalar": {"primitive": {"stringValue": "done"}}}}}
    about = ("--endpoint", service.endpoint, "--task-type", "job")
    run = here("call", "create", *about, "--inputs", json.dumps(literals))
    assert run.code == 0
    assert service.job.created[0][2] == {"mode": "done"}


AT = ("--endpoint", "{endpoint}")
JOB = (*AT, "--task-type", "job")
GET = ("call", "get", *AT)
CREATE = ("call", "create", *AT)
CREATE_JOB = ("call", "create", *JOB)

MISTAKES = [
    (("call",), 2, "  metrics  GetTaskMetrics: read a job's metrics."),
    (("call", "crate"), 2, "Error: No such command 'crate'."),
    (GET, 2, "Error: Missing option '--task-type'."),
    (("call", "get", *JOB), 2, "Error: Missing option '--meta'."),
    (
        ("call", "get", *JOB, "--meta", "%"),
        2,
        "Error: --meta is base64, or the JSON that `connector-service call create` printed, or a"
        " file of either.",
    ),
    (("call", "get", *JOB, "--meta", '{"meta": 1}'), 2, "Error: --meta is base64, or the JSON"),
    (("call", "get", *JOB, "--meta", '{"resource_meta": 1}'), 2, "Error: --meta is base64, or"),
    (
        ("call", "get", *JOB, "--meta", "e30="),
        1,
        "Error: INVALID_ARGUMENT: The resource meta is not a JobMeta: Object missing required"
        " field mode.",
    ),
    (
        (*GET, "--task-type", "job:x", "--meta", "e30="),
        2,
        "Error: --task-type job:x: the version after the colon is a number.",
    ),
    (
        (*GET, "--task-type", "jab", "--meta", "e30="),
        1,
        "Error: NOT_FOUND: No connector for task type 'jab' version 0; registered: ask v0, job v0.",
    ),
    (
        ("call", "delete", *AT, "--task-type", "ask", "--meta", "e30="),
        1,
        "Error: FAILED_PRECONDITION: Ask serves task type 'ask' version 0 synchronously:",
    ),
    (("call", "logs", *JOB, "--meta", "e30=", "--lines", "-1"), 2, "Error: Invalid value for"),
    (("call", "logs", *JOB, "--meta", "e30="), 1, "Error: INVALID_ARGUMENT: The resource meta"),
    (("call", "metrics", *JOB, "--meta", "e30="), 1, "Error: INVALID_ARGUMENT: The resource meta"),
    (CREATE, 2, "Error: Name the task type with --task-type, or in --template as `type`."),
    (
        (*CREATE, "--template", "absent.json"),
        2,
        "Error: Cannot read absent.json: No such file or directory.",
    ),
    (
        (*CREATE, "--template", '{"typ": "job"}'),
        2,
        'Error: The JSON is not a TaskTemplate: Message type "flyteidl.core.TaskTemplate" has no'
        ' field named "typ" at "TaskTemplate".',
    ),
    (
        (*CREATE, "--template", '{"type": '),
        2,
        "Error: The JSON is not a TaskTemplate: Failed to load JSON: Expecting value: line 1",
    ),
    (
        (*CREATE_JOB, "--metadata", '{"x": 1}'),
        2,
        "Error: The JSON is not a TaskExecutionMetadata: Message type",
    ),
    (
        (*CREATE_JOB, "--inputs", "[1]"),
        2,
        'Error: --inputs is a JSON object, such as {"n": 3}.',
    ),
    ((*CREATE_JOB, "--inputs", "{"), 2, "Error: --inputs is not JSON: Expecting"),
    (
        (*CREATE_JOB, "--inputs", '{"literals": {"n": 3}}'),
        2,
        "Error: --inputs is not a LiteralMap in JSON: ",
    ),
    (
        (*CREATE, "--template", TEMPLATE, "--inputs", '{"share": "x"}'),
        2,
        "Error: --inputs.share: cannot encode a str as FLOAT.",
    ),
    (
        (*CREATE_JOB, "--inputs", '{"mode": "bug"}'),
        1,
        "Error: INTERNAL: create failed for task type 'job' version 0 with RuntimeError; the"
        " service's log has the details under incident ",
    ),
    (
        ("call", "do", *JOB),
        1,
        "Error: FAILED_PRECONDITION: Job Connector serves task type 'job' version 0 async",
    ),
    (
        ("call", "agent", *AT, "Aks"),
        1,
        "Error: NOT_FOUND: No connector for name 'Aks'; registered: Ask, Job Connector.",
    ),
    (("call", "agent", *AT), 2, "Error: Missing argument 'NAME'."),
    (("call", "list", *AT, "--timeout", "0"), 2, "Error: Invalid value for '--timeout': 0.0 is"),
    (("call", "list", *AT, "--timeout", "soon"), 2, "Error: Invalid value for '--timeout': 'soon'"),
    (
        ("call", "list", "--endpoint", ""),
        2,
        "Error: Invalid value for '--endpoint': it is empty; give an address such as",
    ),
    (
        ("call", "health", "--endpoint", "127.0.0.1:1"),
        1,
        "Error: UNAVAILABLE: failed to connect to all addresses; last error: UNKNOWN:"
        " ipv4:127.0.0.1:1: Failed to connect to remote host:",  # the rest is the release's
    ),
]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"), MISTAKES, ids=[" ".join(m[0])[:60] for m in MISTAKES]
)
def test_a_mistake_is_one_sentence_and_the_right_code(
    arguments: tuple[str, ...], code: int, sentence: str, service: Service, here: Cli
) -> None:
    """Wrong usage is 2, a refused call is 1, and the last line says what is wrong."""
    run = here(*(argument.replace("{endpoint}", service.endpoint) for argument in arguments))
    assert run.sentence.startswith(sentence)
    assert run.code == code
    assert run.out == ""
    assert "nobody's business" not in run.err


def test_a_time_limit_is_kept_and_told(here: Cli) -> None:
    """A service that does not answer in time ends in DEADLINE_EXCEEDED and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        run = here("call", "list", "--endpoint", endpoint, "--timeout", "0.2")
    assert run.code == 1
    assert run.sentence.startswith("Error: DEADLINE_EXCEEDED: ")
    assert run.sentence.endswith(". Give it longer with --timeout.")


@pytest.mark.parametrize(
    "arguments",
    [
        ("call", "list"),
        ("call", "logs", "--task-type", "job", "--meta", "eyJtb2RlIjogIngifQ=="),
        ("list",),
        ("describe", "Ask"),
    ],
    ids=" ".join,
)
def test_a_reader_that_leaves_early_sees_no_traceback(
    arguments: tuple[str, ...], service: Service, environ: dict[str, str], tmp_path: Path
) -> None:
    """`... | head` ends quietly, whenever the reader goes."""
    with subprocess.Popen(
        [str(COMMAND), *arguments, "--endpoint", service.endpoint],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
        cwd=tmp_path,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(PATIENCE) in (0, 1)


def test_errors_of_this_package_reach_the_user_as_sentences(
    here: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever of our errors a command raises, it is one sentence and a code."""

    def fail(*_args: object, **_options: object) -> None:
        raise ConnectorServiceError("A sentence.")

    monkeypatch.setattr(entry.cli, "main", fail)
    run = here("call")
    assert (run.code, run.err) == (1, "Error: A sentence.\n")
