"""A copy of the project in which a test may edit anything and run Snakemake at smoke scale."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
_NOT_COPIED = ("downloads", "prepared")
COPIED = (
    *("lowrank", "workflow", "config.yaml", "envs", "slurm", "slurm-preemptible"),
    *(f"resources/{path.name}" for path in (ROOT / "resources").iterdir() if path.name not in _NOT_COPIED),
)
SNAKEMAKE = [sys.executable, "-m", "snakemake", "--cores", "2", "--config", "scale=smoke"]


class Lab:
    """A checkout of its own.

    Args:
        folder: where it lies; the outputs lie there too, as for a user.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def new(cls, folder: Path) -> Lab:
        for name in COPIED:
            source, target = ROOT / name, folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, target)
        return cls(folder)

    def only(self, study: str) -> Lab:
        """The same with one study: what the workflow does with one it does with five, in a fifth of the time."""
        for path in (self.folder / "workflow" / "studies").glob("*.yaml"):
            if path.stem != study:
                path.unlink()
        return self

    def copy(self, folder: Path) -> Lab:
        """The same with everything that was computed; times are kept, since Snakemake reads them."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Lab(folder)

    def snakemake(self, *arguments: str, ok: bool = True) -> str:
        """Runs Snakemake and returns what it printed."""
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(
            [*SNAKEMAKE, *arguments], cwd=self.folder, capture_output=True, text=True, check=False, env=environment
        )
        said = done.stdout + done.stderr
        assert (done.returncode == 0) == ok, said
        return said

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.folder / name
        text = path.read_text()
        assert old in text, f"{old!r} is not in {name}"
        path.write_text(text.replace(old, new, 1))

    def runs(self) -> dict[str, int]:
        """Each run and the inode of its spec, which changes only when the run is trained again."""
        specs = (self.folder / "results" / "runs").glob("*/spec.json")
        return {path.parent.name: path.stat().st_ino for path in specs}


def planned(said: str, rule: str) -> int:
    """How many jobs of rules whose name starts so stand in Snakemake's table of jobs."""
    table = said.split("Job stats:")[-1].split("\n\n")[0]
    rows = [line.split() for line in table.splitlines()]
    return sum(int(row[1]) for row in rows if len(row) == 2 and row[0].startswith(rule) and row[1].isdigit())
