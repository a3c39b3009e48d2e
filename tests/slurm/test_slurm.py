"""`snakemake --profile slurm` on a real SLURM: the results of a local run, whatever happens to the jobs."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from lowrank.accounting import RECORD, record
from tests.slurm.cluster import ACCOUNT, CONFIGURATION, Cluster
from tests.slurm.sites import PLANNED, ROOT, SMOKE, SNAKEMAKE, STUDY, Site, asked, ended, one_run, same, scores, up

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]


def test_the_cluster_gives_what_one_machine_gives(done: Site, tmp_path: Path) -> None:
    told = ["--cores", "2", "--directory", str(tmp_path), "--config", *SMOKE, "--", "all"]
    subprocess.run([*SNAKEMAKE, *told], cwd=ROOT, env=done.environment, check=True, capture_output=True)
    assert scores(tmp_path) == scores(done.folder)
    assert (done.folder / "reports" / "index.html").is_file()


def test_the_machine_outside_sees_no_cluster(cluster: Cluster) -> None:
    file = CONFIGURATION / "slurm.conf"
    assert str(cluster.home) in cluster.run("cat", str(file))
    assert not file.exists() or str(cluster.home) not in file.read_text()


def test_jobs_ask_for_what_the_plan_says(done: Site) -> None:
    asked = done.cluster.run("sacct", "-X", "-n", "-P", "-o", "account,partition,reqmem,timelimitraw,jobname").split()
    assert asked
    for account, partition, memory, minutes, name in (line.split("|") for line in asked):
        assert (account, partition, memory, minutes) == (ACCOUNT, "cpu", "1000M", "10")
        assert name.startswith("lowrank_")


def test_what_jobs_used_stands_beside_the_plan(done: Site) -> None:
    """What the accounting said of every job, and the front page's table of it."""
    rows = done.cluster.run("sacct", "-X", "-n", "-P", "-o", "jobid,elapsedraw").split()
    lines = [line.split("|") for line in (done.folder / "logs" / "slurm" / "used.txt").read_text().splitlines()]
    assert sorted(f"{line[1]}|{line[3]}" for line in lines if "." not in line[1]) == sorted(rows)
    assert all(line[2] == "COMPLETED" and line[0].startswith("train_") for line in lines)
    held = [int(line[6].removesuffix("K")) * 1024 for line in lines if line[6]]
    assert max(held) > 2e8, "torch alone takes more than 200 MB"
    page = (done.folder / "reports" / "index.html").read_text()
    seconds = sum(int(line[3]) for line in lines if "." not in line[1])
    assert "Planned against used" in page
    assert f"{seconds / 3600:.2f}" in page


def test_a_second_call_submits_nothing(done: Site) -> None:
    assert "Nothing to be done" in ended(done.start("all"))


def test_a_cancelled_job_is_submitted_again(site: Site, done: Site) -> None:
    process = site.start(one_run(done))
    first = site.submitted()
    site.cluster.run("scancel", *first)
    up(site.cluster)
    said = ended(process)
    assert "CANCELLED: it was cancelled" in said
    assert asked(site, first[0]) == [PLANNED, PLANNED], "no cause to ask for more"
    same(site, done)


@pytest.mark.parametrize("daemon", ["slurmdbd", "slurmctld"])
def test_an_outage_is_waited_out(daemon: str, site: Site, done: Site) -> None:
    """The stock executor forgets its jobs then, and waits for ever."""
    process = site.start(one_run(done))
    jobs = site.submitted()
    if daemon == "slurmdbd":  # the job runs and ends while the accounting is away
        site.cluster.kill(daemon)
        up(site.cluster)
        said = ended(process)
        site.cluster.start_accounting()
    else:
        site.cluster.until(lambda: site.cluster.saved(*jobs), "a controller that has saved the job")
        site.cluster.kill(daemon)
        time.sleep(25)  # two looks at the queue
        assert process.poll() is None
        site.cluster.start_controller()
        up(site.cluster)
        said = ended(process)
    assert "1 of 1 steps (100%) done" in said
    assert len(jobs) == 1
    same(site, done)


def test_jobs_of_a_killed_snakemake_are_not_doubled(site: Site, done: Site) -> None:
    first = site.start(one_run(done))
    jobs = site.submitted()
    first.send_signal(signal.SIGKILL)
    first.communicate()
    told = ["--unlock", "--cores", "1", "--directory", str(site.folder), "--config", *SMOKE]
    subprocess.run([*SNAKEMAKE, *told], cwd=ROOT, env=site.environment, check=True, capture_output=True)
    said = ended(site.start(one_run(done)), ok=False)
    assert f"1 jobs of an earlier call still run in this folder: {jobs[0]}" in said
    assert f"scancel {jobs[0]}" in said
    assert site.cluster.jobs() == jobs
    rule = site.cluster.run("squeue", "-h", "-o", "%k", "-j", jobs[0]).strip().removeprefix("rule_")
    record(rule, f"{jobs[0]}|TIMEOUT|600|10|1000M||", site.folder / RECORD)
    site.cluster.run("scancel", *jobs)
    site.cluster.until(lambda: not site.cluster.jobs(), "an empty queue")
    up(site.cluster)
    said = ended(site.start(one_run(done)))
    assert f"asks for 1000 MB and 20 minutes, since of its earlier jobs {jobs[0]} ran out of time" in said
    assert asked(site, jobs[0]) == [PLANNED, "1000M|20"], "what an earlier call had learnt is not forgotten"
    same(site, done)


def test_a_scale_that_nobody_named_is_refused(done: Site, tmp_path: Path) -> None:
    """--config on the command line replaces the profile's own, and laptop scale is no use on a cluster."""
    said = ended(Site(done.cluster, tmp_path / "other").start("all", config=(STUDY,)), ok=False)
    assert "no scale was given for this cluster" in said
    assert done.cluster.jobs() == []


@pytest.mark.slow
def test_a_job_that_the_controller_lost_is_submitted_again(site: Site, done: Site) -> None:
    """A controller that is killed within seconds of a submission has not saved it: nobody waits for such a job."""
    before = site.cluster.saved_jobs.read_bytes()
    process = site.start(one_run(done))
    (lost,) = site.submitted()
    site.cluster.kill("slurmctld")
    for name in ("job_state", "job_state.old"):
        site.cluster.saved_jobs.with_name(name).write_bytes(before)
    site.cluster.start_controller()
    assert site.cluster.jobs() == []
    up(site.cluster)
    assert "LOST: the controller does not know it" in ended(process)
    assert asked(site, lost)[-1] == PLANNED
    same(site, done)


@pytest.mark.slow
def test_a_job_that_is_pre_empted_for_good_is_submitted_again(cluster: Cluster, site: Site, done: Site) -> None:
    """PreemptMode=CANCEL: the stock executor takes PREEMPTED for a job that comes back, and waits for ever."""
    up(cluster)
    cluster.run("scontrol", "update", "partition=gpu-preempt", "preemptmode=cancel")
    other = Site(cluster, site.folder, partition="gpu-preempt")
    process = other.start(one_run(done))
    cluster.until(lambda: bool(cluster.jobs("-t", "running")), "a job that runs", 300)
    (job,) = cluster.jobs()
    cluster.run("srun", "-p", "cpu", "-c", "16", "--mem", "500", "sleep", "1")
    assert "PREEMPTED: it was pre-empted and not requeued" in ended(process)
    assert asked(other, job)[-1] == PLANNED
    same(other, done)
