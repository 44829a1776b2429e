"""Prints what is no handshake, and more of it than any line should have."""

# ruff: noqa: T201

import sys
import time

sys.stdout.buffer.write(bytes(range(256)) * 1000 + b"\nconnector-hos\n")
print("x" * 100_000, file=sys.stderr)
sys.stdout.flush()
time.sleep(600)
