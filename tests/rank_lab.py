"""Several processes of one run, forked from the test: no start-up to pay, everything else as under torchrun."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

from lowrank.errors import LowrankError
from lowrank.signals import StopFlag
from lowrank.train.pack import Pack, follow, train_pack
from lowrank.train.ranks import Ranks, join


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        port: int = listening.getsockname()[1]
    return port


def in_ranks(count: int, work: Callable[[Ranks], Any]) -> list[int]:
    """Runs `work` in forked processes that have joined; their exit codes, or minus the signals that ended them."""
    environment = {"WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    pids = []
    for rank in range(count):
        sys.stderr.flush()
        pids.append(os.fork())
        if pids[-1] == 0:
            code = 1
            try:
                sys.stderr = os.fdopen(2, "w", buffering=1)  # pytest put something else there
                os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                work(join())
                code = 0
            except LowrankError as error:
                print(f"rank {rank}: {error}", file=sys.stderr)
                code = error.exit_code
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def train_in(count: int, pack: Pack, flag: Callable[[int], StopFlag] = lambda rank: StopFlag()) -> list[int]:
    """Trains a pack in several processes; `flag` gives each its own."""

    def work(ranks: Ranks) -> None:
        if ranks.first:
            train_pack(pack, flag(ranks.rank), ranks=ranks)
        else:
            follow(pack, flag(ranks.rank), ranks)

    return in_ranks(count, work)
