"""The bench's commands: ``python -m bench --help``."""

from __future__ import annotations

import argparse

from bench.cases import CASES
from bench.peers import PEERS
from bench.quick import quick


def _peers(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown)} is no server here; choose from {', '.join(PEERS)}."
        )
    return names


def _quick_get(arguments: argparse.Namespace) -> None:
    peers = [PEERS[name] for name in arguments.server]
    quick(peers, CASES[arguments.case], arguments.seconds, arguments.in_flight)


def main() -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser(
        "quick-get", help="some seconds of one kind of call; several servers take turns"
    )
    one.add_argument("--server", type=_peers, default=["ours", "floor"], help="ours,floor,...")
    one.add_argument("--case", choices=CASES, default="get-1")
    one.add_argument("--seconds", type=float, default=5.0, help="of each server")
    one.add_argument("--in-flight", type=int, default=16)
    one.set_defaults(run=_quick_get)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
