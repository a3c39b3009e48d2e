"""What clusters do to a job in the middle of its training: it goes on from its checkpoint, to the same bits.

A patch that the jobs load holds training after its third step, so that there is a middle. A node cannot be lost here
without losing the machine, so its failure is declared to the controller; everything else is done for real.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.sites import ROOT, SNAKEMAKE, Site, daemons, ended, mounts, one_run, scores, up

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800), pytest.mark.slow]

PATCH = """\
import os, signal, sys, time
if "--log" in sys.orig_argv and "train" in sys.orig_argv:
    from lowrank.signals import StopFlag
    from lowrank.train import pack
    from lowrank.train.loop import Loop
    folder, inner_step, inner_poll, taken = {folder!r}, Loop.take_step, Loop.poll, []
    pack.CHECKPOINT_EVERY_S = 0.0
    if os.path.exists(folder + "/deaf"):
        StopFlag.install = lambda self: (signal.signal(signal.SIGTERM, signal.SIG_IGN), self)[1]
    def take_step(self, step):
        inner_step(self, step)
        open(folder + "/steps", "a").write(f"{{os.getpid()}} {{step}}\\n")
        taken.append(step)
    def holds(self):
        return len(taken) >= 5 if os.path.exists(folder + "/always") else self.step >= 3
    def poll(self, stop, label):
        while os.path.exists(folder + "/slow") and holds(self) and not stop:
            time.sleep(0.1)
        inner_poll(self, stop, label)
    Loop.take_step, Loop.poll = take_step, poll
"""


class SlowSite(Site):
    """A site whose jobs stand still after their third step until they are told to hurry, or to stop."""

    def __init__(self, cluster: Cluster, folder: Path, partition: str = "cpu") -> None:
        super().__init__(cluster, folder, partition)
        self.patch = folder / "patch"
        self.patch.mkdir()
        (self.patch / "sitecustomize.py").write_text(PATCH.format(folder=str(self.patch)))
        (self.patch / "slow").touch()
        with (folder / "site.yaml").open("a") as file:
            file.write(f"setup: ['export PYTHONPATH={self.patch}:$PYTHONPATH']\n")

    def steps(self) -> list[tuple[int, int]]:
        """Process and number of each step that was taken."""
        file = self.patch / "steps"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(int(pid), int(step)) for pid, step in map(str.split, lines)]

    def training(self) -> tuple[str, int]:
        """Waits until a job is at its third step; the job and its process that trains."""
        self.cluster.until(lambda: any(step >= 2 for _, step in self.steps()), "a third step", 600)
        (job,) = self.cluster.jobs()
        return job, self.steps()[-1][0]

    def processes(self) -> int:
        """How many trained, each from where the one before had stopped."""
        pids = list(dict.fromkeys(pid for pid, _ in self.steps()))
        each = [[step for pid, step in self.steps() if pid == own] for own in pids]
        assert [steps[0] for steps in each[1:]] == [steps[-1] + 1 for steps in each[:-1]]
        return len(pids)

    def hurry(self) -> None:
        (self.patch / "slow").unlink()

    def stopped(self, job: str) -> None:
        """Waits until a job runs no more, then lets the next one pass."""
        self.cluster.until(lambda: job not in self.cluster.jobs("-t", "running,completing"), "the job's end", 600)
        self.hurry()

    def went_on(self, done: Site) -> None:
        """The second process went on where the first had stopped, and the results are those of an undisturbed run."""
        assert self.processes() == 2
        same(self, done)


def same(site: Site, done: Site) -> None:
    """The results are those of an undisturbed run."""
    found = scores(site.folder)
    assert found == {run: scores(done.folder)[run] for run in found}


@pytest.fixture
def slow(cluster: Cluster, site: Site) -> Iterator[SlowSite]:
    up(cluster)
    slow = SlowSite(cluster, site.folder)
    yield slow
    slow.kill()


def limits(site: Site, since: int) -> list[str]:
    """Minutes that the jobs after a number asked for."""
    rows = site.cluster.run("sacct", "-X", "-n", "-P", "-o", "jobid,timelimitraw").split()
    return [row.split("|")[1] for row in rows if int(row.split("|")[0]) >= since]


def limited(slow: SlowSite, done: Site, minutes: int) -> tuple[str, str]:
    """A job that gets a time limit while it trains: its number, and what was said when all had ended."""
    process = slow.start(one_run(done))
    job, _ = slow.training()
    slow.cluster.run("scontrol", "update", f"jobid={job}", f"timelimit={minutes}")
    slow.stopped(job)
    return job, ended(process)


def test_a_job_is_warned_before_its_time_limit_and_gets_more(slow: SlowSite, done: Site) -> None:
    # The warning comes two minutes before the limit, so with a limit of two minutes it comes at once.
    job, said = limited(slow, done, minutes=2)
    assert "SIGTERM received" in said
    assert "FAILED: its command failed" in said
    assert limits(slow, int(job))[-1] == "20"
    slow.went_on(done)


def test_a_job_that_passes_its_time_limit_gets_more(slow: SlowSite, done: Site) -> None:
    (slow.patch / "deaf").touch()
    job, said = limited(slow, done, minutes=1)
    assert "TIMEOUT: it reached its time limit; the next attempt has more and goes on from its checkpoint" in said
    assert limits(slow, int(job))[-1] == "20"
    slow.went_on(done)


def test_a_pack_longer_than_a_job_may_be_goes_on_in_job_after_job(slow: SlowSite, done: Site) -> None:
    """Each job takes five of sixteen steps; the retries that were given alone would not do."""
    (slow.patch / "always").touch()
    with (slow.folder / "site.yaml").open("a") as file:
        file.write("max_runtime_minutes: 2\nwarn_seconds: 30\n")
    process = slow.start(one_run(done), options=("--retries", "1"))
    job, _ = slow.training()
    ended(process, seconds=1200)
    assert set(limits(slow, int(job))) == {"2"}
    assert slow.processes() == 4
    same(slow, done)


def test_a_job_that_is_cancelled_while_it_trains(slow: SlowSite, done: Site) -> None:
    process = slow.start(one_run(done))
    job, _ = slow.training()
    slow.cluster.run("scancel", job)
    slow.stopped(job)
    assert "CANCELLED: it was cancelled" in ended(process)
    slow.went_on(done)


def test_a_worker_that_is_killed(slow: SlowSite, done: Site) -> None:
    process = slow.start(one_run(done))
    job, pid = slow.training()
    os.kill(pid, signal.SIGKILL)
    slow.stopped(job)
    said = ended(process)
    assert f"SLURM job {job}: " in said
    slow.went_on(done)


def test_a_job_that_vanishes_from_its_node(cluster: Cluster, slow: SlowSite, done: Site) -> None:
    """SLURM's own processes of the job are killed too; it finds out when the node is next asked, and says NODE_FAIL."""
    process = slow.start(one_run(done))
    job, pid = slow.training()
    ours = daemons(job, mounts(pid))
    assert len(ours) == 2
    for number in ours:
        os.kill(number, signal.SIGKILL)
    os.killpg(os.getpgid(pid), signal.SIGKILL)  # with the job's own Snakemake, which nobody would end
    cluster.run("scontrol", "reconfigure")
    slow.stopped(job)
    start_now(cluster, job)
    ended(process)
    assert "NODE_FAIL" in cluster.run("sacct", "-X", "-n", "-D", "-j", job, "-o", "state%20")
    slow.went_on(done)


