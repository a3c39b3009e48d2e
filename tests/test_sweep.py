"""The LR-ratio document's command line, end to end at smoke scale."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank import cli, sweep
from lowrank.errors import ConfigError
from lowrank.spec import RunSpec
from lowrank.train.loop import Loop
from tests.training_lab import manifest


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Types the command; its exit code."""
    monkeypatch.setattr(sys, "argv", ["lowrank", "sweep", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def results(path: str = "results.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(path).read_text())
    return found


SMALL = ("--scale", "smoke", "--rank", "4", "--alpha", "8", "--epochs", "2")


def test_results_in_the_documents_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "--lrs", "1e-3", "5e-3", *SMALL, "--batch_size", "16", "--seed", "3") == 0
    found = results()
    assert list(found) == ["0.001", "0.005"]
    for entry in found.values():
        assert set(entry) == {"best_val_loss", "test_acc", "train_losses", "val_losses"}
        assert len(entry["train_losses"]) == len(entry["val_losses"]) == 2
        assert entry["best_val_loss"] == min(entry["val_losses"])
        assert 0 <= entry["test_acc"] <= 1
    assert found["0.001"] != found["0.005"]
    runs = [path.name for path in Path("results/runs").iterdir()]
    assert len(runs) == 2
    assert all(name.startswith("lora-r4-a8-") and "-s3-" in name for name in runs)


def test_a_learning_rate_that_is_added_is_the_only_one_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "--lrs", "1e-3", *SMALL) == 0
    taken: list[int] = []
    inner = Loop.one_step
    monkeypatch.setattr(Loop, "one_step", lambda self, step: taken.append(step) or inner(self, step))
    first = results()
    assert run(monkeypatch, "--lrs", "1e-3", "2e-3", *SMALL, "--out", "more.json") == 0
    assert taken == [0, 1, 2, 3]
    assert results("more.json")["0.001"] == first["0.001"]


def test_full_fine_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "--lrs", "1e-3", "--full-finetune", "--scale", "smoke", "--epochs", "1") == 0
    (name,) = (path.name for path in Path("results/runs").iterdir())
    assert name.startswith("full-lr1e-3-s42-")
    metrics = manifest(name)["metrics"]
    assert metrics["trainable_parameters"] == metrics["parameters"]


def test_a_diverged_rate_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loop, "one_step", lambda self, step: torch.tensor(float("nan")))
    assert run(monkeypatch, "--lrs", "1e-3", *SMALL) == 0
    assert results()["0.001"] == {"best_val_loss": None, "test_acc": None, "train_losses": [], "val_losses": []}


def test_the_documents_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(sweep, "run_sweep", lambda *told: asked.append(told))
    assert run(monkeypatch) == 0
    ((told, scale, out, threads),) = asked
    assert (scale, out, threads) == ("laptop", Path("results.json"), 1)
    expected = {"lrs": (1e-4, 5e-4, 1e-3), "epochs": 5, "rank": 128, "alpha": 256, "batch_size": 32, "seed": 42}
    assert told.model_dump() == {**expected, "full_finetune": False}


def test_the_protocol_is_that_of_the_study() -> None:
    asked = sweep.Sweep(lrs=(1e-3,), epochs=2, rank=4, alpha=8, batch_size=16, seed=0, full_finetune=False)
    (spec,) = sweep.specs(asked, "paper")
    assert isinstance(spec, RunSpec)
    assert (spec.train.weight_decay, spec.train.schedule, spec.data.pad) == (0.001, "constant", "max_length")
    (lora,) = spec.chain
    assert (lora.rank, lora.alpha, lora.head) == (4, 8, "adapted")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--lrs", "-1e-3"), r"lowrank sweep: lrs\.0: -0\.001 is out of range, allowed: > 0"),
        (("--alpha", "0"), r"lowrank sweep: alpha: 0\.0 is out of range"),
        (("--scale", "smok"), r"lowrank sweep: unknown scale 'smok'; did you mean 'smoke'"),
        (("--scale", "smoke"), r"lora: rank 128 is too large for 'bert"),
    ],
)
def test_refusals_before_anything_is_fetched(
    arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *arguments) == ConfigError.exit_code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(Path().iterdir())
