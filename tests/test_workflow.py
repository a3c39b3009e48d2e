"""The workflow as a user drives it: what runs, what does not run again, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workflow_lab import Lab, planned

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A checkout in which everything has run once at smoke scale."""
    lab = Lab.new(tmp_path_factory.mktemp("finished") / "lab").only("lr_ratio")
    lab.snakemake("--", "all")
    return lab


@pytest.fixture
def lab(finished: Lab, tmp_path: Path) -> Iterator[Lab]:
    return finished.copy(tmp_path / "lab")


def test_everything_is_there(finished: Lab) -> None:
    assert (finished.folder / "reports" / "index.html").is_file()
    assert (finished.folder / "reports" / "lr_ratio.html").is_file()
    for run in finished.runs():
        manifest = json.loads((finished.folder / "results" / "runs" / run / "manifest.json").read_text())
        assert manifest["status"] == "ok"
        assert {"code", "pack", "metrics", "provenance", "files"} <= manifest.keys()


def test_a_second_call_does_nothing(lab: Lab) -> None:
    assert "Nothing to be done" in lab.snakemake("--", "all")


class TestWhatIsTrainedAgain:
    def test_not_for_a_comment(self, lab: Lab) -> None:
        lab.edit("lowrank/methods/lora.py", '"""LoRA: ', '"""LoRA, as everyone calls it: ')
        lab.edit("lowrank/train/loop.py", "import time", "import time  # a remark")
        assert "Nothing to be done" in lab.snakemake("-n", "--", "all")

    def test_only_what_uses_an_edited_part(self, lab: Lab) -> None:
        before = lab.runs()
        lab.edit("lowrank/methods/full.py", "model.requires_grad_(True)", "model.requires_grad_(bool(1))")
        lab.snakemake("--", "all")
        after = lab.runs()
        again = {run for run in before if after[run] != before[run]}
        assert again == {run for run in before if run.startswith("full-")}

    def test_only_the_learning_rate_that_was_added(self, lab: Lab) -> None:
        before = lab.runs()
        study = "workflow/studies/lr_ratio.yaml"
        lab.edit(
            study,
            "full:\n        - {lr: [1e-3, 3e-3], seed: [0]}",
            "full:\n        - {lr: [1e-3, 3e-3, 2e-3], seed: [0]}",
        )
        lab.snakemake("--", "all")
        after = lab.runs()
        assert {run: after[run] for run in before} == before
        assert [run for run in after if run not in before] == [r for r in after if r.startswith("full-lr2e-3-s0-")]
        assert len(after) == len(before) + 1

    def test_only_the_run_whose_folder_was_deleted(self, lab: Lab) -> None:
        before = lab.runs()
        gone = sorted(before)[-1]
        shutil.rmtree(lab.folder / "results" / "runs" / gone)
        lab.snakemake("--", "all")
        after = lab.runs()
        assert [run for run in before if after[run] != before[run]] == [gone]

    def test_a_pack_that_is_forced(self, lab: Lab) -> None:
        before = lab.runs()
        (rule,) = {line for line in lab.snakemake("--list-rules").split() if line.startswith("train_full_")}
        lab.snakemake("--forcerun", rule, "--", "all")
        after = lab.runs()
        assert {run for run in before if after[run] != before[run]} == {r for r in before if r.startswith("full-")}

    def test_a_run_that_is_forced(self, lab: Lab) -> None:
        before = lab.runs()
        forced = sorted(before)[0]
        lab.snakemake("--forcerun", f"results/runs/{forced}/manifest.json", "--", "all")
        after = lab.runs()
        assert [run for run in before if after[run] != before[run]] == [forced]


