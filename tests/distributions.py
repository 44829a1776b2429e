"""Real distributions of plugins, installed in a folder of the test's own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from daemon import COMMAND

PATIENCE = 60.0


class Site:
    """A folder of installed distributions, as pip leaves them, that only this test sees."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()

    def install(
        self,
        name: str,
        modules: dict[str, str],
        entry_points: dict[str, str] | None = None,
        metadata: str = "",
        group: str = "connector_service.connectors",
    ) -> None:
        """Put modules, and a ``.dist-info`` that announces their entry points, in the folder."""
        for module, source in modules.items():
            path = self.folder / f"{module.replace('.', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        info = self.folder / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        head = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        (info / "METADATA").write_text(head + metadata)
        lines = [f"{key} = {value}\n" for key, value in (entry_points or {}).items()]
        (info / "entry_points.txt").write_text(f"[{group}]\n" + "".join(lines))

    def environ(self, **settings: str) -> dict[str, str]:
        """Return an environment in which the folder is installed and nothing else is set."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("CONNECTOR_SERVICE_")}
        chosen = {f"CONNECTOR_SERVICE_{key.upper()}": text for key, text in settings.items()}
        return {**clean, **chosen, "PYTHONPATH": str(self.folder)}

    def run(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run the installed command to its end."""
        return subprocess.run(
            [str(COMMAND), *arguments],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            env=self.environ(),
            cwd=cwd or self.folder.parent,
        )
