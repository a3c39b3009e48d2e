"""The command: exit codes, one sentence for a known failure, a log that keeps everything."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lowrank import cli, jobs, plan, run_folder
from lowrank.console import repeat_flag
from lowrank.errors import ConfigError, IntegrityError, LowrankError, Preempted, UnavailableError


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Types a command; its exit code."""
    monkeypatch.setattr(sys, "argv", ["lowrank", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a sentence"), 2),
        (IntegrityError("a sentence"), 3),
        (Preempted("a sentence"), 75),
        (UnavailableError("a sentence"), 1),
        (LowrankError("a sentence"), 1),
    ],
)
def test_a_known_failure_is_one_sentence_and_its_code(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(card: str) -> None:
        raise error

    monkeypatch.setattr(jobs, "fetch", fail)
    assert run(monkeypatch, "fetch", "card") == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("lowrank: a sentence")


def test_an_unknown_failure_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(card: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "disk")

    monkeypatch.setattr(jobs, "fetch", fail)
    assert run(monkeypatch, "fetch", "card") == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "lowrank: OSError: [Errno 5] Input/output error: 'disk'" in said


@pytest.mark.parametrize(
    "arguments", [("fetsh",), ("train",), ("train", "p", "--threads", "0"), ("sweep", "--epochs", "x")]
)
def test_what_cannot_be_parsed_is_a_fault_of_configuration(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, *arguments) == 2


def test_names_that_the_plan_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan.write_plan(tmp_path / "plan.json", {"packs": {"lora-1": {}}, "studies": {"lr_ratio": {}}, "data": {}})
    monkeypatch.setenv(plan.ENVIRONMENT, str(tmp_path / "plan.json"))
    assert run(monkeypatch, "train", "lora-2") == 2
    assert "'lora-2' is not among the plan's packs; did you mean 'lora-1'? (allowed: lora-1)" in capsys.readouterr().err
    assert run(monkeypatch, "tables", "lr_rato") == 2
    assert "did you mean 'lr_ratio'" in capsys.readouterr().err


def test_rerun_forgets_all_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (run_folder.RUNS / "one", run_folder.WORK / "one", run_folder.WORK / "two"):
        folder.mkdir(parents=True)
    assert run(monkeypatch, "rerun", "one", "tow") == 2
    assert "no run 'tow'" in capsys.readouterr().err
    assert (run_folder.RUNS / "one").is_dir()
    assert run(monkeypatch, "rerun", "one", "two") == 0
    assert not any(run_folder.RUNS.iterdir())
    assert not any(run_folder.WORK.iterdir())


@pytest.mark.parametrize(
    ("typed", "parsed"),
    [
        ("sweep --lrs 1e-4 5e-4 --rank 8", "sweep --lrs 1e-4 --lrs 5e-4 --rank 8"),
        ("sweep --lrs 1e-4", "sweep --lrs 1e-4"),
        ("sweep --lrs 1e-4 --lrs 2e-4", "sweep --lrs 1e-4 --lrs 2e-4"),
        ("sweep --rank 8 --lrs 1 2 3", "sweep --rank 8 --lrs 1 --lrs 2 --lrs 3"),
        ("sweep --lrs -1 2", "sweep --lrs -1 --lrs 2"),
        ("sweep --full-finetune --lrs 1", "sweep --full-finetune --lrs 1"),
        ("train pack --threads 2", "train pack --threads 2"),
    ],
)
def test_several_values_behind_one_flag(typed: str, parsed: str) -> None:
    assert repeat_flag(typed.split(), "--lrs") == parsed.split()


def test_a_log_keeps_everything_and_the_screen_shows_failures(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lowrank.cli", "--log", "logs/a.log", "fetch", "smoke_brt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unknown card 'smoke_brt'; did you mean 'smoke_bert'" in done.stderr
    assert done.stderr.splitlines() == (tmp_path / "logs" / "a.log").read_text().splitlines()


def test_help_and_fetching_do_not_import_torch() -> None:
    code = "import sys; from lowrank import cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "pandas", "numpy"} & set(loaded)
