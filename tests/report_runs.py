"""Made-up runs for the tests of the report: a known optimum for each configuration, and small seed noise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

PAIRS = {8: (4, 8, 32), 16: (8, 16, 32), 32: (8, 16, 32, 64), 64: (8, 32, 64, 128), 128: (8, 32, 128, 256)}
FULL_LRS = (3e-6, 1e-5, 3e-5, 1e-4, 3e-4)
LORA_LRS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
FULL_BEST = 3e-5


def published_ratio(rank: int, alpha: float) -> float:
    """The document's general pattern, followed to the letter."""
    return 10.0 if alpha <= rank else 10 / 3


def make_runs(
    seeds: tuple[int, ...] = (42, 43, 44),
    noise: float = 0.001,
    ratio: Any = published_ratio,
    pairs: dict[int, tuple[int, ...]] = PAIRS,
    long: bool = True,
) -> pd.DataFrame:
    """One row per run, as `lowrank.collect` writes them; loss is a parabola in log lr around a known optimum."""
    points = [("full", None, None, lr, FULL_BEST, None) for lr in FULL_LRS]
    points += [
        ("lora", rank, alpha, lr, FULL_BEST * ratio(rank, alpha), None)
        for rank, alphas in pairs.items()
        for alpha in alphas
        for lr in LORA_LRS
    ]
    if long:
        points += [("full", None, None, lr, FULL_BEST, 10) for lr in FULL_LRS]
        points += [
            ("lora", rank, rank // (2 if rank == 32 else 1), lr, FULL_BEST * best, 10)
            for rank, best in ((32, 10.0), (64, 10 / 3))
            for lr in LORA_LRS
        ]
    rows = [_row(*point, seed, noise) for point in points for seed in seeds]
    return pd.DataFrame(rows)


def _row(
    arm: str, rank: Any, alpha: Any, lr: float, best: float, epochs: Any, seed: int, noise: float
) -> dict[str, Any]:
    rng = np.random.default_rng([seed, int(lr * 1e9), rank or 0, alpha or 0, epochs or 0])
    away = math.log10(lr / best)
    loss = (0.24 if arm == "full" else 0.25) + 0.04 * away**2 + noise * float(rng.standard_normal())
    run = f"{arm}-r{rank}-a{alpha}-lr{lr:g}-e{epochs}-s{seed}"
    norm = 22 + 3 * math.sqrt(lr / 3e-4)
    return {
        "arm": arm,
        "run": run,
        "pack": f"{arm}-0",
        "status": "ok",
        "cause": "",
        "rank": rank,
        "alpha": alpha,
        "lr": lr,
        "seed": seed,
        "epochs": epochs or 5,
        "batch_size": 32,
        "steps": 1565,
        "best_val_loss": loss,
        "last_val_loss": loss + 0.01,
        "last_train_loss": loss - 0.1,
        "test_accuracy": 0.918 - 0.01 * (math.log10(lr / best) + 0.25) ** 2,
        "test_loss": loss,
        "trainable_parameters": 1000 * (rank or 66000),
        "train_time_s": 60.0,
        "weight_norm_mean": norm,
        "delta_norm_mean": 0.5 * math.sqrt(lr / best) if arm == "full" else 0.6 * math.sqrt(lr / best),
        "device": "test device",
        "data_title": "AG News",
        "model_title": "DistilBERT",
    }


METRICS = (
    "steps",
    "best_val_loss",
    "last_val_loss",
    "last_train_loss",
    "test_accuracy",
    "test_loss",
    "weight_norm_mean",
    "delta_norm_mean",
)


def spoil(runs: pd.DataFrame, where: pd.Series[bool], status: str, cause: str) -> pd.DataFrame:
    """Runs that never gave a metric."""
    spoiled = runs.copy()
    spoiled.loc[where, ["status", "cause"]] = [status, cause]
    spoiled.loc[where, list(METRICS)] = float("nan")
    return spoiled


def write_runs(runs: pd.DataFrame, folder: Path, histories: Path | None = None) -> Path:
    """Writes `runs.csv`, and where asked a short history for each run that is ok."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "runs.csv"
    runs.to_csv(path, index=False)
    if histories is not None:
        for _, row in runs[runs["status"] == "ok"].iterrows():
            (histories / row["run"]).mkdir(parents=True, exist_ok=True)
            history = {
                "step": [0, 1, 2, 3, 4],
                "epoch": [0.0, 0.5, 1.0, 1.5, 2.0],
                "train_loss": [None, 1.4, 1.2, 0.8, 0.6],
                "val_loss": [1.4, None, 0.9, None, row["best_val_loss"]],
            }
            pd.DataFrame(history).to_parquet(histories / row["run"] / "history.parquet")
    return path
