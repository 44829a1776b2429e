"""The certificates and keys that the backends show and the plugins are given."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from upstream.backends.program import HERE, interpreter

NAMES = ("127.0.0.1", "localhost", "*.snowflakecomputing.com")


@dataclass(frozen=True)
class Keys:
    """Files of a folder: the authority, the server's chain with its key, an RSA key as PKCS 8."""

    folder: Path

    @property
    def authority(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def server(self) -> Path:
        return self.folder / "server.pem"

    @property
    def rsa(self) -> Path:
        return self.folder / "rsa.pem"


def make_keys(folder: Path) -> Keys:
    """Make fresh keys in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [interpreter("backends"), HERE / "keys_program.py", folder, *NAMES]
    subprocess.run(command, check=True, timeout=60)
    return Keys(folder)
