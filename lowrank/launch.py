"""Starts a command in several processes of this machine through torchrun's own agent, and ends as they do."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from lowrank.errors import LowrankError, Preempted

SIGNALS = "SIGTERM,SIGUSR1,SIGINT,SIGHUP,SIGQUIT"
"""Passed on to every process: torchrun's own, and the one that some clusters send before the end."""

SAVING_S = 300
"""Seconds that the processes have to save and stop, once they were told to."""


class _Ended(LowrankError):
    """One of the processes failed: the command ends with its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def launch(arguments: Sequence[str], processes: int) -> None:
    """Runs `lowrank` with the arguments in several processes, each with a rank; returns when all are done.

    The same as `torchrun --standalone --nproc-per-node <processes> -m lowrank.cli <arguments>`, except for the exit
    code, which is that of the process that failed first, where torchrun's is always 1.

    Args:
        arguments: of the command line.
        processes: how many.

    Raises:
        Preempted: a signal arrived, and was passed on.
        LowrankError: a process failed; its sentence is in the log.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=str(os.getpid()),
        max_restarts=0,  # whoever started this command retries it
        signals_to_handle=SIGNALS,
        shutdown_timeout=SAVING_S,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "lowrank.cli", *arguments)
    except SignalException as told:
        raise Preempted(f"{told.sigval.name} received and passed on to {processes} processes; see the log") from None
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        code = failure.exitcode
        if code == Preempted.exit_code:
            raise Preempted(f"process {rank} of {processes} was asked to stop; all have saved and stopped") from None
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise _Ended(f"process {rank} of {processes} {how}; the log says why", max(1, code)) from None
