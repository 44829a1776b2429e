"""The bench's commands: ``python -m bench --help``."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import environments, report
from bench.batches import batches
from bench.capacity import capacity
from bench.cases import CASES
from bench.cores import cores
from bench.endurance import endurance, missed
from bench.environments import MissingToolError
from bench.growth import growth, known_jobs
from bench.instructions import count
from bench.peers import PEERS
from bench.quick import quick
from bench.releases import floor_on
from bench.rounds import Turns
from bench.run import Plan, run
from bench.scale import scale
from bench.tables import table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_TOLERANCE = 0.7  # of a target; a shared machine's noise is within it, a blunder is not
_RESULTS = Path("bench/results")
_QUICK = ("floor", "floor-uvloop", "ours")


def _peers(text: str) -> list[str]:
    return _known(text, PEERS, "server")


def _cases(text: str) -> list[str]:
    return _known(text, CASES, "case")


def _known(text: str, known: Mapping[str, object], what: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown)} is no {what} here; choose from {', '.join(known)}."
        )
    return names


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is no whole number of at least {least}.")
        return int(text)

    return number


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number above 0.")
    return number


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _quick_get(arguments: argparse.Namespace) -> int:
    peers = [PEERS[name] for name in arguments.server]
    quick(peers, CASES[arguments.case], arguments.seconds, arguments.in_flight)
    return 0


def _instructions(arguments: argparse.Namespace) -> int:
    counted = {}
    for name in arguments.server:
        counted[name] = count(PEERS[name], CASES[arguments.case], arguments.calls)
        print(f"{name:13} {counted[name]:12,} instructions per call of {arguments.case}")
    base = arguments.server[-1]
    for name, number in counted.items():
        print(f"{name:13} {number / counted[base]:.3f}x of {base}")
    return 0


def _capacity(arguments: argparse.Namespace) -> int:
    for found in capacity(arguments.seconds):
        print(
            f"{found.case:12} {found.in_flight:3} in flight {found.rate:10,.0f} calls/s"
            f"  p50 {found.p50 * 1e6:,.0f} us  p99 {found.p99 * 1e6:,.0f} us"
            f"  client {found.client:.0%} busy"
        )
    return 0


def _releases(arguments: argparse.Namespace) -> int:
    peers = [floor_on(release) for release in arguments.release]
    quick(peers, CASES[arguments.case], arguments.seconds, 16)
    for peer in peers:
        print(f"{peer.name:14} {count(peer, CASES[arguments.case]):10,} instructions per call")
    return 0


def _scale(arguments: argparse.Namespace) -> int:
    found = scale(arguments.calls, arguments.jobs, _say)
    # Some over the wire; growth makes them all.
    for kind in ("polled", "created"):
        found[kind] = known_jobs(kind, (0, arguments.jobs // 10), _say)
    return _keep("scale", found, arguments.out)


def _growth(arguments: argparse.Namespace) -> int:
    return _keep("growth", growth(arguments.jobs, _say), arguments.out)


def _cores(arguments: argparse.Namespace) -> int:
    return _keep("cores", cores(arguments.workers, arguments.turns, _say), arguments.out)


def _batches(arguments: argparse.Namespace) -> int:
    return _keep("batches", batches(arguments.turns, _say), arguments.out)


def _endurance(arguments: argparse.Namespace) -> int:
    found = endurance(arguments.minutes, arguments.share, _say, rate=arguments.rate)
    _keep("endurance", found, arguments.out)
    for line in missed(found):
        _say(f"missed: {line}")
    return 1 if missed(found) else 0


def _keep(name: str, found: dict[str, Any], out: Path) -> int:
    """Write what was found as JSON, and print it as tables."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print("\n\n".join(table(title, value) for title, value in found.items()))
    return 0


