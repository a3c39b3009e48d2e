"""A site whose jobs have a middle: a patch that they load holds training after its third step."""

from __future__ import annotations

from pathlib import Path

from tests.slurm.cluster import Cluster
from tests.slurm.sites import Site, same

PATCH = """\
import os, signal, sys, time
if "--log" in sys.orig_argv and "train" in sys.orig_argv:
    from lowrank.signals import StopFlag
    from lowrank.train import pack
    from lowrank.train.loop import Loop
    folder, inner_step, inner_poll, taken, hoard = {folder!r}, Loop.take_step, Loop.poll, [], []
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
            if os.path.exists(folder + "/greedy") and not hoard:
                hoard.append(b"x" * 900_000_000)
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
