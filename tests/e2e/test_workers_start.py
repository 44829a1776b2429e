"""``serve --workers``: what keeps it from starting is one sentence and an exit code."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

import pytest
from daemon import COMMAND, PATIENCE, Serve

pytestmark = pytest.mark.usefixtures("runtime_dir")


def refused(
    *flags: str, cwd: Path, modules: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "serve", "--log-level=error", "--prometheus-port=0", *flags],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=2 * PATIENCE,
    )


def test_a_busy_port_is_one_sentence_and_exit_code_3(tmp_path: Path) -> None:
    """The supervisor finds it out, before any worker starts."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = refused("--workers=2", f"--port={port}", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        f"Error: Cannot listen on 127.0.0.1:{port}: the port is taken or the address is not this"
        f" machine's; choose another with --port or --host, or --port 0 for a free one.\n"
    )


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_second_service_shares_the_port(serve: Serve, tmp_path: Path, workers: str) -> None:
    """SO_REUSEPORT is for this service's workers: another service of the same user is refused."""
    port = serve("--workers=2").endpoint.rpartition(":")[2]
    done = refused(f"--workers={workers}", f"--port={port}", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.startswith(f"Error: Cannot listen on 127.0.0.1:{port}: the port is taken")


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        (
            ("--strict", "--module=broken"),
            3,
            "Error: 1 of 3 plugins failed and --strict is on: broken: RuntimeError: no luck",
        ),
        (
            ("--config=options.toml",),
            2,
            "Error: [connectors.sleep.options]: ",
        ),
        (
            ("--state-dir=x", "--ledger-url=redis://127.0.0.1:1"),
            2,
            "Error: state_dir and ledger_url exclude each other",
        ),
        (("--module=leaves",), 3, "Error: Worker "),
        (("--workers=0",), 2, "Error: --workers is 0: Expected int >= 1."),
    ],
)
def test_what_stops_a_worker_s_start_stops_all_with_its_sentence(
    tmp_path: Path, flags: tuple[str, ...], code: int, sentence: str
) -> None:
    """A worker that can never start is no loop of restarts, but its own sentence and exit code."""
    (tmp_path / "broken.py").write_text("raise RuntimeError('no luck')")
    (tmp_path / "leaves.py").write_text("import os\nos._exit(7)")
    (tmp_path / "options.toml").write_text("connectors.sleep.options.url = 'x'")
    started = time.monotonic()
    done = refused("--port=0", "--workers=2", *flags, cwd=tmp_path)
    assert time.monotonic() - started < 60
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.rstrip("\n").rpartition("\n")[2].startswith(sentence), done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("Error: ")] == [
        done.stderr.splitlines()[-1]
    ]


def test_a_start_that_fails_waits_for_no_drain(tmp_path: Path) -> None:
    """One worker serves already, another cannot start: all end at once, none is drained."""
    (tmp_path / "second.py").write_text(
        f"""
import os, pathlib, time
folder = pathlib.Path({str(tmp_path / "first")!r})
try:
    folder.mkdir()
except FileExistsError:
    time.sleep(5)  # the first serves by now
    os._exit(1)
"""
    )
    started = time.monotonic()
    done = refused("--port=0", "--workers=2", "--module=second", "--drain-delay=300", cwd=tmp_path)
    assert time.monotonic() - started < 60
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].endswith(
        "could not start: ended with exit code 1; what it printed stands above."
    ), done.stderr
