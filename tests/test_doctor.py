"""What stands in the way is found, and what to type is said."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake.persistence.file import FilePersistence

from lowrank import doctor
from lowrank.files import locked, seal, write_text


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.which", lambda name, **_: None)  # no SLURM


def faults() -> dict[str, str]:
    return {found.what: found.remedy for found in doctor.examine() if found.level == "fault"}


def notes() -> list[str]:
    return [found.what for found in doctor.examine() if found.level == "note"]


def test_nothing_stands_in_the_way_of_a_fresh_folder() -> None:
    assert faults() == {}
    assert doctor.report() == 0


def test_a_lock_of_a_killed_snakemake() -> None:
    write_text(Path(".snakemake/locks/0.input.lock"), "")
    ((what, remedy),) = faults().items()
    assert what.startswith("a Snakemake that was killed left its lock")
    assert remedy == "snakemake --unlock"
    assert doctor.report() == 1


def test_a_snakemake_that_lives_holds_its_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(Path(".snakemake/locks/0.input.lock"), "")
    monkeypatch.setattr(doctor, "_other_snakemakes", lambda: ["12"])
    assert faults() == {}
    assert "Snakemake runs here already, as process 12; it holds the lock" in notes()


@pytest.mark.parametrize("output", ["results/runs/a/manifest.json", "results/" + "a-long-name?>/" * 30])
def test_outputs_that_were_being_made(output: str) -> None:
    """Marks as Snakemake itself leaves them."""
    spelt = FilePersistence._record_path(SimpleNamespace(_fetch_max_len=lambda folder: 255), "", output)
    write_text(Path(".snakemake/incomplete") / spelt, "")
    ((what, remedy),) = faults().items()
    assert what == f"1 outputs were being made when Snakemake was killed: {output}"
    assert "--rerun-incomplete" in remedy


def test_unfinished_runs_are_told_with_their_step() -> None:
    write_text(Path("work/lora-s0-1/checkpoints/step-00000040/manifest.json"), "{}")
    assert "lora-s0-1 stands at step 40 and goes on from there with the next call" in notes()
    with locked(Path("work/lora-s0-1/lock"), "busy"):
        assert "lora-s0-1 is being trained by another process" in notes()


def test_a_damaged_run() -> None:
    write_text(Path("results/runs/lora-s0-1/spec.json"), "{}")
    seal(Path("results/runs/lora-s0-1"), {})
    write_text(Path("results/runs/lora-s0-1/spec.json"), "[]")
    ((what, remedy),) = faults().items()
    assert "spec.json: sha256 is" in what
    assert remedy == "lowrank rerun lora-s0-1"


def test_a_run_that_did_not_fit() -> None:
    write_text(Path("results/runs/lora-s0-1/spec.json"), "{}")
    seal(Path("results/runs/lora-s0-1"), {"status": "failed", "cause": "out of memory after step 0"})
    (found,) = [found for found in doctor.examine() if "failed" in found.what]
    assert (found.level, found.what) == ("note", "lora-s0-1 failed: out of memory after step 0")
    assert found.remedy == "lowrank rerun lora-s0-1"


def test_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (found,) = [found for found in doctor.examine() if "token" in found.what]
    assert found.remedy == "export HF_TOKEN=..."
    monkeypatch.setenv("HF_TOKEN", "x")
    assert not [found for found in doctor.examine() if "token" in found.what]


@pytest.mark.parametrize(
    ("printed", "level", "what"),
    [
        ("Slurmctld(primary) at a is UP", "note", "no site.yaml names this cluster's account and partitions"),
        ("Slurmctld(primary) at a is DOWN", "note", "its controller does not answer"),
    ],
)
def test_a_scheduler(printed: str, level: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, **_: "/usr/bin/" + name)
    scontrol = tmp_path / "bin" / "scontrol"
    write_text(scontrol, f"#!/bin/sh\necho '{printed}'\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:/usr/bin:/bin")
    monkeypatch.setattr(doctor, "site_file", lambda: tmp_path / "site.yaml")
    (found,) = [found for found in doctor.examine() if what in found.what]
    assert (found.level, bool(found.remedy)) == (level, True)


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2e9}))
    assert "2.0 GB are free here; checkpoints and results want 5 or more" in faults()


def test_a_package_that_is_not_what_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.importlib.metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0" if name == "peft" else real(name))
    ((what, remedy),) = faults().items()
    assert what.startswith("packages differ from the pins: peft is 0.0, pinned ")
    assert remedy == "make env"


def test_a_fault_in_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWRANK_SITE", "/nowhere")
    ((what, remedy),) = faults().items()
    assert "no such file" in what
    assert "site.yaml" in remedy
