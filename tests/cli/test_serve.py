"""``connector-service serve``: what it says when it starts, and when it cannot."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from connector_service import config

Cli = Any
Start = Any

FREE = ("--port=0", "--prometheus-port=0", "--drain-delay=0")


@pytest.fixture
def busy() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (
            ("--port={busy}", "--prometheus-port=0"),
            3,
            "Error: Cannot listen on 127.0.0.1:{busy}: the port is taken or the address is not"
            " this machine's; choose another with --port or --host, or --port 0 for a free one.",
        ),
        (
            ("--port=0", "--prometheus-port={busy}"),
            3,
            "Error: Cannot listen on 127.0.0.1:{busy} for metrics: Address already in use; choose"
            " another with --prometheus-port or --host, or --prometheus-port 0 for a free one.",
        ),
        (
            (*FREE, "--host=192.0.2.1"),
            3,
            "Error: Cannot listen on 192.0.2.1:0 for metrics: Cannot assign requested address;",
        ),
        (
            (*FREE, "--strict", "--module=broken"),
            3,
            "Error: 1 of 3 plugins failed and --strict is on: broken: RuntimeError: no luck",
        ),
        (
            (*FREE, "--config=options.toml", "--module=mine"),
            2,
            "Error: [connectors.mine.options]: Mine takes no options, got url.",
        ),
    ],
)
def test_what_stops_the_start_is_the_last_sentence(
    arguments: tuple[str, ...], code: int, sentence: str, busy: int, cli: Cli, tmp_path: Path
) -> None:
    """3 when the service cannot start, 2 when its settings are wrong; never a traceback of ours."""
    (tmp_path / "broken.py").write_text("raise RuntimeError('no luck')")
    (tmp_path / "options.toml").write_text("connectors.mine.options.url = 'x'")
    (tmp_path / "mine.py").write_text(
        "from connector_service import *\n"
        "class Mine(SyncConnectorBase):\n"
        "    def do(self): ...\n"
        "ConnectorRegistry.register(Mine(task_type_name='mine'))\n"
    )
    run = cli("serve", *(argument.replace("{busy}", str(busy)) for argument in arguments))
    last = run.err.rstrip("\n").rpartition("\n")[2]
    assert last.startswith(sentence.replace("{busy}", str(busy)))
    assert (run.code, run.out) == (code, "")
    assert "Traceback" not in run.err or "--module=broken" in arguments


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--port=70000",), 2, "Error: --port is 70000: Expected int <= 65535."),
        (("--port=http",), 2, "Error: Invalid value for '--port': 'http' is not a valid integer."),
        (("--grace=-1",), 2, "Error: --grace is -1.0: Expected float >= 0.0."),
        (("--drain-delay=nan",), 2, "Error: --drain-delay is nan: Expected float >= 0.0."),
        (("--log-format=xml",), 2, "Error: Invalid value for '--log-format': 'xml' is not one of"),
        (("--prot=1",), 2, "Error: No such option '--prot'"),
        (("--config=absent.toml",), 2, "Error: Cannot read the settings file absent.toml: No such"),
        (("--config=wrong.toml",), 2, "Error: wrong.toml: no setting is called prt; did you mean"),
    ],
)
def test_a_wrong_setting_is_told_before_anything_starts(
    arguments: tuple[str, ...],
    code: int,
    sentence: str,
    here: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wrong usage and wrong settings are exit code 2 and one sentence."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.toml").write_text("prt = 1")
    run = here("serve", *arguments)
    assert run.sentence.startswith(sentence)
    assert (run.code, run.out) == (code, "")


def test_it_says_where_it_is_and_leaves_with_zero(start: Start) -> None:
    """Free ports are chosen and printed on one line of standard output; SIGTERM ends it."""
    started = start("serve", *FREE)
    line = started.process.stdout.readline()
    found = re.fullmatch(
        r"connector-service \d\S* serving on 127\.0\.0\.1:(\d+),"
        r" metrics on http://127\.0\.0\.1:(\d+)/metrics \(plugins: \d+ loaded, \d+ failed\)\n",
        line,
    )
    assert found is not None, line
    ports = {int(port) for port in found.groups()}
    assert len(ports) == 2
    for port in ports:
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    run = started.end(signal.SIGTERM)
    assert (run.code, run.out) == (0, "")


def test_every_setting_is_a_flag_with_its_variable(here: Cli) -> None:
    """The help shows each flag with its variable; nothing is settable in secret."""
    text = " ".join(here("serve", "--help").out.split())
    for field in config.fields():
        assert f"--{field.name.replace('_', '-')}" in text
        assert f"{config.ENV_PREFIX}{field.name.upper()}" in text
