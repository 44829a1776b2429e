"""A child's life: it starts, says one line, serves its parent alone, and ends with it."""

from __future__ import annotations

import ast
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from child_program import PATIENCE, PROGRAM, Child, Wire, running

PLUGINS = Path(__file__).parent / "plugins"


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    child = Child(tmp_path, ["module:odd"], path=[PLUGINS])
    yield child
    child.close()


def gone(pid: int) -> bool:
    """Tell whether a process ends in good time; a zombie has ended."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_the_handshake_is_one_line_whatever_plugins_print(child: Child) -> None:
    """Standard output has the handshake and nothing else; what plugins print goes to the other."""
    shaken = child.handshake()
    assert shaken["v"] == 1
    assert shaken["pid"] == child.process.pid
    assert shaken["address"] == f"unix:{child.socket}"
    assert shaken["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(shaken["versions"]) == {"connector-service"}
    assert shaken["agents"] == [
        {
            "name": name,
            "is_sync": name == "Quick",
            "protocols": ["flyteidl", "flyteidl2"],
            "categories": [[task_type, 0]],
        }
        for name, task_type in (("Odd", "odd"), ("Odd", "other"), ("Quick", "quick"))
    ]
    [plugin] = shaken["plugins"]
    assert plugin["state"] == "loaded"
    assert plugin["categories"] == [["odd", 0], ["other", 0], ["quick", 0]]
    child.process.terminate()
    assert child.ended() == 0
    assert child.process.stdout is not None
    assert child.process.stdout.read() == b""
    assert "printed while it loads\n" in child.said()
    assert "written to descriptor 1\n" in child.said()


def test_only_this_user_and_the_parent_may_call(child: Child) -> None:
    """The socket is this user's alone; a call without the token, or with another, is refused."""
    child.handshake()
    assert stat.S_IMODE(child.socket.stat().st_mode) == 0o600
    for token in ("", "0" * 64, child.token[:-1]):
        wire = Wire(child, token)
        for call in (wire.ping, lambda wire=wire: wire.get("odd"), lambda wire=wire: wire.do("q")):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        wire.channel.close()
    assert Wire(child).ping()["total"] == 0


def test_the_token_is_in_no_place_that_others_read(child: Child) -> None:
    """Neither the command line nor the environment has the token."""
    child.handshake()
    for name in ("cmdline", "environ"):
        assert child.token.encode() not in Path(f"/proc/{child.process.pid}/{name}").read_bytes()


def test_it_ends_when_its_standard_input_does(child: Child) -> None:
    """A child whose parent closed the pipe ends at once, though a connector blocks a loop."""
    child.handshake()
    wire = Wire(child)
    started = int(wire.get("odd", b'{"word": "child:"}').resource.message)
    blocked = wire.method("flyteidl", "GetTask").future(
        wire.about("flyteidl", "GetTask", "odd", b'{"word": "block:600"}'),
        metadata=wire.metadata(),
    )
    assert wire.ping()["calls"] in (0, 1)
    assert child.process.stdin is not None
    child.process.stdin.close()
    assert child.ended() == 5
    assert gone(started), "a process that a connector started outlived it"
    blocked.cancel()
    wire.channel.close()


PARENT = """
import subprocess, sys
program, line = sys.argv[1:]
child = subprocess.Popen(
    [sys.executable, "-u", program], stdin=subprocess.PIPE, start_new_session=True
)
child.stdin.write(line.encode() + b"\\n")
child.stdin.flush()
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part is Linux's")
def test_it_ends_with_its_parent_though_the_interpreter_is_held(tmp_path: Path) -> None:
    """A child in a C call that holds the interpreter's lock is ended by the kernel."""
    settings = {
        "v": 1,
        "host": "test",
        "worker": 0,
        "socket": str(tmp_path / "c.sock"),
        "token": "t" * 64,
        "sources": ["module:odd"],
    }
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(PROGRAM), json.dumps(settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PLUGINS)},
    )
    assert parent.stdout is not None
    pid = json.loads(parent.stdout.readline().partition(b" ")[2])["pid"]
    channel = grpc.insecure_channel(f"unix:{tmp_path / 'c.sock'}")
    metadata = [("connector-host-token", "t" * 64)]
    ping = channel.unary_unary("/connector_service.host.v1.Host/Ping")
    ping(b"", metadata=metadata, timeout=PATIENCE)
    from flyteidl.admin import agent_pb2  # noqa: PLC0415 - beside its only use

    request = agent_pb2.GetTaskRequest(resource_meta=b'{"word": "child:"}')
    request.task_category.name = "odd"
    answer = channel.unary_unary("/flyteidl.service.AsyncAgentService/GetTask")(
        request.SerializeToString(), metadata=metadata, timeout=PATIENCE
    )
    started = int(agent_pb2.GetTaskResponse.FromString(answer).resource.message)
    request = agent_pb2.GetTaskRequest(resource_meta=b'{"word": "hold:600"}')
    request.task_category.name = "odd"
    held = channel.unary_unary("/flyteidl.service.AsyncAgentService/GetTask").future(
        request.SerializeToString(), metadata=metadata
    )
    with pytest.raises(grpc.RpcError):  # noqa: PT012 - it answers no more: the lock is held
        for _ in range(1_000):
            ping(b"", metadata=metadata, timeout=1)
    parent.kill()
    parent.wait(PATIENCE)
    try:
        assert gone(pid)
        assert gone(started), "a process that a connector started outlived it"
    finally:
        held.cancel()
        channel.close()
        for pipe in (parent.stdin, parent.stdout):
            assert pipe is not None
            pipe.close()


