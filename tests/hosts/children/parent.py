"""A parent to be killed: starts a host, has its child start others, and prints all their pids."""

# ruff: noqa: ASYNC251, T201

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))

from process_hosts import CHILDREN, ask, get, pid_of

from connector_service.config import HostSection
from connector_service.hosts.process import ProcessHost


async def main() -> None:
    section = HostSection(sources=("module:faulty",), cwd=str(CHILDREN))
    host = ProcessHost("faulty", section, Path(sys.argv[1]))
    await host.start()
    pids = [await pid_of(host), int(await ask(host, "spawn")), int(await ask(host, "fork"))]
    if sys.argv[2] == "hold_lock":
        holding = asyncio.create_task(host.run(get("hold_lock", "600")))
        await asyncio.sleep(0.5)
        assert not holding.done()
    if sys.argv[2] == "stopped":
        os.kill(pids[0], signal.SIGSTOP)
    print(json.dumps(pids), flush=True)
    time.sleep(600)


asyncio.run(main())
