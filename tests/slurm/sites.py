"""A folder on the test cluster in which Snakemake runs, and what came of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.slurm.cluster import ACCOUNT, Cluster

ROOT = Path(__file__).parents[2]
STUDY = "studies=[lr_ratio]"
SMOKE = ("scale=smoke", STUDY)
POLL = ("--lowrank-slurm-init-seconds-before-status-checks", "2")
SNAKEMAKE = [sys.executable, "-m", "snakemake"]


class Site:
    """A folder in which Snakemake runs, and what it says of the cluster."""

    def __init__(self, cluster: Cluster, folder: Path, partition: str = "cpu") -> None:
        self.cluster, self.folder = cluster, folder
        folder.mkdir(exist_ok=True)
        self.started: list[subprocess.Popen[str]] = []
        file = folder / "site.yaml"
        file.write_text(f"account: {ACCOUNT}\npartition: {partition}\n")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {**cluster.environment, "PATH": path, "LOWRANK_SITE": str(file)}

    def start(
        self, *targets: str, config: tuple[str, ...] = SMOKE, options: tuple[str, ...] = ()
    ) -> subprocess.Popen[str]:
        """Snakemake under the profile, from the root of the project as a user would call it."""
        told = ["--directory", str(self.folder), *POLL, *options, "--config", *config, "--", *targets]
        process = subprocess.Popen(
            [*self.cluster.inside, *SNAKEMAKE, "--profile", "slurm", *told],
            cwd=ROOT,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.started.append(process)
        return process

    def kill(self) -> None:
        """Ends what a test that failed left running."""
        for process in self.started:
            process.kill()
            process.wait()

    def submitted(self) -> list[str]:
        """Waits for jobs in the queue."""
        self.cluster.until(lambda: bool(self.cluster.jobs()), "a job in the queue", 300)
        return self.cluster.jobs()


def ended(process: subprocess.Popen[str], ok: bool = True, seconds: float = 600) -> str:
    said, _ = process.communicate(timeout=seconds)
    assert (process.returncode == 0) == ok, said
    return said


def scores(folder: Path) -> dict[str, object]:
    """Run -> bytes of its history and metrics of its scores, but for those that a clock or the machine decides."""
    runs = sorted((folder / "results" / "runs").iterdir())
    return {
        run.name: (
            (run / "history.parquet").read_bytes(),
            *(_exact(json.loads(file.read_text())["metrics"]) for file in sorted((run / "eval").iterdir())),
        )
        for run in runs
    }


def same(site: Site, done: Site) -> None:
    """The results are those of an undisturbed run."""
    found = scores(site.folder)
    assert found == {run: scores(done.folder)[run] for run in found}


def _exact(metrics: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in metrics.items() if not re.search(r"_s$|_speedup$|^peak_", name)}


def one_run(done: Site) -> str:
    run = next(iter(scores(done.folder)))
    return f"results/runs/{run}/manifest.json"


PLANNED = "1000M|10"
"""Memory and minutes that a pack of the smoke scale asks for."""


def asked(site: Site, since: str) -> list[str]:
    """Memory and minutes that the jobs from a number on asked for."""
    rows = site.cluster.run("sacct", "-X", "-n", "-P", "-o", "jobid,reqmem,timelimitraw").split()
    return [row.partition("|")[2] for row in rows if int(row.partition("|")[0]) >= int(since)]


def up(cluster: Cluster) -> None:
    cluster.run("scontrol", "update", "partition=cpu", "state=up")


def daemons(job: str, space: str) -> list[int]:
    """SLURM's own processes of a job, in a mount namespace: another cluster may run beside this one."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    numbers = [int(line.split()[0]) for line in listed.splitlines() if f"slurmstepd: [{job}." in line]
    return [number for number in numbers if Path(f"/proc/{number}").exists() and mounts(number) == space]


def mounts(pid: int) -> str:
    """The mount namespace of a process: all that a node's daemon starts shares its own."""
    return os.readlink(f"/proc/{pid}/ns/mnt")
