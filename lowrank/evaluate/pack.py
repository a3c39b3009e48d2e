"""Scores the members of a pack, each into `results/runs/<run>/eval/<evaluation>.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from lowrank.console import say
from lowrank.data.loader import TaskBatches, open_splits
from lowrank.errors import IntegrityError
from lowrank.evaluate.score import Score, score
from lowrank.files import MANIFEST, check_seal, read_json, write_json
from lowrank.methods.chain import Chain
from lowrank.models.load import load_model
from lowrank.run_folder import EVALUATIONS, RUNS, WEIGHTS, read_spec
from lowrank.signals import StopFlag
from lowrank.spec import EvalSpec, RunSpec
from lowrank.tasks import task


def evaluate_pack(
    runs: list[str],
    name: str,
    spec: EvalSpec,
    code: str,
    prepared: Path,
    stop: StopFlag,
    threads: int = 1,
    folder: Path = RUNS,
    force: bool = False,
) -> None:
    """Scores every run that has no valid score yet.

    Args:
        runs: ids of finished runs.
        name: id of the evaluation.
        spec: its protocol.
        code: digest of the code that scores.
        prepared: folder of the prepared data to score on.
        stop: polled between runs.
        threads: CPU threads.
        folder: where the runs lie.
        force: score again what has been scored.

    Raises:
        IntegrityError: a run's weights are missing or damaged.
        Preempted: a signal arrived; the scores that were reached are kept.
    """
    torch.set_num_threads(threads)
    for index, run in enumerate(runs, 1):
        path = folder / run / EVALUATIONS / f"{name}.json"
        manifest = check_seal(folder / run)
        weights = manifest["files"].get(WEIGHTS)
        if not force and _valid(path, code, weights):
            say(f"{index}/{len(runs)} {run}: scored before")
            continue
        if manifest["status"] != "ok":
            write_json(path, _record(name, spec, code, weights, {"status": manifest["status"], "metrics": {}}))
            continue
        if weights is None:
            raise IntegrityError(f"{folder / run}: no {WEIGHTS} was kept; `lowrank rerun {run}` trains it again")
        model, chain, batches, run_spec = restore(run, prepared, spec, folder)
        result = _score(model, chain, batches, run_spec, spec)
        write_json(path, _record(name, spec, code, weights, result))
        say(f"{index}/{len(runs)} {run}: {_summary(result)}")
        stop.check(f"{index} of {len(runs)} runs are scored")


def restore(
    run: str, prepared: Path, spec: EvalSpec, folder: Path = RUNS
) -> tuple[nn.Module, Chain, TaskBatches, RunSpec]:
    """The trained model of a run, its chain, and the split it is scored on."""
    run_spec = read_spec(run, folder)
    labels = read_json(prepared / MANIFEST).get("labels") or []
    model = load_model(run_spec.model, run_spec.task, len(labels), run_spec.seed)
    chain = Chain.build(run_spec.chain).attach(model, run_spec.seed)
    path = folder / run / WEIGHTS
    chain.load_changed(load_file(path), str(path))
    batches = open_splits(prepared, spec.data or run_spec.data, run_spec.task)[spec.split]
    return model, chain, batches, run_spec


def score_in_training(
    model: nn.Module, chain: Chain, prepared: Path, run_spec: RunSpec, name: str, spec: EvalSpec, code: str, path: Path
) -> None:
    """Scores a model whose weights are not kept, in the job that trained it; the record says so."""
    batches = open_splits(prepared, spec.data or run_spec.data, run_spec.task)[spec.split]
    result = _score(model, chain, batches, run_spec, spec)
    write_json(path, _record(name, spec, code, None, {**result, "evaluated_in": "training"}))


def _score(model: nn.Module, chain: Chain, batches: TaskBatches, run_spec: RunSpec, spec: EvalSpec) -> dict[str, Any]:
    device = next(model.parameters()).device
    if spec.merged:
        chain.merge()
    with chain.eval_mode():
        result = score(model, task(run_spec.task), batches, spec.batch_size, device)
    return {"status": "ok", "metrics": _metrics(result), "items": _items(result)}


def _metrics(result: Score) -> dict[str, float]:
    return {
        "loss": result.loss,
        "perplexity": result.perplexity,
        "accuracy": result.accuracy,
        "units": result.units,
    }


def _items(result: Score) -> dict[str, list[float]]:
    """Each unit's own loss and correctness, for intervals over test items."""
    return {
        "loss": [round(value, 6) for value in result.losses.tolist()],
        "correct": [int(value) for value in result.correct.tolist()],
    }


def _record(name: str, spec: EvalSpec, code: str, weights: str | None, result: dict[str, Any]) -> dict[str, Any]:
    plain = spec.model_dump(mode="json", exclude_defaults=True)
    return {"evaluation": name, "spec": plain, "code": code, "weights": weights, **result}


def _valid(path: Path, code: str, weights: str | None) -> bool:
    try:
        record = read_json(path)
    except IntegrityError:
        return False
    return bool(record.get("code") == code and record.get("weights") == weights)


def _summary(result: dict[str, Any]) -> str:
    metrics = result["metrics"]
    return f"loss {metrics['loss']:.4f}, accuracy {metrics['accuracy']:.4f} over {metrics['units']}"
