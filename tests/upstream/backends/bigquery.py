"""BigQuery: bqemulator (DuckDB inside), and a token endpoint for the service account."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from upstream.backends.keys import Keys
from upstream.backends.local_http import LocalHttp
from upstream.backends.program import Program, free_port, interpreter

PROJECT = "acme"
DUCKDB = "v1.5.5"


class Tokens(LocalHttp):
    """Google's OAuth endpoint, as far as a service account's client asks it."""

    def __init__(self) -> None:
        super().__init__()
        self.denies = False

    @contextlib.contextmanager
    def denying(self) -> Iterator[None]:
        """Refuse the account inside the block, as Google does once its key was revoked."""
        self.denies = True
        try:
            yield
        finally:
            self.denies = False

    def answer(self, *_: object) -> tuple[int, Any]:
        if self.denies:
            return 401, {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
        return 200, {"access_token": "made-up", "expires_in": 3600, "token_type": "Bearer"}


class BigQuery:
    """The emulator with its DuckDB extensions in place, for it would download them."""

    def __init__(self, folder: Path, keys: Keys) -> None:
        python = interpreter("backend-bigquery")
        site = next(python.parent.parent.glob("lib/python*/site-packages"))
        extensions = folder / ".duckdb" / "extensions" / DUCKDB / "linux_amd64"
        extensions.mkdir(parents=True)
        for found in site.glob(f"duckdb_extension_*/extensions/{DUCKDB}/*.duckdb_extension"):
            shutil.copy(found, extensions)
        port, grpc_port = free_port(), free_port()
        self.program = Program(
            [
                *(python.with_name("bqemulator"), "start", "--project", PROJECT),
                *("--rest-port", str(port), "--grpc-port", str(grpc_port)),
            ],
            port,
            folder,
        )
        self.tokens = Tokens()
        self._account = folder / "account.json"
        self._account.write_text(
            json.dumps(
                {
                    "type": "service_account",
                    "project_id": PROJECT,
                    "private_key_id": "1",
                    "private_key": keys.rsa.read_text(),
                    "client_email": f"flyte@{PROJECT}.example",
                    "client_id": "1",
                    "token_uri": f"{self.tokens.url}/token",
                }
            )
        )

    @property
    def settings(self) -> dict[str, str]:
        """What a plugin's process is told, in Google's own variables."""
        return {
            "BIGQUERY_EMULATOR_HOST": f"http://{self.program.address}",
            "GOOGLE_APPLICATION_CREDENTIALS": str(self._account),
            "GOOGLE_CLOUD_PROJECT": PROJECT,
        }

    def __enter__(self) -> BigQuery:
        self.tokens.__enter__()
        self.program.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.program.stop()
        self.tokens.__exit__()