class TestTargets:
    def test_one_table(self, lab: Lab) -> None:
        table = "results/studies/lr_ratio/fig1.csv"
        (lab.folder / table).unlink()
        lab.snakemake("--", table)
        assert (lab.folder / table).is_file()

    def test_a_study(self, lab: Lab) -> None:
        (lab.folder / "reports" / "lr_ratio.html").unlink()
        lab.snakemake("--", "lr_ratio")
        assert (lab.folder / "reports" / "lr_ratio.html").is_file()

    def test_a_dry_run_of_a_fresh_checkout_lists_every_pack(self, tmp_path: Path) -> None:
        fresh = Lab.new(tmp_path / "fresh").only("lr_ratio")
        said = fresh.snakemake("-n", "--", "all")
        assert planned(said, "train_") == 3
        assert "lowrank: scale smoke, studies lr_ratio, 10 runs in 3 packs" in said

    def test_until(self, tmp_path: Path) -> None:
        fresh = Lab.new(tmp_path / "fresh").only("lr_ratio")
        assert planned(fresh.snakemake("-n", "--until", "prepare", "--", "all"), "train_") == 0

    def test_what_goes_beyond_the_documents_is_a_target_of_its_own(self, tmp_path: Path) -> None:
        fresh = Lab.new(tmp_path / "fresh").only("lr_ratio")
        study = fresh.folder / "workflow" / "studies" / "lr_ratio.yaml"
        grids = "    extended: {minutes: 1, sweeps: {full: [{lr: 5e-3, seed: 7}]}}\n  laptop:\n"
        study.write_text(study.read_text().replace("  laptop:\n", grids, 1))
        said = fresh.snakemake("-n", "--", "all")
        assert planned(said, "train_") == 3
        assert "lowrank: scale smoke, studies lr_ratio, 10 runs in 3 packs" in said
        said = fresh.snakemake("-n", "--", "extended")
        assert (planned(said, "train_"), planned(said, "extended")) == (1, 1)

    @pytest.mark.parametrize("scale", ["laptop", "paper"])
    def test_every_scale_is_planned(self, tmp_path: Path, scale: str) -> None:
        fresh = Lab.new(tmp_path / "fresh").only("lr_ratio")
        said = fresh.snakemake("-n", "--config", f"scale={scale}", "--", "all")
        assert f"lowrank: scale {scale}, studies lr_ratio" in said


def test_times_of_files_decide_nothing(lab: Lab) -> None:
    """A backup that was put back, a clock that is wrong, a network file system with a clock of its own."""
    for inputs, outputs in (("1990", "1990"), ("2040", "1990"), ("1990", "2040")):
        for names, year in (("resources", "work", "logs"), inputs), (("results", "reports"), outputs):
            when = time.mktime(time.strptime(year, "%Y"))
            for name in names:
                for path in (lab.folder / name).rglob("*"):
                    os.utime(path, (when, when))
        assert "Nothing to be done" in lab.snakemake("-n", "--", "all")


def test_two_calls_in_one_folder(lab: Lab) -> None:
    locks = lab.folder / ".snakemake" / "locks"
    locks.mkdir(exist_ok=True)
    (locks / "0.output.lock").write_text("reports/index.html\n")
    said = lab.snakemake("--forcerun", "index", "--", "all", ok=False)
    assert "Directory cannot be locked" in said
    assert "--unlock" in said
    lab.snakemake("--unlock")
    lab.snakemake("--forcerun", "index", "--", "all")


@pytest.mark.parametrize("name", ["results/runs/../../x", "resources/downloads/a;touch x/manifest.json"])
def test_a_name_that_would_leave_its_folder_has_no_rule(name: str, lab: Lab) -> None:
    assert "No rule to produce" in lab.snakemake("-n", "--", name, ok=False)
    assert not (lab.folder / "x").exists()


def test_a_partial_report_names_what_is_missing(lab: Lab) -> None:
    gone = sorted(lab.runs())[0]
    shutil.rmtree(lab.folder / "results" / "runs" / gone)
    lab.snakemake("--", "partial")
    rows = (lab.folder / "results" / "studies" / "lr_ratio" / "runs.csv").read_text().splitlines()
    (row,) = [line for line in rows if gone in line]
    assert "missing" in row
    assert "not trained" in row
    assert (lab.folder / "reports" / "index.html").is_file()


