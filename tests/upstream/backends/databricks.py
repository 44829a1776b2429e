"""Databricks: semblance-databricks, over TLS, with a token that it checks."""

from __future__ import annotations

import json
import ssl
import urllib.request
from pathlib import Path
from typing import Any

from upstream.backends.keys import Keys
from upstream.backends.program import HERE, Program, free_port, interpreter

TOKEN = "a-databricks-token"


class Databricks(Program):
    """One workspace; every poll moves its runs on by a step."""

    def __init__(self, folder: Path, keys: Keys) -> None:
        port = free_port()
        program = HERE / "databricks_program.py"
        super().__init__(
            [interpreter("backends"), program, str(port), keys.server, TOKEN], port, folder
        )
        self._keys = keys

    @property
    def settings(self) -> dict[str, str]:
        """What a plugin's process is told."""
        return {
            "FLYTE_DATABRICKS_INSTANCE": self.address,
            "_FSEC_FLYTE_DATABRICKS_ACCESS_TOKEN": TOKEN,
            "SSL_CERT_FILE": str(self._keys.authority),
        }

    def end(self, run: str, **state: str) -> None:
        """Say what becomes of a run: its ``result_state`` or its ``life_cycle_state``."""
        self.call("/control/end", run_id=run, **state)

    def call(self, path: str, **body: Any) -> Any:
        """Ask the workspace itself, beside any connector."""
        request = urllib.request.Request(
            f"https://{self.address}{path}",
            data=json.dumps(body).encode() if body else None,
            headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
        )
        context = ssl.create_default_context(cafile=str(self._keys.authority))
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(request, timeout=30) as response:
            return json.load(response)
