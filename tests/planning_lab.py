"""A plan of one run: apart from the training lab, whose users look at what training alone imports."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowrank import plan
from lowrank.planning import Planner
from lowrank.spec import EvalSpec, RunSpec
from tests.training_lab import prepared


def plan_one(spec: RunSpec, monkeypatch: pytest.MonkeyPatch, *, keep_weights: bool) -> tuple[str, str]:
    """A plan of one run in the environment, as the workflow would name it; returns pack and run."""
    planner = Planner("smoke")
    run = planner.add_run(spec, "study", keep_weights)
    planner.add_packs("study", ["lr"], {"test": EvalSpec(split="test")}, size=1, mem_mb=0)
    plan.write_plan(Path("plan.json"), planner.plan())
    monkeypatch.setenv(plan.ENVIRONMENT, str(Path("plan.json").resolve()))
    prepared(spec)
    (pack,) = planner.packs
    return pack, run
