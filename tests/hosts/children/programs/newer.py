"""Speaks a later version of the handshake."""

# ruff: noqa: T201

import time

print('connector-host {"v": 2, "everything": "new"}', flush=True)
time.sleep(600)
