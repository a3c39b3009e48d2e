"""The plan: each thing once, packs by what members share, a cache that knows what it depends on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lowrank import asked, plan
from lowrank.errors import ConfigError
from lowrank.files import read_json
from lowrank.planning import Planner, make_plan
from lowrank.spec import EvalSpec, RunSpec
from lowrank.study import SCALES, Scale, studies
from tests.training_lab import run_spec

TEST = {"test": EvalSpec()}


def packs_of(planner: Planner) -> list[list[str]]:
    return sorted(sorted(pack["members"]) for pack in planner.packs.values())


def test_runs_that_differ_in_packed_axes_only_are_one_pack() -> None:
    planner = Planner("smoke")
    runs = {
        (rank, lr, seed): planner.add_run(run_spec([{"part": "lora", "rank": rank}], lr=lr, seed=seed), "s", True)
        for rank in (2, 4)
        for lr in (1e-2, 1e-3)
        for seed in (0, 1)
    }
    planner.add_packs("s", ["lr", "seed"], TEST, size=64, mem_mb=1)
    expected = [sorted(run for (rank, _, _), run in runs.items() if rank == wanted) for wanted in (2, 4)]
    assert packs_of(planner) == sorted(expected)


def test_chains_share_a_pack_where_a_study_says_so() -> None:
    planner = Planner("smoke")
    runs = {chain: planner.add_run(run_spec(chain), "s", False) for chain in ("lora", "hira", "full")}
    planner.add_packs("s", ["chain"], TEST, size=64, mem_mb=1)
    (pack,) = planner.packs.values()
    assert sorted(pack["members"]) == sorted(runs.values())
    assert pack["name"].startswith("several-")
    codes = {chain: planner.runs[run]["code"] for chain, run in runs.items()}
    assert len(set(codes.values())) == 3, "each member is known by the code of its own parts"
    apart = Planner("smoke")
    for chain in runs:
        apart.add_run(run_spec(chain), "s", False)
    apart.add_packs("s", [], TEST, size=64, mem_mb=1)
    assert {chain: apart.runs[run]["code"] for chain, run in runs.items()} == codes


def test_data_waits_for_the_card_that_holds_the_tokenizer() -> None:
    planner = Planner("smoke")
    text = {"card": "smoke_text", "train_rows": None, "validation_rows": None, "test_rows": None}
    raw = {**run_spec("full").model_dump(), "task": "causal_lm", "model": {"card": "smoke_gpt"}, "chain": "full"}
    planner.add_run(RunSpec.model_validate({**raw, "data": text}), "s", True)
    (data,) = planner.data.values()
    assert data["cards"] == ["smoke_gpt", "smoke_bert", "smoke_text"]
    assert {"smoke_gpt", "smoke_bert", "smoke_text"} == planner.cards.keys()


def test_a_pack_is_cut_where_it_is_too_large() -> None:
    planner = Planner("smoke")
    for seed in range(5):
        planner.add_run(run_spec(seed=seed), "s", True)
    planner.add_packs("s", ["seed"], TEST, size=2, mem_mb=1)
    assert sorted(map(len, packs_of(planner))) == [1, 2, 2]


def test_a_dotted_axis_packs_that_one_alone() -> None:
    planner = Planner("smoke")
    for dropout in (0.1, 0.2):
        planner.add_run(run_spec([{"part": "lora", "dropout": dropout}]), "s", True)
    planner.add_packs("s", ["model.dropout"], TEST, size=64, mem_mb=1)
    assert len(planner.packs) == 2


def two_studies(order: list[tuple[str, bool]]) -> dict[str, Any]:
    """Two studies share a run; one keeps its weights."""
    planner = Planner("smoke")
    for owner, keep in order:
        planner.add_run(run_spec(), owner, keep)
    for owner, _ in order:
        planner.add_packs(owner, ["lr"], {owner: EvalSpec(rows=len(owner))}, size=64, mem_mb=1)
    return planner.plan()


def test_a_shared_run_is_trained_once_and_kept_where_one_study_keeps_it() -> None:
    for made in (two_studies([("a", False), ("bb", True)]), two_studies([("bb", True), ("a", False)])):
        (run,), (pack,) = made["runs"].values(), made["packs"].values()
        assert sorted(run["owners"]) == sorted(pack["owners"]) == ["a", "bb"]
        assert run["keep_weights"] is pack["keep_weights"] is True
        assert len(pack["evaluations"]) == 2


def test_where_no_weights_are_kept_the_code_that_scores_trains_anew() -> None:
    """The scores are taken in the training job, so they are part of the run."""
    kept, not_kept = (next(iter(two_studies([("a", keep)])["runs"].values())) for keep in (True, False))
    assert kept["evaluate_code"] == not_kept["evaluate_code"]
    assert kept["code"] != not_kept["code"]


def test_a_plan_is_cached_until_something_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    calls: list[list[str]] = []

    def computes(command: list[str], **kwargs: Any) -> Any:
        calls.append(command)
        plan.write_plan(Path(command[command.index("--out") + 1]), {"scale": "smoke"})
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(plan.subprocess, "run", computes)
    path, made = plan.current_plan("smoke", ["a"])
    assert made == {"scale": "smoke"}
    assert plan.current_plan("smoke", ["a"])[0] == path
    assert len(calls) == 1
    assert plan.current_plan("laptop", ["a"])[0] != path
    assert plan.current_plan("smoke", ["a", "b"])[0] != path
    assert len(calls) == 3


def test_old_plans_are_dropped(tmp_path: Path) -> None:
    for number in range(12):
        plan.write_plan(tmp_path / f"plan-{number:02}.json", {})
    assert len(list(tmp_path.iterdir())) == 8


def test_what_the_planning_process_says_is_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="unknown study 'no_such'"):
        plan.current_plan("smoke", ["no_such"])
    assert not list(tmp_path.glob("**/*.json"))


def test_a_command_outside_the_workflow_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(plan.ENVIRONMENT, raising=False)
    with pytest.raises(ConfigError, match="LOWRANK_PLAN is not set"):
        plan.load_plan()


def test_reading_a_plan_imports_nothing_heavy() -> None:
    code = "import sys, lowrank.plan, lowrank.settings; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not {"torch", "numpy", "transformers", "pandas"} & loaded


def test_the_plan_holds_which_runs_train_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the memory of the job holds; on a GPU that is the site's, so another site is another plan."""
    site = tmp_path / "site.yaml"
    monkeypatch.setenv("LOWRANK_SITE", str(site))

    def sizes(memory_gb: int, mem_mb: int, gpus: int) -> list[int]:
        site.write_text(f"gpu: {{memory_gb: {memory_gb}}}\n")
        planner = Planner("smoke")
        runs = [planner.add_run(run_spec("lora", lr=lr, dropout=0.0), "s", True) for lr in (1e-2, 1e-3, 1e-4)]
        planner.add_packs("s", ["lr"], TEST, size=64, mem_mb=mem_mb, gpus=gpus)
        (pack,) = planner.packs.values()
        assert sorted(run for stack in pack["stacks"] for run in stack["members"]) == sorted(runs)
        return [len(stack["members"]) for stack in pack["stacks"]]

    assert sizes(1, 1000, 0) == sizes(1, 1, 1) == [3]
    assert sizes(1, 1, 0) == [1, 1, 1]
    before = plan.plan_path("smoke", ["lr_ratio"])
    site.write_text("gpu: {memory_gb: 16}\n")
    assert plan.plan_path("smoke", ["lr_ratio"]) != before


