"""Ends before the handshake, with a word on why."""

# ruff: noqa: T201

import sys

print("connector-host-error " + '{"error": "Install grpcio there."}', file=sys.stderr)
sys.exit(4)