def _run(arguments: argparse.Namespace) -> int:
    peers = [PEERS[name] for name in arguments.peers or (_QUICK if arguments.quick else PEERS)]
    if not arguments.quick:
        for peer in peers:
            _say(f"environment of {peer.name}")
            environments.make(peer.name)
        peers = [peer.in_environment() for peer in peers]
    plan = Plan(
        peers=peers,
        # The floor on uvloop is what memory is told as a ratio to.
        called=[peer for peer in peers if not arguments.quick or peer.name != "floor-uvloop"],
        cases=[CASES[name] for name in arguments.only or CASES],
        rounds=arguments.rounds or (2 if arguments.quick else 5),
        turns=Turns(0.15, 6, 0.15) if arguments.quick else Turns(0.3, 8, 0.3),
        starts=2,
        blocking=1.5 if arguments.quick else 3.0,
        native=1.0,
        instructions=not arguments.quick,
        sizes=not arguments.quick,
    )
    result = run(plan, _say)
    # Figures worth keeping are of a whole run.
    out = arguments.out or Path("build/bench" if arguments.quick else "bench/results")
    report.write(result, out)
    if not arguments.quick:
        report.plot(out)
    print(report.table(result))
    missed = report.failures(result, _TOLERANCE)
    for line in missed:
        _say(f"far out of range: {line}")
    return 1 if missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench")
    commands = parser.add_subparsers(required=True)

    one = commands.add_parser("run", help="everything beside the peers, with a table and a plot")
    one.add_argument("--quick", action="store_true", help="ours and the floors, in 3 minutes")
    one.add_argument("--rounds", type=_at_least(0), default=0)
    one.add_argument("--only", type=_cases, help="cases, by name")
    one.add_argument("--peers", type=_peers, help="servers, by name")
    one.add_argument("--out", type=Path, help="folder of the results")
    one.set_defaults(run=_run)

    one = commands.add_parser(
        "quick-get", help="some seconds of one kind of call; several servers take turns"
    )
    one.add_argument("--server", type=_peers, default=["ours", "floor"], help="ours,floor,...")
    one.add_argument("--case", choices=CASES, default="get-1")
    one.add_argument("--seconds", type=_positive, default=5.0, help="of each server")
    one.add_argument("--in-flight", type=_at_least(1), default=16)
    one.set_defaults(run=_quick_get)

    one = commands.add_parser("instructions", help="instructions per call, counted by callgrind")
    one.add_argument("--server", type=_peers, default=["ours", "floor"])
    one.add_argument("--case", choices=CASES, default="get-1")
    one.add_argument("--calls", type=_at_least(1), default=400)
    one.set_defaults(run=_instructions)

    one = commands.add_parser("releases", help="the floor on releases of grpcio, in turns")
    one.add_argument("release", nargs="+", help="1.75.1, 1.80.0, ...; the last is the base")
    one.add_argument("--case", choices=CASES, default="get-1")
    one.add_argument("--seconds", type=_positive, default=10.0, help="of each release")
    one.set_defaults(run=_releases)

    one = commands.add_parser("capacity", help="what the client reaches on a native server")
    one.add_argument("--seconds", type=_positive, default=2.0)
    one.set_defaults(run=_capacity)

    one = _kept(commands, "scale", _scale, "calls in flight and jobs known: memory, and p99")
    one.add_argument("--calls", type=_at_least(1), default=10_000)
    one.add_argument("--jobs", type=_at_least(1), default=500_000)

    one = _kept(commands, "growth", _growth, "cost by payload, calls in flight, jobs, connectors")
    one.add_argument("--jobs", type=_at_least(1), default=500_000)

    one = _kept(commands, "cores", _cores, "one worker and several, of a host and of the service")
    one.add_argument("--workers", type=_at_least(2), default=2)
    one.add_argument("--turns", type=_at_least(1), default=5)

    one = _kept(commands, "batches", _batches, "polls with get_many and without: backend calls")
    one.add_argument("--turns", type=_at_least(1), default=10)

    one = _kept(commands, "endurance", _endurance, "minutes of mixed load, and what grows")
    one.add_argument("--minutes", type=_positive, default=10.0)
    one.add_argument("--share", type=_positive, default=0.7, help="of capacity")
    one.add_argument("--rate", type=_positive, default=0.0, help="calls per second instead")

    return parser


def _kept(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    """Add a command whose figures are kept in a folder."""
    one: argparse.ArgumentParser = commands.add_parser(name, help=text)
    one.add_argument("--out", type=Path, default=_RESULTS, help="folder of the results")
    one.set_defaults(run=run)
    return one


def main() -> int:
    """Run one command and return its exit code."""
    arguments = _parser().parse_args()
    try:
        code: int = arguments.run(arguments)
    except MissingToolError as error:
        _say(str(error))
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
