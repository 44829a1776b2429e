"""One real Slurm cluster of a single node, with a login host behind a real sshd.

Four daemons of Debian's packages (munged, slurmctld, slurmd, sshd) run in a folder of the test's
own, on free ports, as the user who runs the tests; each is stopped by its process id.

Slurm 22.05, which Debian has, cannot print ``scontrol --json``; flytekit's Slurm plugin reads it.
The sessions of this login host therefore find a small ``scontrol`` first in their PATH, which
prints what the real one says in the JSON of newer releases (23.11 and later: ``job_state`` is a
list) and leaves every other call to the real one. The plugin itself is not touched.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sshd", "ssh-keygen", "sbatch", "scancel", "scontrol")
PACKAGES = "munge slurmctld slurmd slurm-client openssh-server"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PATIENCE = 30.0

SLURM_CONF = """\
ClusterName=tests
SlurmctldHost={hostname}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_min_interval=0
MailProg=/bin/true
ReturnToService=2
KillWait=2
NodeName=node NodeHostname={hostname} NodeAddr=127.0.0.1 Port={node} CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=node Default=YES OverSubscribe=FORCE:8 MaxTime=10 State=UP
"""

SSHD_CONF = """\
ListenAddress 127.0.0.1
Port {login}
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/client_key.pub
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
Subsystem sftp internal-sftp
SetEnv SLURM_CONF={folder}/slurm.conf PATH={folder}/bin:{path}
"""

# An alias that works, and one whose port nobody listens on.
CLIENT_CONF = """\
Host login
    HostName 127.0.0.1
    Port {login}
    IdentityFile {folder}/client_key
Host refused
    HostName 127.0.0.1
    Port {refused}
    IdentityFile {folder}/client_key
"""

SCONTROL = """\
#!{python} -IS
import json, os, subprocess, sys

if sys.argv[1:4] != ["--json", "show", "job"]:
    os.execv({real!r}, ["scontrol", *sys.argv[1:]])
told = subprocess.run([{real!r}, "show", "job", sys.argv[4]], capture_output=True, text=True)
if told.returncode:
    sys.stderr.write(told.stderr)
    sys.exit(told.returncode)
says = dict(word.split("=", 1) for word in told.stdout.split() if "=" in word)
job = {{
    "job_id": int(says["JobId"]),
    "job_state": [says["JobState"]],
    "standard_output": says["StdOut"],
}}
print(json.dumps({{"jobs": [job]}}))
"""


def find(program: str) -> str:
    """Return where a program is; many of these are not on an ordinary user's PATH."""
    return shutil.which(program, path=SYSTEM_PATH) or ""


def need_slurm() -> None:
    """Skip the module, loudly, where the programs are missing."""
    if missing := Slurm.missing():
        pytest.skip(
            f"NO JOB RUNS ON SLURM: {', '.join(missing)} not found; `apt-get install "
            f"--no-install-recommends {PACKAGES}`",
            allow_module_level=True,
        )


