"""Prints far more than is logged, on both of its outputs, before a handshake that is none."""

# ruff: noqa: T201

import sys
import time

for _ in range(20_000):
    print("noise on standard error", file=sys.stderr)
    print("noise on standard output")
print('connector-host {"v": 1, "agents": 7}', flush=True)
time.sleep(600)
