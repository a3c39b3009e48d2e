"""`lowrank train --processes 2`: torchrun's agent, real processes, real signals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lowrank import plan
from lowrank.files import REPOSITORY, read_json, write_json
from lowrank.needs import processes
from lowrank.site import Site, demand
from lowrank.spec import TrainSpec
from lowrank.stacks import Room, stacks
from tests.planning_lab import plan_one
from tests.training_lab import manifest, run_spec

SPEC = run_spec("lora", micro_batch_size=8, steps=40, eval_every=10)


def start(pack: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lowrank.cli", "--log", "log", "train", pack, "--processes", "2"]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )


def until_held(run: str, running: subprocess.Popen[str]) -> None:
    """Waits until the first process has begun with the run."""
    while not Path("work", run, "lock").exists():
        assert running.poll() is None, Path("log").read_text()
        time.sleep(0.02)


def workers(agent: int) -> list[int]:
    """The processes that it started, from /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == agent:
            found.append(int(stat.parent.name))
    return sorted(found)


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A pack of one run that a plan in the environment names, and the run; its scores are taken in training."""
    monkeypatch.chdir(tmp_path)
    return plan_one(SPEC, monkeypatch, keep_weights=False)


def test_asked_to_stop_and_finished(pack: tuple[str, str]) -> None:
    name, run = pack
    with start(name) as running:
        until_held(run, running)
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 75
    (saved,) = Path("work", run, "checkpoints").iterdir()
    log = Path("log").read_text()
    assert f"SIGTERM received: {run} is saved at step {int(saved.name[5:])} of 40" in log
    assert "SIGTERM received and passed on to 2 processes" in log

    with start(name) as running:
        assert running.wait(60) == 0
    log = Path("log").read_text()
    assert f"{run}: goes on from step {int(saved.name[5:])}" in log
    assert log.count("best validation loss") == 1  # one process speaks
    assert manifest(run)["provenance"]["processes"] == 2
    assert len(list(Path("results/runs", run, "eval").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("worker", [0, 1])
def test_a_process_is_killed(worker: int, pack: tuple[str, str]) -> None:
    name, run = pack
    with start(name) as running:
        until_held(run, running)
        os.kill(workers(running.pid)[worker], signal.SIGKILL)
        assert running.wait(60) == 1
        assert running.stderr is not None
        assert f"process {worker} of 2 was killed by signal 9; the log says why" in running.stderr.read()
    assert not Path("results/runs").exists()


@pytest.mark.slow
def test_the_workflow_starts_as_many_as_its_plan_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules are made in a loop, and a command that names the loop's variable would see the last pack's."""
    monkeypatch.chdir(tmp_path)
    path, made = plan.current_plan("smoke", ["velora"])
    pack = next(pack for pack in made["packs"].values() if len(pack["members"]) > 3)
    pack["processes"] = 2
    write_json(path, made)
    target = Path("results/runs", pack["members"][0], "manifest.json")
    command = ["snakemake", "--snakefile", str(REPOSITORY / "workflow" / "Snakefile"), "--cores", "2"]
    subprocess.run([*command, "--config", "scale=smoke", "studies=velora", "--", str(target)], check=True)
    assert read_json(target)["provenance"]["processes"] == 2


def test_no_rule_of_a_loop_names_its_variable_in_its_command() -> None:
    rules = (REPOSITORY / "workflow" / "rules" / "train.smk").read_text()
    commands = re.findall(r"shell:\n((?: +.*\n)+?)(?=\n| *for |\Z)", rules)
    assert len(commands) == 2
    for command in commands:
        assert re.fullmatch(r'(\s*"[^"]*"\s*)+', command), command


@pytest.mark.parametrize(
    ("batch", "micro", "most", "expected"),
    [
        (512, 128, 4, 4),
        (512, 128, 3, 2),
        (512, 128, 8, 4),
        (16, 16, 4, 1),
        (16, None, 4, 1),
        (24, 4, 4, 3),
        (20, 8, 4, 3),
    ],
)
def test_as_many_processes_as_share_the_micro_batches_evenly(
    batch: int, micro: int | None, most: int, expected: int
) -> None:
    train = TrainSpec(lr=1e-3, steps=1, batch_size=batch, micro_batch_size=micro)
    assert processes([train], most) == expected


def test_a_job_with_several_gpus_is_one_task_on_one_node() -> None:
    needs = {"mem_mb": 1000, "minutes": 30}
    assert demand(Site(), {**needs, "gpus": 4}, 1, False) | {"gpu": 4, "nodes": 1} == demand(
        Site(), {**needs, "gpus": 4}, 1, False
    )
    assert "nodes" not in demand(Site(), {**needs, "gpus": 1}, 1, False)
    assert not [key for key in demand(Site(), {**needs, "gpus": 4}, 1, False) if key.startswith("tasks")]


def test_members_are_not_stacked_by_several_processes() -> None:
    specs = [run_spec("lora", lr=lr, dropout=0.0) for lr in (1e-3, 2e-3)]
    assert [stack.members for stack in stacks(specs, 4, Room(10**10))] == [(0, 1)]
    found = stacks(specs, 4, Room(10**10, processes=2))
    assert [(stack.members, stack.why) for stack in found] == [((n,), "2 processes train each") for n in range(2)]
