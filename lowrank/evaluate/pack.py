"""Scores the members of a pack, each into `results/runs/<run>/eval/<evaluation>.json`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from lowrank.console import say
from lowrank.data.loader import TaskBatches, open_splits
from lowrank.errors import ConfigError, IntegrityError
from lowrank.evaluate.protocol import Outcome, Protocol, Subject
from lowrank.files import MANIFEST, check_seal, read_json, write_json
from lowrank.measure import compute_device, ran_out
from lowrank.methods.chain import Chain
from lowrank.models.load import load_run
from lowrank.registry import protocol
from lowrank.run_folder import EVALUATIONS, RUNS, WEIGHTS, read_spec
from lowrank.signals import StopFlag
from lowrank.spec import EvalSpec, RunSpec


def evaluate_pack(
    runs: list[str],
    name: str,
    spec: EvalSpec,
    code: str,
    prepared: Path,
    stop: StopFlag,
    threads: int = 1,
    folder: Path = RUNS,
) -> None:
    """Scores every run that has no valid score yet.

    Args:
        runs: ids of finished runs.
        name: id of the evaluation.
        spec: its protocol.
        code: digest of the code that scores.
        prepared: folder of the prepared data to score on.
        stop: polled before each batch.
        threads: CPU threads.
        folder: where the runs lie.

    Raises:
        IntegrityError: a run's weights are missing or damaged.
        Preempted: a signal arrived; the scores that were reached are kept.
    """
    torch.set_num_threads(threads)
    poll = functools.partial(stop.check, f"runs that are scored stay so; {name} goes on with the next")
    for index, run in enumerate(runs, 1):
        path = folder / run / EVALUATIONS / f"{name}.json"
        manifest = check_seal(folder / run)
        weights = manifest["files"].get(WEIGHTS)
        if _valid(path, code, weights):
            say(f"{index}/{len(runs)} {run}: scored before")
            continue
        if manifest["status"] != "ok":
            result = _without_scores(manifest["status"], manifest["cause"])
        elif weights is None:
            raise IntegrityError(f"{folder / run}: no {WEIGHTS} was kept; `lowrank rerun {run}` trains it again")
        else:
            model, chain, batches, run_spec = restore(run, prepared, spec, folder)
            result = _score(model, chain, batches, run_spec, spec, poll)
        write_json(path, _record(name, spec, code, weights, result))
        say(f"{index}/{len(runs)} {run}: {_summary(result)}")


def restore(
    run: str, prepared: Path, spec: EvalSpec, folder: Path = RUNS
) -> tuple[nn.Module, Chain, TaskBatches, RunSpec]:
    """The trained model of a run, its chain, and the split it is scored on."""
    run_spec = read_spec(run, folder)
    device = compute_device()
    labels = read_json(prepared / MANIFEST).get("labels") or []
    model, chain = load_run(run_spec, len(labels), device)
    path = folder / run / WEIGHTS
    chain.load_changed(load_file(path), str(path))
    batches = open_splits(prepared, spec.data or run_spec.data, run_spec.task)[spec.split]
    return model, chain, batches, run_spec


def score_in_training(
    model: nn.Module,
    chain: Chain,
    run_spec: RunSpec,
    evaluations: Mapping[str, tuple[EvalSpec, Path]],
    codes: Mapping[str, str],
    folder: Path,
    poll: Callable[[], None],
    ended: tuple[str, str | None],
) -> None:
    """Scores a model whose weights are not kept, in the job that trained it; the records say so.

    Args:
        model: trained; it may be merged by this.
        chain: attached to it.
        run_spec: what was trained.
        evaluations: id -> protocol, folder of the prepared data to score on.
        codes: id -> digest of the code that scores.
        folder: the run's; the records go to `eval/` in it.
        poll: called before each batch; it raises where scoring must stop.
        ended: status and cause of the run; one that is not ok has nothing to score.
    """

    # A merge cannot be taken back from every chain, so what is scored merged comes last, and what spoils after it.
    def place(entry: tuple[str, tuple[EvalSpec, Path]]) -> tuple[bool, bool]:
        spec = entry[1][0]
        return protocol(spec.protocol).spoils, spec.merged

    for name, (spec, prepared) in sorted(evaluations.items(), key=place):
        if ended[0] == "ok":
            batches = open_splits(prepared, spec.data or run_spec.data, run_spec.task)[spec.split]
            result = _score(model, chain, batches, run_spec, spec, poll)
        else:
            result = _without_scores(*ended)
        record = _record(name, spec, codes[name], None, {**result, "evaluated_in": "training"})
        write_json(folder / EVALUATIONS / f"{name}.json", record)


def _score(
    model: nn.Module,
    chain: Chain,
    batches: TaskBatches,
    run_spec: RunSpec,
    spec: EvalSpec,
    poll: Callable[[], None],
) -> dict[str, Any]:
    device = next(model.parameters()).device
    if spec.merged and not chain.merged:
        chain.merge()
    asked = protocol(spec.protocol)(spec.options)
    try:
        found = asked.measure(Subject(model, chain, batches, run_spec, spec, device, poll))
    except Exception as error:
        if not ran_out(error):
            raise
        return _without_scores("failed", f"out of memory: {spec.protocol} does not fit beside this model")
    _only_declared(asked, found)
    if found.cause is not None:
        return _without_scores("diverged", found.cause)
    result = {"status": "ok", "cause": None, "metrics": found.metrics, "items": found.items}
    return result | ({"records": found.records} if found.records else {})


def _only_declared(asked: Protocol, found: Outcome) -> None:
    """A metric that the protocol does not name would have no column."""
    unknown = sorted(set(found.metrics) - set(asked.metrics))
    if unknown:
        raise ConfigError(f"protocol {asked.name}: gave {', '.join(unknown)}; declared: {', '.join(asked.metrics)}")


def _without_scores(status: str, cause: str | None) -> dict[str, Any]:
    return {"status": status, "cause": cause, "metrics": {}}


def _record(name: str, spec: EvalSpec, code: str, weights: str | None, result: dict[str, Any]) -> dict[str, Any]:
    plain = spec.model_dump(mode="json", exclude_defaults=True)
    return {"evaluation": name, "spec": plain, "code": code, "weights": weights, **result}


def _valid(path: Path, code: str, weights: str | None) -> bool:
    try:
        record = read_json(path)
    except IntegrityError:
        return False
    return bool(record.get("code") == code and record.get("weights") == weights and record.get("status") != "failed")


def _summary(result: dict[str, Any]) -> str:
    if not result["metrics"]:
        return f"{result['status']}, {result['cause']}"
    numbers = [f"{name} {value:.5g}" for name, value in result["metrics"].items() if isinstance(value, int | float)]
    return ", ".join(numbers)