def free_ports(count: int) -> list[int]:
    """Find ports that are free now, all at once so that they differ."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            found.append(int(listener.getsockname()[1]))
        return found


class Slurm:
    """A running cluster and its login host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.user = getpass.getuser()
        self.port, self.refused_port, self._controller, self._node = free_ports(4)
        self.work = folder / "work"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    @staticmethod
    def missing() -> list[str]:
        """Return the programs that are not installed here."""
        return [program for program in PROGRAMS if not find(program)]

    @property
    def home(self) -> Path:
        """A home for a connector's process; its ssh config knows ``login`` and ``refused``."""
        return self.folder / "home"

    @property
    def key_file(self) -> Path:
        return self.folder / "client_key"

    @property
    def private_key(self) -> str:
        return self.key_file.read_text()

    def __enter__(self) -> Self:
        try:
            self._write()
            self._start_cluster()
            self.answer()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        if "slurmctld" in self._daemons:
            with contextlib.suppress(subprocess.SubprocessError):
                self._tell("scancel", "--user", self.user)
                # A job's processes outlive the daemons, so they go first.
                self._until(lambda: not self._tell("squeue", "--noheader"), "no job runs")
        for name in reversed(list(self._daemons)):
            self._stop(name)

    def answer(self) -> None:
        """Open the login host's door."""
        if os.geteuid() == 0:  # sshd of root does not start without
            Path("/run/sshd").mkdir(exist_ok=True)
        self._run("sshd", "-D", "-e", "-f", str(self.folder / "sshd_config"))
        self._until(self._hears, "sshd listens")

    def hang_up(self) -> None:
        """Refuse new logins, and cut the sessions that are open."""
        self._stop("sshd")

    def state(self, job: str) -> str:
        """Return a job's state in Slurm's own word, such as RUNNING."""
        told = self._tell("scontrol", "show", "job", job)
        words = dict(word.split("=", 1) for word in told.split() if "=" in word)
        return words["JobState"]

    def jobs(self) -> set[str]:
        """Return the ids of all jobs that the cluster remembers."""
        told = self._tell("scontrol", "--oneliner", "show", "job")
        return {word.removeprefix("JobId=") for word in told.split() if word.startswith("JobId=")}

    def _write(self) -> None:
        for name in ("state", "spool", "work", "bin", "home/.ssh"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "home/.ssh").chmod(0o700)
        facts = {
            "folder": self.folder,
            "hostname": socket.gethostname().split(".")[0],
            "user": self.user,
            "controller": self._controller,
            "node": self._node,
            "login": self.port,
            "refused": self.refused_port,
            "cpus": os.cpu_count() or 1,
            "path": SYSTEM_PATH,
            "python": sys.executable,
            "real": find("scontrol"),
        }
        for name, text in (
            ("slurm.conf", SLURM_CONF),
            ("sshd_config", SSHD_CONF),
            ("home/.ssh/config", CLIENT_CONF),
            ("bin/scontrol", SCONTROL),
        ):
            (self.folder / name).write_text(text.format(**facts))
        (self.folder / "bin/scontrol").chmod(0o755)
        for name in ("host_key", "client_key"):
            words = ("-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name))
            subprocess.run([find("ssh-keygen"), *words], check=True, timeout=PATIENCE)
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(1024))

    def _start_cluster(self) -> None:
        munge = {
            "socket": "munge.socket",
            "key-file": "munge.key",
            "pid-file": "munge.pid",
            "log-file": "munge.log",
            "seed-file": "munge.seed",
        }
        flags = [f"--{flag}={self.folder / name}" for flag, name in munge.items()]
        # Forced: the folder is closed to other users, and nobody else has to reach the socket.
        self._run("munged", "--foreground", "--force", *flags)
        self._until((self.folder / "munge.socket").exists, "munged listens")
        conf = str(self.folder / "slurm.conf")
        self._run("slurmctld", "-D", "-f", conf)
        self._run("slurmd", "-D", "-N", "node", "-f", conf)
        self._until(self._idle, "the node is idle")

    def _idle(self) -> bool:
        with contextlib.suppress(subprocess.SubprocessError):
            return self._tell("sinfo", "--noheader", "--format=%T").strip() == "idle"
        return False

    def _hears(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def _tell(self, program: str, *arguments: str) -> str:
        return subprocess.run(
            [find(program), *arguments],
            check=True,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=self._environ(),
        ).stdout

    def _environ(self) -> dict[str, str]:
        return {"PATH": SYSTEM_PATH, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def _run(self, program: str, *arguments: str) -> None:
        with (self.folder / f"{program}.out").open("ab") as out:
            # Tests that are killed leave no cluster behind.
            leash = [find("setpriv"), "--pdeathsig", "KILL"] if find("setpriv") else []
            self._daemons[program] = subprocess.Popen(
                [*leash, find(program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self._environ(),
                start_new_session=True,
            )

    def _stop(self, name: str) -> None:
        daemon = self._daemons.pop(name)
        # sshd's sessions outlive it; they are its children, and so ours to end.
        sessions = _children(daemon.pid) if name == "sshd" else []
        daemon.terminate()
        try:
            daemon.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        for session in sessions:
            with contextlib.suppress(ProcessLookupError):
                os.kill(session, signal.SIGKILL)

    def _until(self, holds: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not holds():
            for name, daemon in self._daemons.items():
                said = (self.folder / f"{name}.out").read_text(errors="replace")
                assert daemon.poll() is None, f"{name} ended: {said[-2000:]}"
            assert time.monotonic() < end, f"never: {what}"
            time.sleep(0.05)


def _children(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child, *_children(child)]
    return found
