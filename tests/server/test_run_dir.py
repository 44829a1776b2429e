"""The private folder of sockets: whose it is, who may enter, and what a mistake is told."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from connector_service import config
from connector_service.errors import ConfigError
from connector_service.server.run_dir import RunDir, run_dir


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a path that leaves room for a socket's name; pytest's own may be too long."""
    with tempfile.TemporaryDirectory(prefix="run-") as path:
        yield Path(path)


def test_the_folder_is_private_and_gone_at_the_end(short: Path) -> None:
    """Only its user may enter, also when it was there before with other rights."""
    path = short / "deep" / "run"
    path.mkdir(parents=True, mode=0o755)
    folder = RunDir(path)
    folder.open()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    folder.close()
    folder.close()
    assert not path.exists()


def test_two_services_never_share_one(short: Path) -> None:
    """The second is refused while the first lives, and may have it afterwards."""
    first, second = RunDir(short / "run"), RunDir(short / "run")
    first.open()
    with pytest.raises(ConfigError, match="Another service has its sockets"):
        second.open()
    first.close()
    second.open()
    second.close()


def test_sockets_of_a_killed_service_are_removed(short: Path) -> None:
    """What a service left that was killed keeps no new one from its name."""
    (short / "old.sock").touch()
    folder = RunDir(short)
    folder.open()
    assert not (short / "old.sock").exists()
    folder.close()


def test_a_folder_that_somebody_else_could_change_is_refused(short: Path) -> None:
    """A link that another user planted in the common folder leads nowhere."""
    (short / "theirs").mkdir()
    (short / "run").symlink_to(short / "theirs")
    with pytest.raises(ConfigError, match="not a folder of this user's own"):
        RunDir(short / "run").open()
    assert list((short / "theirs").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "said"), [("x" * 90, "over 70 characters"), ("file/run", "Not a directory")]
)
def test_a_folder_that_cannot_be_is_one_sentence(
    short: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    """The sentence says what is wrong and which flag mends it."""
    (short / "file").touch()
    monkeypatch.chdir(short)
    with pytest.raises(ConfigError, match=said) as refused:
        RunDir(Path(name)).open()
    assert "--run-dir" in str(refused.value)


@pytest.mark.parametrize("runtime_dir", ["", "/run/user/7"])
def test_the_port_tells_services_apart(monkeypatch: pytest.MonkeyPatch, runtime_dir: str) -> None:
    """Two ports are two folders, wherever the system keeps such things; --run-dir names one."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime_dir)
    one, two, free = (
        run_dir(config.load({"port": port}, file=os.devnull)) for port in (8000, 8001, 0)
    )
    assert len({one, two, free}) == 3
    assert str(os.getpid()) in free.name
    assert str(one).startswith(runtime_dir or "/tmp")
    chosen = config.load({"run_dir": "/somewhere"}, file=os.devnull)
    assert run_dir(chosen) == Path("/somewhere")
