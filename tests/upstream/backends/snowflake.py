"""Snowflake: fakesnow (DuckDB inside), reached as ``ACCOUNT.snowflakecomputing.com``.

Flytekit's connector has no setting for the host, so its client is given what a company's network
gives it: an HTTPS proxy, and an authority to trust. The proxy ends the TLS itself and hands every
request to fakesnow. fakesnow runs a statement at once and has no ``SYSTEM$CANCEL_QUERY``, so a
status that it never has (running, failed late) is put in by ``say``, and by a cancellation.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import re
import ssl
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from upstream.backends.keys import Keys
from upstream.backends.local_http import Handler, LocalHttp
from upstream.backends.program import Program, free_port, interpreter

ACCOUNT = "acme-eu"
HOP = ("host", "connection", "content-length")
CANCEL = re.compile(r"SYSTEM\$CANCEL_QUERY\('(?P<query>[^']+)'\)")
STATUS = re.compile(r"/monitoring/queries/(?P<query>[^/?]+)")


class Snowflake(LocalHttp):
    """The proxy in this process and fakesnow in one of its own."""

    def __init__(self, folder: Path, keys: Keys) -> None:
        super().__init__()
        python = interpreter("backends")
        port = free_port()
        self.program = Program(
            [python.with_name("fakesnow"), "-s", "-p", str(port), "--host", "127.0.0.1"],
            port,
            folder,
        )
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(keys.server)
        self._keys = keys
        self._said: dict[str, dict[str, str]] = {}
        self.refused: list[str] = []

    @property
    def settings(self) -> dict[str, str]:
        """What a plugin's process is told: where the proxy is, and whom to trust."""
        return {
            "HTTPS_PROXY": self.url,
            "NO_PROXY": "127.0.0.1,localhost",
            "REQUESTS_CA_BUNDLE": str(self._keys.authority),
            "SNOWFLAKE_DISABLE_PLATFORM_DETECTION": "true",
            "_FSEC_SNOWFLAKE_PRIVATE_KEY": self._keys.rsa.read_text(),
        }

    def say(self, query: str, status: str, error: str = "") -> None:
        """Answer the query's status with this one from now on; an empty status ends that."""
        if not status:
            self._said.pop(query)
            return
        self._said[query] = {"id": query, "status": status, "errorMessage": error}

    def statements(self) -> list[str]:
        """Return the SQL texts that came, in order."""
        texts = (_sql(body) for _, path, _, body in self.requests if "query-request" in path)
        return [text for text in texts if text]

    def forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Any:
        """Hand a request to fakesnow; return its status and body, 503 when it is away."""
        status = STATUS.match(path)
        if status and status["query"] in self._said:
            said = {"data": {"queries": [self._said[status["query"]]]}, "success": True}
            return 200, json.dumps(said).encode()
        cancel = CANCEL.search(_sql(body))
        if cancel:
            self.say(cancel["query"], "FAILED_WITH_ERROR", "SQL execution canceled")
            body = json.dumps({**json.loads(body), "sqlText": "SELECT 'terminated'"}).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.program.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body=body or None, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()

    def __enter__(self) -> Snowflake:
        self.program.start()
        super().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.program.stop()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        return Proxy


class Proxy(Handler):
    """A connection: CONNECT, then TLS as the host asked for, then its requests."""

    owner: Snowflake

    def do_CONNECT(self) -> None:  # noqa: N802 - http.server's name
        host = self.path.rpartition(":")[0]
        if host != f"{ACCOUNT}.snowflakecomputing.com":
            self.owner.refused.append(host)
            self.send_error(502)
            return
        self.send_response(200)
        self.end_headers()
        try:
            self.connection = self.owner.tls.wrap_socket(self.connection, server_side=True)
        except (ssl.SSLError, OSError):
            self.close_connection = True
            return
        self.rfile = self.connection.makefile("rb", -1)
        self.wfile = self.connection.makefile("wb", 0)
        # The base class ends a connection after CONNECT's own reply unless told otherwise.
        self.close_connection = False

    def finish(self) -> None:
        super().finish()
        # The server closes the socket that it accepted, not the one that was laid over it.
        self.connection.close()

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        if headers.pop("content-encoding", "") == "gzip":
            body = gzip.decompress(body)
        self.owner.requests.append((self.command, self.path, headers, body))
        keep = {k: v for k, v in headers.items() if k not in HOP}
        try:
            status, answer = self.owner.forward(self.command, self.path, keep, body)
        except OSError:
            status, answer = 503, b"{}"
        self.reply(status, answer)

    do_GET = do_POST = handle_any  # noqa: N815 - http.server's names


def _sql(body: bytes) -> str:
    with contextlib.suppress(ValueError):
        return str(json.loads(body).get("sqlText", ""))
    return ""
