"""A cluster as jobs see it: what is asked for, what is refused, and what SLURM's words mean."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lowrank.accounting import Short
from lowrank.errors import ConfigError
from lowrank.needs import LEAST_MINUTES, STACKED, add_needs
from lowrank.settings import Settings
from lowrank.site import EXAMPLE, PREEMPTIBLE_ATTEMPTS, Site, demand, read_site
from lowrank.study import Extended, ScaleSpec
from snakemake_executor_plugin_lowrank_slurm import watching

PROFILES = Path(__file__).parents[1] / "workflow" / "profiles"
NEEDS = {"mem_mb": 1000, "minutes": 30, "gpus": 0}
GPU = {**NEEDS, "gpus": 1}


def site(tmp_path: Path, text: str) -> Site:
    file = tmp_path / "site.yaml"
    file.write_text(text)
    return read_site({"LOWRANK_SITE": str(file)})


def test_no_site_asks_for_nothing_by_name() -> None:
    assert demand(Site(), NEEDS, 1, False) == {"mem_mb": 1000, "runtime": 30, "slurm_extra": "--signal=TERM@120"}


def test_memory_and_time_grow_each_with_what_was_too_little_up_to_what_the_site_allows() -> None:
    def asked(attempt: int, **short: int) -> tuple[int, int]:
        jobs = Short(**{what: ("1",) * count for what, count in short.items()})
        found = demand(Site(max_runtime_minutes=50), NEEDS, attempt, False, jobs)
        return found["mem_mb"], found["runtime"]

    assert [asked(attempt) for attempt in (1, 2, 9)] == [(1000, 30)] * 3, "coming back is no cause"
    assert [asked(count + 1, memory=count) for count in (1, 2, 3, 4, 9)] == [
        (2000, 30),
        (3000, 30),
        *[(4000, 30)] * 3,
    ]
    assert [asked(count + 1, time=count) for count in (1, 2)] == [(1000, 50)] * 2
    assert asked(3, memory=1, time=1) == (2000, 50)


@pytest.mark.parametrize(("minutes", "jobs"), [(0.5, 1), (50, 1), (51, 2), (288 * 60, 346)])
def test_what_takes_longer_than_a_job_may_goes_on_in_further_ones(minutes: float, jobs: int) -> None:
    assert Site(max_runtime_minutes=50).jobs_for(minutes) == jobs


def test_a_gpu_job_goes_where_the_gpus_are(tmp_path: Path) -> None:
    text = "{account: lab, partition: cpu, qos: high, gpu: {model: a100, partition: gpu, preemptible_partition: spare}}"
    found = site(tmp_path, text)
    assert demand(found, NEEDS, 1, True)["slurm_partition"] == "cpu"
    assert "gpu" not in demand(found, NEEDS, 1, True)
    asked = demand(found, GPU, 1, False)
    assert {k: asked[k] for k in ("gpu", "gpu_model", "slurm_account", "slurm_partition", "qos")} == {
        "gpu": 1,
        "gpu_model": "a100",
        "slurm_account": "lab",
        "slurm_partition": "gpu",
        "qos": "high",
    }
    partitions = [demand(found, GPU, attempt, True)["slurm_partition"] for attempt in range(1, 7)]
    assert partitions == ["spare"] * PREEMPTIBLE_ATTEMPTS + ["gpu"] * (6 - PREEMPTIBLE_ATTEMPTS)


def test_jobs_load_modules_and_run_the_set_up(tmp_path: Path) -> None:
    assert Site().prefix() == ""
    found = site(tmp_path, "modules: [cuda/13.0, 'a b']\nsetup: [source /sw/x.sh]\n")
    assert found.prefix() == "module load cuda/13.0 'a b'; source /sw/x.sh; "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acount: lab", "unknown key 'acount'; did you mean 'account'"),
        ("gpu: {memory_gb: 0}", r"gpu\.memory_gb: .*0"),
        ("max_runtime_minutes: soon", "'soon' is not a number"),
    ],
)
def test_a_fault_in_the_site_names_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        site(tmp_path, text)


def test_a_site_that_was_named_and_is_not_there() -> None:
    with pytest.raises(ConfigError, match="LOWRANK_SITE=/nowhere: no such file; begin with a copy of"):
        read_site({"LOWRANK_SITE": "/nowhere"})


def test_the_example_is_a_site() -> None:
    assert read_site({"LOWRANK_SITE": str(EXAMPLE)}).account == "my-project"


def scale(minutes: float) -> ScaleSpec:
    return ScaleSpec(base={}, sweeps={}, minutes=minutes)


def pack(steps: int, *owners: str, extended: bool = False, stacks: tuple[int, ...] = (1,)) -> dict[str, Any]:
    members = [[f"run{index}-{member}" for member in range(size)] for index, size in enumerate(stacks)]
    return {
        "steps": steps,
        "owners": list(owners),
        "extended": extended,
        "members": [run for stack in members for run in stack],
        "stacks": [{"members": stack} for stack in members],
        "evaluations": {},
    }


def test_a_pack_asks_for_its_share_of_the_study() -> None:
    packs = {"long": pack(900, "one"), "short": pack(100, "one"), "both": pack(100, "one", "other")}
    found = add_needs({"packs": packs, "evaluations": {}}, {"one": scale(110), "other": scale(60)})["packs"]
    assert found["long"]["minutes"] == 180
    assert found["short"]["minutes"] == 20
    assert found["both"]["minutes"] == 120
    assert [found[name]["expected_minutes"] for name in packs] == [90, 10, 60]
    assert [found[name]["gpus"] for name in packs] == [0, 0, 0]
    tiny = add_needs({"packs": {"p": pack(1, "one")}, "evaluations": {}}, {"one": scale(0.1)})
    assert tiny["packs"]["p"]["minutes"] == LEAST_MINUTES


def test_a_step_in_a_stack_counts_less() -> None:
    packs = {"alone": pack(400, "one", stacks=(1, 1, 1, 1)), "some": pack(400, "one", stacks=(3, 1))}
    found = add_needs({"packs": packs, "evaluations": {}}, {"one": scale(5 + 3 * STACKED)})["packs"]
    assert [found[name]["expected_minutes"] for name in packs] == pytest.approx([4, 1 + 3 * STACKED])


def test_an_evaluation_of_a_run_counts_as_steps() -> None:
    packs = {"scored": pack(0, "one", stacks=(1, 1)), "trained": pack(2 * 15, "one")}
    packs["scored"]["evaluations"] = {"test": "data"}
    found = add_needs({"packs": packs, "evaluations": {"test": {"steps": 15}}}, {"one": scale(60)})["packs"]
    assert [found[name]["expected_minutes"] for name in packs] == [30, 30]


def test_what_only_extended_trains_has_minutes_of_its_own() -> None:
    packs = {"all": pack(10, "one"), "beyond": pack(1000, "one", extended=True)}
    both = scale(100).model_copy(update={"extended": Extended(sweeps={}, minutes=500)})
    found = add_needs({"packs": packs, "evaluations": {}}, {"one": both})["packs"]
    assert [found[name]["minutes"] for name in packs] == [200, 1000]


@pytest.mark.parametrize("profile", ["slurm", "slurm-preemptible"])
def test_profiles_resolve_from_the_root_and_name_the_scale(profile: str) -> None:
    link = PROFILES.parents[1] / profile
    assert link.is_symlink()
    assert link.resolve() == PROFILES / profile
    told = yaml.safe_load((link / "profile.v9+.yaml").read_text())
    config = dict(entry.split("=") for entry in told["config"])
    assert config["scale"] == "paper"
    assert Settings(**config).preemptible == (profile != "slurm")
    assert not {"set-resources", "default-resources"} & set(told), "one on the command line would replace them whole"


def test_only_the_profiles_try_again() -> None:
    """A rule's own `retries:` would repeat inside the same allocation, with the same memory and time."""
    workflow = PROFILES.parent
    rules = [workflow / "Snakefile", *(workflow / "rules").glob("*.smk")]
    assert not [file for file in rules if re.search(r"^\s*retries\s*:", file.read_text(), re.MULTILINE)]
    for name in ("slurm", "slurm-preemptible"):
        assert yaml.safe_load((PROFILES / name / "profile.v9+.yaml").read_text())["retries"] >= 3