def test_a_plan_for_a_person() -> None:
    made = two_studies([("a", True)])
    made["studies"] = {"a": {"minutes": 2.0}}
    text = plan.print_plan(json.loads(json.dumps(made)))
    assert text.startswith("a (smoke): 1 runs in 1 packs, 6 steps, about 2 min\n  lora-")
    assert text.endswith(": 1 runs, 1 one after another (nothing to share)")


@pytest.mark.parametrize("scale", SCALES)
def test_all_studies_together_are_planned(scale: Scale, monkeypatch: pytest.MonkeyPatch) -> None:
    """They share runs, packs and evaluations, so each alone says little of all of them."""
    known = read_json(asked.FILE)
    monkeypatch.setattr(asked, "answers", lambda: known)
    made = make_plan(scale, studies())
    assert known == read_json(asked.FILE), "no model is built for it; `python -m lowrank.forecasts` adds what is new"
    assert set(made["studies"]) == set(studies())
    assert all(made["studies"][study]["runs"] for study in studies())
    members = [run for pack in made["packs"].values() for run in pack["members"]]
    assert sorted(members) == sorted(made["runs"])


@pytest.mark.parametrize("scale", ["smoke", "laptop"])
def test_the_committed_answers_are_those_of_this_code(scale: Scale, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of paper scale, whose answers take minutes, `test_estimate.py` asks a sample."""
    found: dict[str, object] = {}
    monkeypatch.setattr(asked, "answers", lambda: found)
    make_plan(scale, studies())
    committed = read_json(asked.FILE)
    assert found == {key: committed.get(key) for key in found}, "`python -m lowrank.forecasts --all` asks anew"


def test_the_target_extended_shares_no_pack_with_all() -> None:
    planner = Planner("smoke")
    for seed, extended in ((0, False), (1, True), (0, True)):
        planner.add_run(run_spec(seed=seed), "s", True, extended)
    planner.add_packs("s", ["seed"], TEST, size=64, mem_mb=1)
    packs = planner.packs.values()
    assert sorted((len(pack["members"]), pack["extended"]) for pack in packs) == [(1, False), (1, True)]
    assert sum(run["extended"] for run in planner.runs.values()) == 1, "what all asks for too is part of all"