def test_sigterm_lets_calls_in_flight_end(child: Child) -> None:
    """Asked to end, it refuses new calls, answers those in flight, and exits with 0."""
    child.handshake()
    wire = Wire(child)
    running_call = wire.method("flyteidl", "GetTask").future(
        wire.about("flyteidl", "GetTask", "odd", b'{"word": "block:1"}'),
        metadata=wire.metadata(),
    )
    end = time.monotonic() + PATIENCE
    while not wire.ping()["calls"]:
        assert time.monotonic() < end
    child.process.send_signal(signal.SIGTERM)
    assert running_call.result(timeout=PATIENCE).resource.phase
    assert child.ended() == 0
    wire.channel.close()


def test_log_records_come_as_records_with_secrets_masked(tmp_path: Path) -> None:
    """What connectors log is one line of JSON each: level, logger, text, traceback, no secrets."""
    environ = {"_FSEC_TOKEN": "open-sesame"}
    with running(tmp_path, ["module:odd"], path=[PLUGINS], environ=environ, log_level="info") as (
        child,
        wire,
        _,
    ):
        wire.get("odd", b'{"word": "log"}')
        child.hear("it failed")
        records = {record["message"]: record for record in child.records()}
    assert records["loading with password=***"]["level"] == "WARNING"
    failed = records["it failed"]
    assert (failed["level"], failed["logger"]) == ("ERROR", "odd")
    assert "ValueError" in failed["exc"]
    assert "verysecret" not in failed["exc"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"sources": []}, "no source"),
        ({"sources": ["nonsense"]}, "no source nonsense"),
        ({"sources": ["flytekit"]}, "install flytekit"),
        ({"sources": ["flyte"]}, "flyte[connector]"),
        ({"sources": ["module:odd"], "v": 2}, "version 2"),
        ({"sources": ["module:odd"], "socket": "/nonexistent/child.sock"}, "cannot be served"),
    ],
)
def test_a_child_that_cannot_start_says_why(
    tmp_path: Path, settings: dict[str, object], sentence: str
) -> None:
    """It exits with 4, and its last line is one sentence for the operator."""
    sources = settings.pop("sources")
    child = Child(tmp_path, sources, path=[PLUGINS], **settings)  # type: ignore[arg-type]
    try:
        assert child.ended() == 4
        kind, _, rest = child.said().splitlines()[-1].partition(" ")
        assert kind == "connector-host-error"
        assert sentence in json.loads(rest)["error"]
    finally:
        child.close()


def test_a_plugin_that_does_not_load_breaks_itself_alone(tmp_path: Path) -> None:
    """Its record says what it raised and where; the others are served."""
    (tmp_path / "broken.py").write_text("import sys\nsys.exit(3)\n")
    with running(tmp_path, ["module:broken", "module:odd"], path=[PLUGINS]) as (_, wire, shaken):
        broken, odd = shaken["plugins"]
        assert (broken["name"], broken["state"]) == ("broken", "failed")
        assert "SystemExit" in broken["error"]
        assert broken["where"].endswith("broken.py:2")
        assert odd["state"] == "loaded"
        assert wire.do("quick").message == "quick"


def test_enable_and_disable_choose_task_types(tmp_path: Path) -> None:
    """Only the task types that `enable` matches and `disable` does not are served."""
    with running(tmp_path, ["module:odd"], path=[PLUGINS], enable=["o*"], disable=["other"]) as (
        _,
        wire,
        shaken,
    ):
        assert [agent["categories"] for agent in shaken["agents"]] == [[["odd", 0]]]
        with pytest.raises(grpc.RpcError) as caught:
            wire.get("other")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_the_kernel_takes_a_child_before_its_parent(child: Child) -> None:
    """Where memory ends, the child is the one to go."""
    child.handshake()
    own = int(Path("/proc/self/oom_score_adj").read_text())
    its = int(Path(f"/proc/{child.process.pid}/oom_score_adj").read_text())
    assert its > own or own == 1000


MODULES = sorted(PROGRAM.rglob("*.py"))
OLDEST = (3, 10)
ALLOWED = {"grpc", "google", "connector_host", "__future__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_venv_of_only_an_sdk_is_enough(path: Path) -> None:
    """Each module is Python 3.10 and imports only the standard library, grpc and protobuf.

    An SDK is imported by name, inside a function of its own source, when that is asked for.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=OLDEST)
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported.add((node.module or "").partition(".")[0])
    assert imported - set(sys.stdlib_module_names) <= ALLOWED
    assert not imported & {"tomllib"}


def test_it_is_started_with_nothing_of_ours_installed() -> None:
    """Without settings on its standard input the program says who starts it, in any interpreter."""
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-u", str(PROGRAM)],
        input=b"",
        capture_output=True,
        timeout=PATIENCE,
    )
    assert run.returncode == 4
    assert b"started by connector-service alone" in run.stderr


def test_a_missing_grpc_is_said_in_a_sentence(tmp_path: Path) -> None:
    """An interpreter without grpcio is told to install it."""
    settings = {"v": 1, "host": "h", "worker": 0, "socket": "s", "token": "t", "sources": ["flyte"]}
    child = subprocess.Popen(
        [sys.executable, "-S", "-u", str(PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PATH": os.environ["PATH"]},
        cwd=tmp_path,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdin.write(json.dumps(settings).encode() + b"\n")
    child.stdin.flush()
    assert child.wait(PATIENCE) == 4
    assert b"install it there" in child.stderr.read()
    for pipe in (child.stdin, child.stdout, child.stderr):
        pipe.close()
