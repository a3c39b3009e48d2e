"""Real file systems that are full or read only: small ones, mounted for one child process alone."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lowrank import cli
from lowrank.errors import LowrankError
from lowrank.signals import StopFlag
from lowrank.train import pack as pack_module
from lowrank.train.pack import train_pack
from tests.child import in_child
from tests.test_train_resume import assert_same
from tests.training_lab import manifest, pack_of, run_spec

SPEC = run_spec("full")
NEW_MOUNTS = 0x00020000
NOT_PERMITTED = 77


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pack_module, "CHECKPOINT_EVERY_S", 0.0)  # a checkpoint after each step


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def in_mounts_of_its_own(work: Callable[[], None]) -> int:
    """Runs `work` in a child whose mounts nobody else sees; its exit code."""

    def child() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(NEW_MOUNTS):
            raise SystemExit(NOT_PERMITTED)
        mount("--make-rprivate", "/")
        work()

    code = in_child(child)
    if code == NOT_PERMITTED:
        pytest.skip("mount namespaces are not permitted here")
    return code


def refusal(train: Callable[[], None]) -> str:
    """What the command would say, with its exit code 1."""
    with pytest.raises(LowrankError) as caught:
        train()
    assert caught.value.exit_code == 1
    return str(caught.value)


def test_a_full_disk_leaves_the_last_checkpoint_to_go_on_from() -> None:
    train_pack(pack_of(SPEC), StopFlag())
    pack = pack_of(SPEC, runs=Path("second"), work=Path("work2"))
    (member,) = pack.members

    def filled() -> None:
        Path("work2").mkdir()
        mount("-t", "tmpfs", "-o", "size=100m", "tmpfs", "work2")
        (filler := Path("work2/filler")).touch()
        saves: list[int] = []
        save = pack_module.checkpoint.save

        def fill_after_the_third(*args: object) -> Path:
            saves.append(1)
            if len(saves) == 4:
                free = os.statvfs("work2")
                filler.write_bytes(bytes(free.f_bavail * free.f_bsize - 2 * 4096))
            return save(*args)  # type: ignore[arg-type]

        pack_module.checkpoint.save = fill_after_the_third  # type: ignore[assignment]
        said = refusal(lambda: train_pack(pack, StopFlag()))
        assert "step-00000004" in said
        assert said.endswith("cannot be written: No space left on device; what was there before is intact")
        assert sorted(path.name for path in member.checkpoints(pack.work).iterdir()) == [
            "step-00000002",
            "step-00000003",
        ]
        filler.unlink()
        train_pack(pack, StopFlag())

    assert in_mounts_of_its_own(filled) == 0
    assert_same(member.run)


def test_read_only_results_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    pack = pack_of(SPEC)
    (member,) = pack.members
    Path("results/runs").mkdir(parents=True)

    def read_only() -> None:
        mount("--bind", "results", "results")
        mount("-o", "remount,ro,bind", "results")
        said = refusal(lambda: train_pack(pack, StopFlag()))
        assert f"results/runs/{member.run}: cannot be written: Read-only file system" in said

    assert in_mounts_of_its_own(read_only) == 0
    assert list(Path("results/runs").iterdir()) == []
    assert Path("work", member.run, "checkpoints").is_dir(), "its training is not lost"
    train_pack(pack, StopFlag())
    assert manifest(member.run)["status"] == "ok"


def test_the_command_says_so_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As a user sees it, with a log that cannot be written."""
    Path("logs").mkdir()
    monkeypatch.setattr(sys, "argv", ["lowrank", "--log", "logs/fetch.log", "fetch", "smoke_topics"])

    def read_only() -> None:
        mount("--bind", ".", ".")
        os.chdir(Path.cwd())
        mount("-o", "remount,ro,bind", ".")
        cli.main()

    assert in_mounts_of_its_own(read_only) == 1
    assert "Read-only file system" in capfd.readouterr().err
