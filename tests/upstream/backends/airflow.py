"""What Airflow's operators reach here: files of a folder, and a job behind HTTP."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from upstream.backends.local_http import LocalHttp


class Outside(LocalHttp):
    """A folder, and a job whose one request is answered when the test lets it end."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self._server.handle_error = _say_nothing  # type: ignore[method-assign]
        self.ended = threading.Event()
        self.status = 200

    @property
    def settings(self) -> dict[str, str]:
        """Airflow's connections, as variables; there is no Airflow server or database."""
        return {
            "AIRFLOW_CONN_FS_DEFAULT": json.dumps({"conn_type": "fs", "extra": {"path": "/"}}),
            "AIRFLOW_CONN_HTTP_DEFAULT": self.url,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        }

    def answer(self, *_: object) -> tuple[int, Any]:
        self.ended.wait(30)
        return self.status, {"ended": True}

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        super().__exit__(*error)


def _say_nothing(*_: object) -> None:
    """A trigger leaves when its time is up; that its request is then answered to nobody is fine."""
