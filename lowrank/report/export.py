"""Results in the shape that the lr_ratio document publishes: `results_<configuration>.json`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from lowrank.errors import IntegrityError
from lowrank.files import write_json
from lowrank.report.frame import groups
from lowrank.report.text import rate

RESULT_KEYS = ("best_val_loss", "test_acc", "train_losses", "val_losses")


def write_results(runs: pd.DataFrame, by: tuple[str, ...], run_folders: Path, out: Path) -> list[str]:
    """Writes one file per configuration and seed: learning rate as text -> what the run measured.

    `train_losses` is the mean over the steps of each epoch, `val_losses` the evaluation at its end, as
    the document has them. A value that was not measured is null.

    Args:
        runs: from `read_runs`.
        by: columns that make a configuration; `lr` is never one of them.
        run_folders: where `<run>/history.parquet` lies.
        out: the folder to write to.

    Returns:
        Names of the files.
    """
    keys = (*(key for key in by if key != "lr"), "seed")
    for old in out.glob("results_*.json"):
        old.unlink()
    names = []
    for values, rows in groups(runs[runs["status"] == "ok"], keys):
        words = [
            f"{key}{rate(value)}" if key != "arm" else str(value) for key, value in values.items() if value is not None
        ]
        name = f"results_{'-'.join(word.removeprefix('budget') for word in words)}.json"
        results = {repr(float(row["lr"])): _result(row, run_folders) for _, row in rows.sort_values("lr").iterrows()}
        write_json(out / name, results)
        names.append(name)
    return names


def _result(row: pd.Series[Any], run_folders: Path) -> dict[str, Any]:
    train, val = epoch_losses(run_folders / str(row["run"]) / "history.parquet")
    values = (_plain(row.get("best_val_loss")), _plain(row.get("test_accuracy")), train, val)
    return dict(zip(RESULT_KEYS, values, strict=True))


def epoch_losses(path: Path) -> tuple[list[float], list[float]]:
    """The mean training loss of each epoch, and the validation losses, of a run's `history.parquet`.

    Raises:
        IntegrityError: no such file.
    """
    if not path.is_file():
        raise IntegrityError(f"{path}: no such file, though its run is listed as ok")
    history = pd.read_parquet(path)
    history = history[history["step"] > 0]
    steps = history[history["train_loss"].notna()]
    train = steps.groupby(steps["epoch"].apply(lambda epoch: math.ceil(round(epoch, 9))))["train_loss"].mean()
    return [float(value) for value in train], [float(value) for value in history["val_loss"].dropna()]


def _plain(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)