def test_snakemakes_own_report_holds_the_same(lab: Lab) -> None:
    said = lab.snakemake("--report", "archive.html", "--", "all")
    assert "Report created" in said
    archive = (lab.folder / "archive.html").read_text()
    assert "System Message" not in archive, "a caption is not valid reStructuredText"
    for artefact in ("fig1.svg", "fig3_ratio.svg", "fig1.html", "claims.json", "lr_ratio.html", "index.html"):
        assert f"Adding {artefact}" in said


def test_a_pack_that_fails_keeps_its_members_that_are_finished(lab: Lab) -> None:
    first, second = sorted(run for run in lab.runs() if run.startswith("full-"))
    for run in (first, second):
        shutil.rmtree(lab.folder / "results" / "runs" / run)
    stumble = lab.folder / "work" / second
    stumble.write_text("a file where a folder should be")
    lab.snakemake("--", f"results/runs/{second}/manifest.json", ok=False)
    trained = lab.runs()[first]
    assert second not in lab.runs()
    stumble.unlink()
    lab.snakemake("--", f"results/runs/{second}/manifest.json")
    assert lab.runs()[first] == trained, "the first member was not trained again"


def test_a_pack_longer_than_a_job_may_be_comes_back_once_more_for_each_time_limit(lab: Lab) -> None:
    (lab.folder / "site.yaml").write_text("max_runtime_minutes: 4\nsetup: [echo again >> attempts, exit 1]\n")
    run = next(iter(lab.runs()))
    shutil.rmtree(lab.folder / "results" / "runs" / run)
    lab.snakemake("--retries", "1", "--", f"results/runs/{run}/manifest.json", ok=False)
    attempts = (lab.folder / "attempts").read_text().split()
    assert len(attempts) == 4, "one, the retry that was given, and two: its ten minutes are three jobs of four"


class TestRefusals:
    def test_an_unknown_key_of_the_configuration(self, tmp_path: Path) -> None:
        fresh = Lab.new(tmp_path / "fresh")
        said = fresh.snakemake("-n", "--config", "scal=smoke", "--", "all", ok=False)
        assert (
            "config.yaml: scal: unknown key 'scal'; did you mean 'scale'? (allowed: preemptible, scale, studies)"
            in said
        )

    def test_an_unknown_study(self, tmp_path: Path) -> None:
        fresh = Lab.new(tmp_path / "fresh")
        said = fresh.snakemake("-n", "--config", "studies=lr_ration", "--", "all", ok=False)
        assert "unknown study 'lr_ration'; did you mean 'lr_ratio'?" in said

    def test_a_fault_in_a_study_before_anything_runs(self, tmp_path: Path) -> None:
        fresh = Lab.new(tmp_path / "fresh")
        fresh.edit("workflow/studies/lr_ratio.yaml", "{rank: [4, 8], alpha", "{rank: [4, 8], alhpa")
        said = fresh.snakemake("-n", "--", "all", ok=False)
        place = "workflow/studies/lr_ratio.yaml: scales.smoke.sweeps.lora.0"
        assert f"{place}: unknown axis 'alhpa'; did you mean 'alpha'?" in said

    def test_a_cell_of_the_notebook_that_fails_leaves_no_page(self, lab: Lab) -> None:
        (lab.folder / "reports" / "lr_ratio.html").unlink()
        notebook = lab.folder / "workflow" / "notebooks" / "lr_ratio.ipynb"
        text = json.loads(notebook.read_text())
        next(
            c for c in text["cells"] if c["cell_type"] == "code" and "parameters" not in c["metadata"].get("tags", [])
        )["source"] = "raise ValueError('a cell that fails')"
        notebook.write_text(json.dumps(text))
        said = lab.snakemake("--", "lr_ratio", ok=False)
        assert "a cell that fails" in said
        assert not (lab.folder / "reports" / "lr_ratio.html").exists()
