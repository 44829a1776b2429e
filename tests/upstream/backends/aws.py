"""AWS: moto's server."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

from upstream.backends.program import HERE, Program, free_port, interpreter

REGION = "us-east-1"


class Aws(Program):
    """One account with nothing in it."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        super().__init__(
            [interpreter("backends"), HERE / "aws_program.py", str(port)], port, folder
        )

    @property
    def settings(self) -> dict[str, str]:
        """What a plugin's process is told, in AWS's own variables."""
        return {
            "AWS_ENDPOINT_URL": f"http://{self.address}",
            "AWS_ACCESS_KEY_ID": "AKIA0000000000000000",
            "AWS_SECRET_ACCESS_KEY": "made-up",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def control(self, kind: str, name: str, **attributes: str) -> bool:
        """Write attributes of a stored object, such as its status; return whether it is there."""
        body = json.dumps({"kind": kind, "name": name, "set": attributes}).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{self.address}/control", data=body, timeout=30) as response:
            return bool(json.load(response)["found"])
