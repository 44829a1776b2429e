"""The operator's options are checked before the first job, and so is the state folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from connector_service.connectors.duckdb.options import Options, read_options, secure_state_dir
from connector_service.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"thread": 2}, "Object contains unknown field thread"),
        ({"threads": 0}, "Expected int >= 1 - at $.threads"),
        ({"threads": "2"}, "Expected int, got str - at $.threads"),
        ({"memory_limit_mib": 1}, "Expected int >= 32"),
        ({"keep_days": -1}, "Expected float >= 0"),
        ({"landlock": "yes"}, "Invalid enum value 'yes'"),
        ({"state_dir": "relative"}, "'relative' is no absolute path"),
        ({"allowed_folders": ["x"]}, "'x' is no absolute path"),
        ({"allowed_folders": ["/no/such"]}, "allowed_folders names /no/such, which is no folder"),
        ({"allowed_folders": ["/"]}, "would lay the jobs of"),
        ({"allowed_folders": "/x"}, "Expected array, got str"),
    ],
)
def test_a_wrong_option_is_a_sentence(options: dict[str, Any], said: str) -> None:
    """It names the section, the key and what was expected."""
    with pytest.raises(ConfigError) as raised:
        read_options(options, section="connectors.duckdb.options")
    assert str(raised.value).startswith("[connectors.duckdb.options]: ")
    assert said in str(raised.value)


def test_every_option_is_documented() -> None:
    """Each key has a row in docs/duckdb.md, with its default."""
    text = (REPOSITORY / "docs" / "duckdb.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    assert set(Options.__struct_fields__) <= set(rows)


def test_the_default_state_folder_is_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the temp folder, made for this user only; what others could write is refused."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    state = secure_state_dir(read_options({}, section="x"))
    assert state == tmp_path.resolve() / f"connector-service-{os.geteuid()}" / "duckdb"
    assert state.stat().st_mode & 0o777 == 0o700
    assert state.parent.stat().st_mode & 0o777 == 0o700
    state.parent.chmod(0o777)
    with pytest.raises(ConfigError, match="can be written by others; run: chmod go-w"):
        secure_state_dir(read_options({}, section="x"))
    state.rmdir()
    state.parent.rmdir()
    state.parent.symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="is no folder of its own"):
        secure_state_dir(read_options({}, section="x"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody else")
def test_somebody_elses_folder_is_refused(tmp_path: Path) -> None:
    """Whoever owns the folder could put results into it."""
    (tmp_path / "state").mkdir()
    os.chown(tmp_path / "state", 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to user 12345, not to this service's user 0"):
        secure_state_dir(read_options({"state_dir": str(tmp_path / "state")}, section="x"))


def test_a_folder_that_cannot_be_made_is_a_config_error(tmp_path: Path) -> None:
    """The operator reads the path and the reason."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="Cannot use the state folder"):
        secure_state_dir(read_options({"state_dir": str(tmp_path / "file" / "x")}, section="x"))


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_service_itself_never_loads_duckdb() -> None:
    """Its 65 MB belong to the jobs; the front process only asks whether it is there."""
    pytest.importorskip("duckdb")
    code = "import sys, connector_service.connectors.duckdb; print('duckdb' in sys.modules)"
    assert python(code) == "False"


WITHOUT_DUCKDB = """
import importlib.abc, importlib.machinery, sys
class Hide(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.startswith("duckdb") else super().find_spec(name, path, target)
sys.meta_path[:] = [f for f in sys.meta_path if f is not importlib.machinery.PathFinder] + [Hide]
"""


def test_without_duckdb_the_import_says_what_to_install() -> None:
    """One sentence with the command, for the plugin record."""
    code = """
try:
    import connector_service.connectors.duckdb
except ImportError as error:
    print(error)
"""
    assert python(WITHOUT_DUCKDB + code) == (
        "The duckdb connector needs DuckDB; run: pip install 'connector-service[duckdb]'"
    )


def test_a_service_without_duckdb_is_whole_and_loads_nothing_of_its_connector() -> None:
    """The plugin is one whose extra is not installed: none that failed, and it costs no imports."""
    code = """
from connector_service.plugins import loader
from connector_service.sdk.registry import Registry
(source,) = (source for source in loader.sources() if source.name == "duckdb")
(record,) = loader.load([source], Registry())
package = "connector_service.connectors.duckdb."
print(record.state, record.failed, [name for name in sys.modules if name.startswith(package)])
"""
    assert python(WITHOUT_DUCKDB + code) == "extra not installed False []"
