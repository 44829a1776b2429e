"""The other end of a webhook: what came is kept, and the path says what is answered."""

from __future__ import annotations

from typing import Any

from upstream.backends.local_http import LocalHttp


class Webhook(LocalHttp):
    """Answer ``/status/N`` with that status, and any other path with 200 and a word."""

    def answer(self, method: str, path: str, *_: object) -> tuple[int, Any]:
        if path.startswith("/status/"):
            return int(path.rpartition("/")[2]), b"no"
        return 200, b"heard"
