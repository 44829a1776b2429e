"""OpenAI: fakellm for chat, and files and batches by the lines below.

A batch goes on by one state with every poll: validating, in_progress, finalizing, completed; a
batch over a file that holds no JSON lines fails, as OpenAI's does.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from upstream.backends.local_http import LocalHttp
from upstream.backends.program import Program, free_port, interpreter

KEY = "sk-made-up"
ONWARD = {"validating": "in_progress", "in_progress": "finalizing", "finalizing": "completed"}
ONWARD |= {"cancelling": "cancelled"}
REPLY = """\
version: 1
rules:
  - name: any
    respond:
      content: forty-two
"""


class OpenAi(LocalHttp):
    """The API under ``/v1``, asked with the one key that it knows."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "fakellm.yaml"
        config.write_text(REPLY)
        command = interpreter("backends").with_name("fakellm")
        self.chat = Program(
            [command, "serve", "--port", str(port), "--config", config], port, folder
        )
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.denies = False
        self._numbers = itertools.count(1)

    @property
    def settings(self) -> dict[str, str]:
        """What a plugin's process is told, in OpenAI's own variable and flytekit's."""
        return {"OPENAI_BASE_URL": f"{self.url}/v1", "_FSEC_FLYTE_OPENAI_API_KEY": KEY}

    def upload(self, text: str) -> str:
        """Store a file as the upload task does before the batch; return its id."""
        name = f"file-{next(self._numbers)}"
        self.files[name] = text.encode()
        return name

    @contextlib.contextmanager
    def denying(self) -> Iterator[None]:
        """Refuse the key inside the block, as OpenAI does once it was revoked."""
        self.denies = True
        try:
            yield
        finally:
            self.denies = False

    def answer(
        self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
    ) -> tuple[int, Any]:
        if self.denies or headers.get("authorization") != f"Bearer {KEY}":
            return 401, _error("Incorrect API key provided.", "invalid_api_key")
        if path.startswith("/v1/chat/"):
            return self._forward(method, path, body)
        if (method, path) == ("POST", "/v1/batches"):
            return self._create(json.loads(body))
        found = re.fullmatch(r"/v1/batches/([^/]+)(/cancel)?", path)
        batch = self.batches.get(found[1]) if found else None
        if found is None or batch is None:
            return 404, _error(f"No batch found at {path}.", "not_found")
        if found[2]:
            batch["status"] = "cancelling"
        elif self.files[batch["input_file_id"]].startswith(b"{"):
            seen = dict(batch)
            batch["status"] = ONWARD.get(batch["status"], batch["status"])
            if batch["status"] == "completed":
                batch["output_file_id"] = f"{batch['id']}-output"
            return 200, seen
        elif batch["status"] == "validating":
            batch["status"] = "failed"
            line = {"code": "invalid_json_line", "message": "Line 1 is not valid JSON.", "line": 1}
            batch["errors"] = {"object": "list", "data": [line]}
        return 200, batch

    def _create(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        if wanted["input_file_id"] not in self.files:
            return 404, _error(f"No such File object: {wanted['input_file_id']}", "not_found")
        name = f"batch_{next(self._numbers)}"
        self.batches[name] = {
            "id": name,
            "object": "batch",
            "endpoint": wanted["endpoint"],
            "input_file_id": wanted["input_file_id"],
            "completion_window": wanted["completion_window"],
            "status": "validating",
            "created_at": 1_700_000_000,
        }
        return 200, self.batches[name]

    def _forward(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.chat.port, timeout=30)
        try:
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def __enter__(self) -> OpenAi:
        self.chat.start()
        super().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.chat.stop()


def _error(message: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "code": code}}
