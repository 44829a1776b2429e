"""Prints a handshake that is none."""

# ruff: noqa: T201

import time

print('connector-host {"v": 1, "agents": 7}', flush=True)
time.sleep(600)
