"""What clusters do to a job in the middle of its training: it goes on from its checkpoint, to the same bits.

A node cannot be lost here
without losing the machine, so its failure is declared to the controller; everything else is done for real.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.sites import PLANNED, ROOT, SNAKEMAKE, Site, asked, daemons, ended, mounts, one_run, same, scores, up
from tests.slurm.slow_site import SlowSite

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800), pytest.mark.slow]


@pytest.fixture
def slow(cluster: Cluster, site: Site) -> Iterator[SlowSite]:
    up(cluster)
    slow = SlowSite(cluster, site.folder)
    yield slow
    slow.kill()


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
    assert asked(slow, job)[-1] == "1000M|20"
    assert f"asks for 1000 MB and 20 minutes, since of its earlier jobs {job} ran out of time" in said
    slow.went_on(done)


def test_a_job_that_passes_its_time_limit_gets_more(slow: SlowSite, done: Site) -> None:
    (slow.patch / "deaf").touch()
    job, said = limited(slow, done, minutes=1)
    assert "TIMEOUT: it reached its time limit" in said
    assert asked(slow, job)[-1] == "1000M|20"
    assert f"asks for 1000 MB and 20 minutes, since of its earlier jobs {job} ran out of time" in said
    slow.went_on(done)


def test_a_job_that_uses_more_memory_than_it_asked_for_gets_more(slow: SlowSite, done: Site) -> None:
    """The node looks at what each job holds once a second, and kills one that holds too much."""
    process = slow.start(one_run(done))
    job, _ = slow.training()
    (slow.patch / "greedy").touch()
    slow.stopped(job)
    said = ended(process)
    assert f"SLURM job {job}: FAILED: its command failed ({job} ran out of memory)" in said
    assert asked(slow, job) == [PLANNED, "2000M|10"]
    assert f"asks for 2000 MB and 10 minutes, since of its earlier jobs {job} ran out of memory" in said
    slow.went_on(done)


def test_a_pack_longer_than_a_job_may_be_goes_on_in_job_after_job(slow: SlowSite, done: Site) -> None:
    """Each job takes five of sixteen steps; the retries that were given alone would not do."""
    (slow.patch / "always").touch()
    with (slow.folder / "site.yaml").open("a") as file:
        file.write("max_runtime_minutes: 2\nwarn_seconds: 30\n")
    process = slow.start(one_run(done), options=("--retries", "1"))
    job, _ = slow.training()
    ended(process, seconds=1200)
    assert set(asked(slow, job)) == {"1000M|2"}
    assert slow.processes() == 4
    same(slow, done)


def test_a_job_that_is_cancelled_while_it_trains(slow: SlowSite, done: Site) -> None:
    process = slow.start(one_run(done))
    job, _ = slow.training()
    slow.cluster.run("scancel", job)
    slow.stopped(job)
    assert "CANCELLED: it was cancelled" in ended(process)
    assert asked(slow, job) == [PLANNED, PLANNED]
    slow.went_on(done)


def test_a_worker_that_is_killed(slow: SlowSite, done: Site) -> None:
    process = slow.start(one_run(done))
    job, pid = slow.training()
    os.kill(pid, signal.SIGKILL)
    slow.stopped(job)
    said = ended(process)
    assert f"SLURM job {job}: " in said
    assert asked(slow, job) == [PLANNED, PLANNED]
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

    def missed() -> bool:
        """The controller asks its node anew; it forgives the absence of a job that it takes for a young one."""
        cluster.run("scontrol", "reconfigure")
        time.sleep(5)
        return job not in cluster.jobs("-t", "running")

    cluster.until(missed, "a controller that misses the job", 300)
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
