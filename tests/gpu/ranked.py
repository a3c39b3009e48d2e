"""One process of torchrun: trains the run of `test_nccl` with gradients that NCCL sums; prints what it was."""

from __future__ import annotations

import json
from pathlib import Path

import torch.distributed as dist

from lowrank.signals import StopFlag
from lowrank.train.pack import train_pack
from lowrank.train.ranks import ALONE, ManyRanks, join
from tests.training_lab import pack_of, run_spec

SPEC = run_spec([{"part": "lora", "dropout": 0.0}], dropout=0.0, micro_batch_size=4, clip_norm=1.0)
NCCL = Path("nccl")


def main() -> None:
    """As `join` makes several processes; of one it makes none."""
    alone = join() is ALONE
    ranks = ManyRanks("nccl")
    train_pack(pack_of(SPEC, runs=NCCL, work=Path("work_nccl")), StopFlag(), ranks=ranks)
    stopped = bool(ranks.agreed(StopFlag()))
    print(json.dumps({"alone": alone, "count": ranks.count, "backend": dist.get_backend(), "stopped": stopped}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
