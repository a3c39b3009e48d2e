"""Every output is held against its hash; what differs is named with the rule that made it and the way back."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowrank.files import seal, write_json, write_text
from lowrank.verify import seal_pages, verify


@pytest.fixture(autouse=True)
def _outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One output of each kind, all of them whole."""
    monkeypatch.chdir(tmp_path)
    run = Path("results/runs/lora-s0-1")
    sealed = {
        run: {"pack": "lora-ab-0"},
        Path("resources/downloads/card"): {},
        Path("resources/prepared/data-1"): {},
        Path("results/studies/one"): {"study": "one"},
    }
    for folder, facts in sealed.items():
        write_text(folder / ("weights.safetensors" if facts.get("pack") else "file"), "content")
        seal(folder, facts)
    weights = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    write_json(run / "eval" / "test-1.json", {"weights": weights})
    for page in ("one.html", "runs/one/lora-s0-1.html", "index.html"):
        write_text(Path("reports") / page, page)
    write_text(Path("results/runs.csv"), "of all studies")
    seal_pages("one")
    seal_pages("index")


def test_whole_outputs_have_no_fault() -> None:
    assert verify() == (9, [])


@pytest.mark.parametrize(
    ("file", "rule", "remedy"),
    [
        ("results/runs/lora-s0-1/weights.safetensors", "train_lora_ab_0", "lowrank rerun lora-s0-1"),
        ("results/runs/lora-s0-1/eval/test-1.json", "evaluate", "rm results/runs/lora-s0-1/eval/test-1.json"),
        ("resources/downloads/card/file", "fetch", "lowrank fetch card"),
        ("resources/prepared/data-1/file", "prepare", "rm -r resources/prepared/data-1"),
        ("results/studies/one/file", "tables_one", "--forcerun tables_one -- one"),
        ("reports/one.html", "page_one", "--forcerun page_one -- reports/one.html"),
        ("reports/runs/one/lora-s0-1.html", "page_one", "--forcerun page_one -- reports/one.html"),
        ("reports/index.html", "index", "--forcerun index -- reports/index.html"),
        ("results/runs.csv", "index", "--forcerun index -- reports/index.html"),
    ],
)
@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_changed_or_missing_output_is_named(file: str, rule: str, remedy: str, damage: str) -> None:
    if damage == "gone":
        Path(file).unlink()
    else:
        Path(file).write_text("{}")
    if damage == "gone" and "/eval/" in file:
        return  # a score that is not there is scored again; nothing promised it
    (fault,) = verify()[1]
    assert fault.rule == rule
    assert remedy in fault.remedy
    assert file in f"{fault.place} {fault.why}"


def test_a_score_of_other_weights_is_a_fault() -> None:
    write_json(Path("results/runs/lora-s0-1/eval/test-1.json"), {"weights": "0" * 64})
    (fault,) = verify()[1]
    assert fault.why == "is of the weights 000000000000, but the run holds ed7002b439e9"


def test_what_is_being_written_is_left_alone() -> None:
    Path("results/runs/.lora-s0-2.tmp").mkdir()
    Path("results/runs/lora-s0-3/eval").mkdir(parents=True)  # Snakemake's, before the job starts
    assert verify()[1] == []


def test_a_folder_without_a_manifest_is_a_fault() -> None:
    Path("results/runs/lora-s0-1/manifest.json").unlink()
    faults = verify()[1]
    assert {fault.rule for fault in faults} == {"train", "evaluate"}
