"""The whole comparison: rounds of everything, summed up as ratios, checked against the targets."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import environments
from bench.capacity import capacity
from bench.cases import CASES
from bench.environments import MissingToolError
from bench.instructions import count
from bench.process import sharing
from bench.rounds import Row, Turns, run_round
from bench.summary import sum_up
from bench.whole import blocked, starts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.cases import Case
    from bench.peers import Peer

__all__ = ["Plan", "run"]

_ALONE = ("get-1", "get-2")  # also with one call in flight
_COUNTABLE = ("ours", "floor", "floor-uvloop")  # the peers need minutes to start under valgrind
_COUNTED = ("get-1", "create-1k-1")  # whose instructions are counted
_MB = 1_000_000
_TELL_VERSIONS = (
    "import importlib.metadata as m, json, sys; print(json.dumps({d.name.lower(): d.version"
    " for d in m.distributions() if d.name.lower() in ('grpcio', 'protobuf', 'uvloop', 'flyteidl',"
    " 'flyteidl2', 'flytekit', 'flyte')} | {'python': sys.version.split()[0]}))"
)


class Plan(NamedTuple):
    """What is run, and for how long."""

    peers: Sequence[Peer]
    called: Sequence[Peer]  # those of them whose calls are measured
    cases: Sequence[Case]
    rounds: int
    turns: Turns
    starts: int  # of each server, in each round
    blocking: float  # seconds; 0 leaves it out
    native: float  # seconds of each load of the native server; 0 leaves it out
    instructions: bool
    sizes: bool


def run(plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """Run ``plan`` and return everything that was seen, with ``summary`` on top.

    Raises:
        bench.load.LoadError: A call failed or was answered wrongly.
    """
    result: dict[str, Any] = {"summary": [], "environment": _environment(plan.peers), "rounds": []}
    work = [(case, 16) for case in plan.cases]
    work += [(CASES[name], 1) for name in _ALONE if CASES[name] in plan.cases]
    measured: list[list[Row]] = []
    for number in range(plan.rounds):
        say(f"round {number + 1} of {plan.rounds}: calls")
        rows = run_round(plan.called, work, plan.turns, number)
        measured.append(rows)
        seen: dict[str, Any] = {
            "rows": [
                row._asdict() | {"turns": [turn._asdict() for turn in row.turns]} for row in rows
            ]
        }
        if plan.starts:
            say(f"round {number + 1} of {plan.rounds}: starts")
            begun = [start for turn in range(plan.starts) for start in starts(plan.peers, turn)]
            seen["starts"] = [start._asdict() for start in begun]
        if plan.blocking:
            say(f"round {number + 1} of {plan.rounds}: blocking calls")
            seen["blocked"] = [
                blocked(peer, plan.blocking)._asdict()
                for peer in plan.called
                if peer.counts and peer.answers(CASES["plain-1"])
            ]
        result["rounds"].append(seen)
    _add_tools(result, plan, say)
    if plan.sizes:
        result["installed"] = {
            peer.name: environments.installed_size(peer.name) for peer in plan.peers
        }
    result["summary"] = [verdict._asdict() for verdict in sum_up(measured, result)]
    return result


def _add_tools(result: dict[str, Any], plan: Plan, say: Callable[[str], None]) -> None:
    """Add what needs programs that may be missing; say so where they are."""
    result["missing"] = []
    try:
        if plan.native:
            say("the client's own limit")
            result["capacity"] = [found._asdict() for found in capacity(plan.native)]
    except MissingToolError as error:
        result["missing"].append(str(error))
    try:
        if plan.instructions:
            say("instructions")
            result["instructions"] = [
                {"case": name, "peer": peer.name, "instructions": count(peer, CASES[name])}
                for name in _COUNTED
                for peer in plan.peers
                if peer.name in _COUNTABLE and peer.answers(CASES[name])
            ]
    except (MissingToolError, RuntimeError) as error:  # hours of rounds are not lost for it
        result["missing"].append(str(error))


def _environment(peers: Sequence[Peer]) -> dict[str, Any]:
    def read(command: list[str]) -> str:
        done = subprocess.run(  # noqa: S603
            command, check=False, capture_output=True, text=True, cwd=Path(__file__).parent
        )
        return done.stdout.strip()

    cpus = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.split(":", 1)[1].strip() for line in cpus if line.startswith("model name")]
    return {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "revision": read(["git", "describe", "--always", "--dirty"]),
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "shared_core": sharing(),
        "kernel": platform.release(),
        "load_average": os.getloadavg(),
        "versions": {
            peer.name: read([peer.python or sys.executable, "-c", _TELL_VERSIONS]) for peer in peers
        },
    }
