"""Counts the instructions that a server executes for one call: a figure without noise.

valgrind's callgrind runs the whole server, some fifty times slower, and is asked for its counters
before and after a number of calls. What the server does by itself meanwhile (timers, garbage
collection) is in the figure, divided by the calls; the same code gives the same figure within
about one in a hundred.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bench.environments import MissingToolError
from bench.load import Connection, Load

if TYPE_CHECKING:
    from bench.cases import Case
    from bench.peers import Peer

__all__ = ["count"]


def count(peer: Peer, case: Case, calls: int = 400, warm_up: int = 200, in_flight: int = 16) -> int:
    """Return the instructions of one call.

    Raises:
        MissingToolError: valgrind is not installed.
    """
    valgrind, control = shutil.which("valgrind"), shutil.which("callgrind_control")
    if valgrind is None or control is None:
        raise MissingToolError(
            "valgrind is not installed; `apt-get install valgrind` brings what counts instructions."
        )
    with tempfile.TemporaryDirectory() as folder:
        prefix = (
            valgrind,
            "--tool=callgrind",
            f"--callgrind-out-file={folder}/out",
            f"--vgdb-prefix={folder}/vgdb",
        )
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(peer.serve(prefix))
            connection = stack.enter_context(
                contextlib.closing(
                    Connection("127.0.0.1", server.port, Load(case.path, case.make(), in_flight))
                )
            )
            connection.run(calls=warm_up)
            command = [control, f"--vgdb-prefix={folder}/vgdb"]
            _run([*command, "--zero", str(server.pid)])
            connection.run(calls=calls)
            _run([*command, "--dump", str(server.pid)])
            return _total(Path(folder)) // calls


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stdout}{done.stderr}")


def _total(folder: Path) -> int:
    """Add up what every thread's dump says it executed."""
    totals = [
        int(found[1])
        for file in folder.glob("out*")
        for found in re.finditer(r"^(?:totals|summary): (\d+)", file.read_text(), re.MULTILINE)
    ]
    if not totals:
        raise RuntimeError("callgrind wrote no totals.")
    return max(totals)
