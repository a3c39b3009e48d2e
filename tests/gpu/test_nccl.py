"""A process under torchrun whose gradients NCCL sums: what one GPU can show of several, which cannot share it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.gpu.lab import assert_like, cuda_alone, train
from tests.gpu.ranked import NCCL, SPEC
from tests.tolerances import PROCESSES

pytestmark = cuda_alone

ONE_PROCESS = ("--standalone", "--nproc-per-node", "1")


def test_the_losses_of_a_process_alone() -> None:
    """The same micro-batches, all-reduced over one process: the collectives run, in the order that several need."""
    runs = train(SPEC)
    root = str(Path(__file__).parents[2])
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *ONE_PROCESS, "-m", "tests.gpu.ranked"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    said = json.loads(ended.stdout.strip().splitlines()[-1])
    assert said == {"alone": True, "count": 1, "backend": "nccl", "stopped": False}
    assert_like(SPEC, NCCL, runs, PROCESSES)