def test_what_the_commands_print_is_read() -> None:
    printed = "1|RUNNING\n2|CANCELLED by 0\n3|NODE_FAIL+\nbroken\n1|COMPLETED\n"
    assert watching.states(printed) == {"1": "COMPLETED", "2": "CANCELLED", "3": "NODE_FAIL"}
    assert "1,2" in watching.accounting(["1", "2"])


def test_a_job_that_the_controller_does_not_list_has_ended_or_is_lost() -> None:
    printed = "1|COMPLETED\n2|PENDING\n3|RUNNING\n9|RUNNING\n"
    wanted = ["1", "2", "3", "4"]
    assert watching.told(printed, wanted, controller_answers=True) == {
        "1": "COMPLETED",
        **dict.fromkeys(["2", "3", "4"], watching.LOST),
    }
    away = watching.told(printed, wanted, controller_answers=False)
    assert away == {"1": "COMPLETED", "2": "PENDING", "3": "RUNNING", "4": ""}


@pytest.mark.parametrize(
    ("state", "seconds", "found"),
    [
        ("COMPLETED", 0, "done"),
        ("RUNNING", 1e9, "watch"),
        ("PENDING", 1e9, "watch"),
        ("TIMEOUT", 0, "TIMEOUT: it reached its time limit"),
        ("OUT_OF_MEMORY", 0, "OUT_OF_MEMORY: it used more memory"),
        ("PREEMPTED", 5, "watch"),
        ("PREEMPTED", 500, "PREEMPTED: it was pre-empted and not requeued"),
        ("NODE_FAIL", 5, "watch"),
        ("NODE_FAIL", 500, "NODE_FAIL: its node failed"),
        (watching.LOST, 5, "watch"),
        (watching.LOST, 500, "LOST: the controller does not know it"),
        ("", 5, "watch"),
        ("", 5000, "SLURM has not known it for 5000 s"),
    ],
)
def test_what_becomes_of_a_job(state: str, seconds: float, found: str) -> None:
    verdict = watching.judge(state, seconds)
    if found in ("done", "watch"):
        assert verdict == ("" if found == "done" else None)
    else:
        assert verdict is not None
        assert verdict.startswith(found)


def test_jobs_of_an_earlier_call_are_those_of_this_folder(tmp_path: Path) -> None:
    printed = f"1|lowrank_a|{tmp_path}\n2|lowrank_b|/else\n3|other|{tmp_path}\n4|lowrank_c|{tmp_path}/x\n"
    assert watching.earlier_jobs(printed, "lowrank_", str(tmp_path)) == ["1"]
