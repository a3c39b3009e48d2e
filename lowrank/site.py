"""`site.yaml`: what a lab's cluster is called and has, in one file that git ignores.

Nothing heavy is imported: the Snakefile reads it in every job.
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowrank.accounting import ENOUGH, Short
from lowrank.errors import ConfigError
from lowrank.files import REPOSITORY
from lowrank.gpus import GpuFacts, gpu_facts
from lowrank.strict import PositiveInt, Strict, parse
from lowrank.yaml_files import read_yaml

ENVIRONMENT = "LOWRANK_SITE"
"""Names another file than `site.yaml` in the project's root."""

PREEMPTIBLE_ATTEMPTS = 4
"""So many attempts of a job may be pre-empted; what follows goes to the ordinary partition, so that the work ends."""

MOST_MEMORY = 4
"""A job asks for at most so many times the memory that is planned, however often it ran out."""

EXAMPLE = REPOSITORY / "workflow" / "profiles" / "site.example.yaml"


class Gpu(Strict):
    """One kind of accelerator."""

    model: str | None = None
    """As `sinfo -o %G` spells it, such as a100, for `--gpus=<model>:1`; None takes any."""
    memory_gb: PositiveInt = 80
    """Of one; decides how many runs of a pack train together."""
    partition: str | None = None
    """For jobs with a GPU."""
    preemptible_partition: str | None = None
    """Tried first under `--profile slurm-preemptible`."""
    cpus: PositiveInt = 8
    """CPU cores that a job with one of them gets."""

    def facts(self) -> GpuFacts:
        """What it can do."""
        return gpu_facts(self.model, self.memory_gb)


class Site(Strict):
    """A cluster, as far as jobs need to know it. Every key may be left out: SLURM's own default is taken then."""

    account: str | None = None
    """`--account` of every job."""
    partition: str | None = None
    """For jobs without a GPU."""
    qos: str | None = None
    """`--qos` of every job."""
    constraint: str | None = None
    """`--constraint` of every job."""
    gpu: Gpu = Gpu()
    modules: tuple[str, ...] = ()
    """Environment modules that every job loads."""
    setup: tuple[str, ...] = ()
    """Shell commands that every job runs first, such as `source /sw/cuda.sh`."""
    sbatch: tuple[str, ...] = ()
    """Further options of sbatch."""
    max_runtime_minutes: PositiveInt = 24 * 60
    """No job asks for more: the time limit of the partitions. A longer pack goes on in further jobs."""
    warn_seconds: PositiveInt = 120
    """Seconds before its time limit at which a job is told to save and stop."""

    def prefix(self) -> str:
        """What stands before each job's command."""
        loads = [f"module load {' '.join(map(shlex.quote, self.modules))}"] if self.modules else []
        return "".join(f"{command}; " for command in [*loads, *self.setup])

    def jobs_for(self, minutes: float) -> int:
        """How many jobs, one after another, something takes that goes on from its checkpoint after a time limit."""
        return max(1, math.ceil(minutes / self.max_runtime_minutes))


def site_file(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the site is described."""
    return Path(environment.get(ENVIRONMENT) or REPOSITORY / "site.yaml")


def read_site(environment: Mapping[str, str] = os.environ) -> Site:
    """The site of this checkout; all defaults where no file describes it.

    Raises:
        ConfigError: a file that was named is not there, or a fault in it.
    """
    path = site_file(environment)
    if not path.is_file():
        if environment.get(ENVIRONMENT):
            raise ConfigError(f"{ENVIRONMENT}={path}: no such file; begin with a copy of {EXAMPLE}")
        return Site()
    return parse(Site, read_yaml(path) or {}, str(path))


def demand(
    site: Site, needs: Mapping[str, Any], attempt: int, preemptible: bool, short: Short = ENOUGH
) -> dict[str, Any]:
    """What a job asks the scheduler for, in the words of Snakemake's SLURM plugin.

    Each job that ran out of memory adds what is planned once more, and each that ran out of time likewise; what else
    ended a job raises neither.

    Args:
        site: the cluster.
        needs: `mem_mb`, `minutes` and `gpus` of the plan.
        attempt: counted from 1.
        preemptible: whether the first `PREEMPTIBLE_ATTEMPTS` go to the pre-emptible partition.
        short: earlier jobs for the same work that had asked for too little.
    """
    gpus = int(needs["gpus"])
    asked: dict[str, Any] = {
        "mem_mb": int(needs["mem_mb"]) * min(1 + len(short.memory), MOST_MEMORY),
        "runtime": min(int(needs["minutes"]) * (1 + len(short.time)), site.max_runtime_minutes),
        "slurm_account": site.account,
        "slurm_partition": site.gpu.partition if gpus else site.partition,
        "qos": site.qos,
        "constraint": site.constraint,
        "slurm_extra": " ".join([f"--signal=TERM@{site.warn_seconds}", *site.sbatch]),
    }
    if gpus:
        # One task has them all: its processes find each other on one node.
        asked |= {"gpu": gpus, "gpu_model": site.gpu.model, "nodes": 1 if gpus > 1 else None}
        if preemptible and site.gpu.preemptible_partition and attempt <= PREEMPTIBLE_ATTEMPTS:
            asked["slurm_partition"] = site.gpu.preemptible_partition
    return {name: value for name, value in asked.items() if value is not None}
