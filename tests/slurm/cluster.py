"""A throw-away SLURM of one node: munge, MariaDB, accounting, controller and node daemon, without systemd.

The node claims more cores, memory and GPUs than it has, so that requests of real jobs can be made; nothing
enforces memory here. Everything lies in one folder. The jobs' own Snakemake drops SLURM_CONF, so the configuration
must be where SLURM looks by itself; each process of the cluster sees it there in a mount namespace of its own, and
every other process of the machine sees /etc/slurm as it is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.slurm.settings import SLURM_CONF, SLURMDBD_CONF, free_ports

PACKAGES = (
    *("munge", "slurmctld", "slurmd", "slurm-client", "slurmdbd"),
    *("mariadb-server-core", "mariadb-client-core"),
)
PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmdbd", "mariadbd", "sbatch")
CONFIGURATION = Path("/etc/slurm")
INSIDE = ("unshare", "--mount", "sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"')
ACCOUNT = "lab"
PATH = {"PATH": f"{os.environ['PATH']}:/usr/sbin"}


def missing() -> str | None:
    """Why no cluster can be started here, or None."""
    if os.geteuid() != 0:
        return "SLURM's daemons need root here"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        return "mount namespaces are not permitted here (unshare --mount)"
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH["PATH"]) is None]
    return f"not installed: {', '.join(absent)} (apt-get install {' '.join(PACKAGES)})" if absent else None


class Cluster:
    """One cluster; daemons are started and killed one by one, as tests want them.

    Args:
        home: an empty folder with a short path, since sockets lie in it.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.etc = home / "etc"
        self.inside = (*INSIDE, str(self.etc), str(CONFIGURATION))
        """Before a command: it finds this cluster, and so does whatever it starts."""
        self.environment: Mapping[str, str] = {**os.environ, **PATH}
        self._database: subprocess.Popen[bytes] | None = None

    def run(self, *command: str, check: bool = True, **more: str) -> str:
        """A command's output."""
        done = subprocess.run(
            [*self.inside, *command],
            env={**self.environment, **more},
            check=False,
            text=True,
            capture_output=True,
            timeout=120,
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}{self._logs()}")
        return done.stdout

    def start(self) -> None:
        """Starts everything; returns when the node takes jobs."""
        self.etc.mkdir()
        known = {"home": self.home, "host": socket.gethostname(), **free_ports("controller", "node", "accounting")}
        (self.etc / "slurm.conf").write_text(SLURM_CONF.format(**known))
        self._private("etc/slurmdbd.conf", SLURMDBD_CONF.format(**known))
        for index in range(2):
            (self.home / f"gpu{index}").symlink_to("/dev/null")
        (self.etc / "gres.conf").write_text(f"Name=gpu Type=a100 File={self.home}/gpu[0-1]\n")
        (self.etc / "cgroup.conf").write_text("CgroupAutomount=no\n")
        (self.home / "state").mkdir()
        self._private("munge.key", os.urandom(128))
        files = {f"--{name}": f"{self.home}/munge.{name.split('-')[0]}" for name in ("socket", "key-file", "log-file")}
        pid = ["--pid-file", f"{self.home}/munged.pid", "--seed-file", f"{self.home}/munge.seed"]
        self.run("munged", "--force", *[word for pair in files.items() for word in pair], *pid)
        self._start_database()
        self.start_accounting()
        for words in ("cluster test", f"account {ACCOUNT} cluster=test", f"user root account={ACCOUNT}"):
            self.run("sacctmgr", "-i", "-Q", "add", *words.split(), check=False)
        self.start_controller()
        self.run("slurmd")
        self.until(
            lambda: "idle" in self.run("sinfo", "-h", "-p", "cpu", "-o", "%T", check=False), "a node that is idle"
        )

    def start_accounting(self) -> None:
        """Starts slurmdbd, which may have been killed."""
        self.run("slurmdbd", MYSQL_UNIX_PORT=f"{self.home}/db.socket")
        self.until(lambda: self._answers("sacctmgr", "-n", "show", "cluster"), "an answer of the accounting")

    def start_controller(self) -> None:
        """Starts slurmctld, which may have been killed."""
        self.run("slurmctld", "-i")
        self.until(lambda: "UP" in self.run("scontrol", "ping", check=False), "an answer of the controller")

    def kill(self, daemon: str, how: signal.Signals = signal.SIGKILL) -> None:
        """Sends a daemon a signal and waits until it is gone."""
        file = self.home / f"{daemon}.pid"
        if not file.is_file():
            return
        pid = int(file.read_text())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, how)
        self.until(lambda: not _runs(pid), f"the end of {daemon}")
        file.unlink(missing_ok=True)

    def stop(self) -> None:
        """Stops everything that runs."""
        if (self.home / "slurmctld.pid").is_file():
            self.run("scancel", "--full", "--user=root", check=False)
        for daemon in ("slurmd", "slurmctld", "slurmdbd", "munged"):
            self.kill(daemon)
        if self._database is not None:
            self._database.kill()
            self._database.wait()

    def jobs(self, *filters: str) -> list[str]:
        """Numbers of the jobs in the queue."""
        return self.run("squeue", "-h", "-o", "%A", *filters).split()

    @property
    def saved_jobs(self) -> Path:
        """Where the controller keeps its jobs, some seconds behind: one that is killed sooner knows nothing of them."""
        return self.home / "state" / "job_state"

    def saved(self, *jobs: str) -> bool:
        """Whether the controller would know jobs again."""
        kept = self.saved_jobs.read_bytes() if self.saved_jobs.exists() else b""
        return all(name.encode() in kept for name in self.run("squeue", "-h", "-o", "%j", "-j", ",".join(jobs)).split())

    def until(self, holds: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
        """Waits for something; raises with the daemons' logs where it does not come."""
        end = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > end:
                raise TimeoutError(f"waited {seconds:.0f} s for {what}{self._logs()}")
            time.sleep(0.05)

    def _answers(self, *command: str) -> bool:
        done = subprocess.run([*self.inside, *command], env=self.environment, capture_output=True, check=False)
        return done.returncode == 0

    def _private(self, name: str, content: str | bytes) -> None:
        file = self.home / name
        file.touch(mode=0o600)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        file.chmod(0o600 if name != "munge.key" else 0o400)

    def _start_database(self) -> None:
        data, sock = str(self.home / "db"), str(self.home / "db.socket")
        plain = ["--no-defaults", "--user=root", f"--datadir={data}"]
        self.run("mariadb-install-db", *plain, "--skip-test-db", "--auth-root-authentication-method=normal")
        fast = [
            "--skip-networking",
            "--skip-name-resolve",
            "--innodb-log-file-size=16M",
            "--innodb-lock-wait-timeout=900",
        ]
        log = (self.home / "mariadb.log").open("wb")
        self._database = subprocess.Popen(
            ["mariadbd", *plain, f"--socket={sock}", *fast], env=self.environment, stdout=log, stderr=log
        )
        client = ("mariadb", "--no-defaults", "-S", sock, "-e")
        self.until(lambda: self._answers(*client, "select 1"), "the database")
        grant = (
            "create database accounting; create user slurm@localhost identified by 'slurm';"
            "grant all on accounting.* to slurm@localhost;"
        )
        self.run(*client, grant)

    def _logs(self) -> str:
        ends = [
            f"\n{log.name}:\n" + "\n".join(log.read_text(errors="replace").splitlines()[-8:]) for log in self._files()
        ]
        return "".join(ends)

    def _files(self) -> Iterator[Path]:
        return (log for log in sorted(self.home.glob("*.log")) if log.stat().st_size)


def _runs(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    stat = Path(f"/proc/{pid}/stat")
    return stat.is_file() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
