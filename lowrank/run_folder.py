"""The folder of a run: what lies in it, when it is valid, how it is sealed and read back."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lowrank.errors import IntegrityError
from lowrank.files import MANIFEST, check_seal, locked, read_json
from lowrank.spec import RunSpec
from lowrank.strict import parse

RUNS = Path("results/runs")
WORK = Path("work")
SPEC, WEIGHTS, HISTORY = "spec.json", "weights.safetensors", "history.parquet"
EVALUATIONS, OBSERVED = "eval", "observed"


def finished(run: str, code: str, needs: Collection[str] = (), runs: Path = RUNS) -> dict[str, Any] | None:
    """The manifest of a run that is whole and was trained by this code, or None.

    Args:
        run: run id.
        code: the digest of the code that would train it now.
        needs: files that it must hold, beside those that every run holds.
        runs: where runs lie.
    """
    try:
        manifest = check_seal(runs / run)
    except IntegrityError:
        return None
    return manifest if manifest.get("code") == code and manifest["files"].keys() >= set(needs) else None


def holding(run: str, work: Path = WORK) -> contextlib.AbstractContextManager[None]:
    """Keeps other processes from training or forgetting a run while the block runs.

    Raises:
        LowrankError: another process is at it.
    """
    return locked(work / run / "lock", f"{run}: another process is training it; wait for it, or end it")


def read_spec(run: str, runs: Path = RUNS) -> RunSpec:
    """The spec of a run that was trained.

    Raises:
        IntegrityError: no such run, or its spec cannot be read.
    """
    path = runs / run / SPEC
    return parse(RunSpec, read_json(path)["spec"], str(path))


def forget(run: str, runs: Path = RUNS, work: Path = WORK) -> bool:
    """Removes a run and its unfinished work, so that it is trained again; says whether there was any.

    Raises:
        LowrankError: another process is training it.
    """
    folders = [folder for folder in (runs / run, work / run) if folder.exists()]
    if not folders:
        return False
    with holding(run, work):
        for folder in folders:
            # The manifest goes first: a run whose removal is cut short is not valid any more.
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder)
        shutil.rmtree(work / run, ignore_errors=True)  # the lock
    return True
