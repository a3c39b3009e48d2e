"""Snakemake's SLURM executor, asked more patiently: what a cluster does to its scheduler loses no job.

It submits and cancels as `snakemake-executor-plugin-slurm` does, and differs in how it watches:

- The controller is asked first (`squeue`), the accounting (`sacct`) only for jobs it has forgotten. So an outage
  of the accounting is not noticed, and one of the controller is waited out. The stock plugin forgets its jobs
  when a query fails, and waits for ever.
- A job that was pre-empted or lost its node may come back by itself; one that does not is a failure after
  `GRACE_S`, as is one that the controller lost. The stock plugin waits for ever.
- Jobs are asked after at a steady interval. The stock plugin's grows to three minutes, which every retry pays.
- What the accounting says of a job that ended is recorded, for the report and for the next attempt: the rules ask for
  more memory or time where the record says that there was too little. A job that does is announced with its cause.
- It refuses to start beside jobs of an earlier call in the same folder, which would write the same files.

Snakemake finds it by the name of this package: `executor: lowrank-slurm`.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncGenerator
from typing import Any

from snakemake_executor_plugin_slurm import Executor as SlurmExecutor
from snakemake_executor_plugin_slurm import ExecutorSettings, common_settings
from snakemake_interface_common.exceptions import WorkflowError

from lowrank.accounting import Short, job_name, ran_short, record
from lowrank.site import read_site
from snakemake_executor_plugin_lowrank_slurm.watching import (
    CONTROLLER,
    EARLIER,
    accounting,
    bare,
    earlier_jobs,
    has_ended,
    judge,
    states,
    told,
    usage,
)

__all__ = ["Executor", "ExecutorSettings", "common_settings"]

QUERY_TIMEOUT_S = 60.0

RECORD_TRIES = 5
"""How often the accounting is asked, a second apart, until it knows that a job has ended."""


class Executor(SlurmExecutor):  # type: ignore[misc]  # the plugin has no types
    """Submits through the stock plugin; watches by itself."""

    def __init__(self, workflow: Any, logger: Any) -> None:
        # Before super(): it starts the thread that watches, which would die of a missing attribute unheard.
        self._first_seen: dict[tuple[str, str], float] = {}
        self._told_outage = False
        super().__init__(workflow, logger)

    def __post_init__(self, test_mode: bool = False) -> None:
        """Refuses to start beside jobs of an earlier call."""
        super().__post_init__(test_mode)
        prefix = self.workflow.executor_settings.jobname_prefix or "lowrank"
        listed = subprocess.run(EARLIER, capture_output=True, text=True, check=False)
        running = earlier_jobs(listed.stdout, f"{prefix}_", os.getcwd())
        if running:
            numbers = " ".join(running)
            raise WorkflowError(
                f"{len(running)} jobs of an earlier call still run in this folder: {numbers}. They would write the "
                f"same files as new ones. Wait until they are done (squeue -j {','.join(running)}), or stop them: "
                f"scancel {numbers}"
            )

    def run_job_pre(self, job: Any) -> None:
        """Announces a job; says so where it asks for more than the plan does, and why."""
        super().run_job_pre(job)
        if any(short := _short(job)):
            asked = f"{job.resources.mem_mb} MB and {job.resources.runtime} minutes"
            self.logger.info(f"Job {job.jobid} ({_name(job)}) asks for {asked}, since of its earlier jobs {short}.")

    async def check_active_jobs(self, active_jobs: list[Any]) -> AsyncGenerator[Any, None]:
        """Reports what ended; yields what is still to be watched."""
        self.next_seconds_between_status_checks = self.workflow.executor_settings.init_seconds_before_status_checks
        known = await self._states([job.external_jobid for job in active_jobs]) if active_jobs else {}
        for job in active_jobs:
            if known is None:  # nobody answered
                yield job
                continue
            state = known.get(job.external_jobid, "")
            found = judge(state, self._seconds_in(job.external_jobid, state))
            if found is None:
                yield job
                continue
            await self._record(job, state)
            if found == "":
                self._forget_log(job)
                self.report_job_success(job)
            else:
                logs = [str(log)] if (log := job.aux.get("slurm_logfile")) else []
                why = f" ({short})" if any(short := _short(job.job)) else ""
                self.report_job_error(job, msg=f"SLURM job {job.external_jobid}: {found}{why}. ", aux_logs=logs)

    async def _record(self, job: Any, state: str) -> None:
        """Notes what the accounting says of a job that ended; only how it ended where it does not answer."""
        known = bare(job.external_jobid, state)
        for _ in range(RECORD_TRIES):
            printed = await _ask(usage(job.external_jobid))
            if printed is None:
                break
            if has_ended(printed):
                known = printed
                break
            await asyncio.sleep(1)  # the accounting hears of the end a little later than the controller
        record(_name(job.job), known)

    async def _states(self, jobs: list[str]) -> dict[str, str] | None:
        """Job -> state; None where neither the controller nor the accounting answered."""
        answer = await _ask([*CONTROLLER, self.run_uuid])
        found = {} if answer is None else states(answer)
        forgotten = [job for job in jobs if job not in found]
        printed = await _ask(accounting(forgotten)) if forgotten else None
        if printed is not None:
            found |= told(printed, forgotten, controller_answers=answer is not None)
        silent = answer is None and printed is None
        if silent != self._told_outage:
            self._told_outage = silent
            self.logger.warning(
                "SLURM does not answer; its jobs go on, and are asked after until it does."
                if silent
                else "SLURM answers again."
            )
        return None if silent else found

    def _seconds_in(self, job: str, state: str) -> float:
        """How long a job has been seen in a state, by this process."""
        now = time.monotonic()
        if (job, state) not in self._first_seen:
            for key in [key for key in self._first_seen if key[0] == job]:
                del self._first_seen[key]
            self._first_seen[job, state] = now
        return now - self._first_seen[job, state]

    def _forget_log(self, job: Any) -> None:
        log = job.aux.get("slurm_logfile")
        if log is not None and not self.workflow.executor_settings.keep_successful_logs:
            log.unlink(missing_ok=True)


def _name(job: Any) -> str:
    return job_name(job.name, () if job.is_group() else job.wildcards)


def _short(job: Any) -> Short:
    return ran_short(_name(job), read_site().warn_seconds)


async def _ask(command: list[str]) -> str | None:
    """What a command printed; None where it failed or did not answer in time."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
    except FileNotFoundError:
        return None
    try:
        printed, _ = await asyncio.wait_for(process.communicate(), QUERY_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        return None
    return printed.decode() if process.returncode == 0 else None
