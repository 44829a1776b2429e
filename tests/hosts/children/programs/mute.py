"""Shakes hands and then answers nobody: its socket does not exist."""

# ruff: noqa: T201

import time

print('connector-host {"v": 1, "agents": [], "plugins": []}', flush=True)
time.sleep(600)