def test_the_node_daemon_that_is_killed_comes_back_to_its_job(slow: SlowSite, done: Site) -> None:
    process = slow.start(one_run(done))
    _, pid = slow.training()
    slow.cluster.kill("slurmd")
    slow.cluster.run("slurmd")
    slow.hurry()
    said = ended(process)
    assert "Trying to restart" not in said
    assert {own for own, _ in slow.steps()} == {pid}, "one process trained from beginning to end"


def start_now(cluster: Cluster, job: str) -> None:
    """A job that comes back waits two minutes; not here."""
    cluster.until(lambda: bool(cluster.jobs("-t", "pending", "-j", job)), "the job back in the queue", 300)
    cluster.run("scontrol", "update", f"jobid={job}", "starttime=now")


def test_pre_emption_with_requeue_keeps_the_job(cluster: Cluster, slow: SlowSite, done: Site) -> None:
    cluster.run("scontrol", "update", "partition=gpu-preempt", "preemptmode=requeue")
    file = slow.folder / "site.yaml"
    file.write_text(file.read_text().replace("partition: cpu", "partition: gpu-preempt"))
    process = slow.start(one_run(done))
    job, _ = slow.training()
    cluster.run("srun", "-p", "cpu", "-c", "16", "--mem", "500", "true")
    slow.stopped(job)
    start_now(cluster, job)
    said = ended(process)
    assert "Trying to restart" not in said, "Snakemake has not noticed"
    slow.went_on(done)


def test_a_lost_node_injected(cluster: Cluster, slow: SlowSite, done: Site) -> None:
    process = slow.start(one_run(done))
    job, pid = slow.training()
    space = mounts(pid)
    node = cluster.run("sinfo", "-h", "-o", "%n").split()[0]
    cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    os.killpg(os.getpgid(pid), signal.SIGKILL)  # what runs on it is lost too, and warned by nobody
    slow.stopped(job)
    cluster.until(lambda: not daemons(job, space), "a node without the job")
    cluster.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)  # it may be back by itself
    start_now(cluster, job)
    ended(process)
    slow.went_on(done)


@pytest.mark.timeout(5400)
def test_all_studies(cluster: Cluster, tmp_path: Path) -> None:
    here, there = Site(cluster, tmp_path / "cluster"), tmp_path / "local"
    up(cluster)
    ended(here.start("all", config=("scale=smoke",)), seconds=3600)
    told = ["--cores", "2", "--directory", str(there), "--config", "scale=smoke", "--", "all"]
    subprocess.run([*SNAKEMAKE, *told], cwd=ROOT, env=here.environment, check=True, capture_output=True)
    assert scores(here.folder) == scores(there)
    assert len(scores(there)) > 100
