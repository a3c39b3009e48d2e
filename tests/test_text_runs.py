"""Pre-training on blocks of a text: a run that was killed sees the same batches again, and a damaged text is named."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from lowrank.errors import IntegrityError, Preempted
from lowrank.signals import StopFlag
from lowrank.spec import RunSpec
from lowrank.train import pack as pack_module
from lowrank.train.loop import Loop
from lowrank.train.pack import train_pack
from tests.child import in_child, signal_at
from tests.test_train_resume import assert_same
from tests.training_lab import pack_of, prepared

SPEC = RunSpec.model_validate(
    {
        "task": "causal_lm",
        "model": {"card": "smoke_gpt"},
        "data": {"card": "smoke_text", "max_length": 16, "sample": "blocks", "validation_rows": 8, "test_rows": 8},
        "chain": "full",
        "train": {"lr": 1e-2, "steps": 6, "batch_size": 4, "eval_every": 3},
    }
)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pack_module, "CHECKPOINT_EVERY_S", 0.0)  # a checkpoint after each step


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_on_blocks_that_is_stopped_sees_the_same_batches(number: signal.Signals) -> None:
    train_pack(pack_of(SPEC), StopFlag())
    pack = pack_of(SPEC, runs=Path("second"), work=Path("work2"))

    def stopped() -> None:
        signal_at(Loop, "one_step", number, call=4)()
        with pytest.raises(Preempted):
            train_pack(pack, StopFlag().install())

    drawn: list[int] = []

    def resumed() -> None:
        gather = Loop.gather
        Loop.gather = lambda loop, step: drawn.append(step) or gather(loop, step)  # type: ignore[method-assign, func-returns-value]
        train_pack(pack, StopFlag())
        assert drawn == list(range(6))[-len(drawn) :]
        assert len(drawn) < 6, "it began again"

    assert in_child(stopped) == (0 if number is signal.SIGTERM else -signal.SIGKILL)
    assert in_child(resumed) == 0
    assert_same(pack.members[0].run)


@pytest.mark.parametrize("damage", ["truncated", "a flipped byte"])
def test_a_damaged_text_is_named_before_anything_is_trained(damage: str) -> None:
    file = prepared(SPEC) / "train.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        del content[-4:]
    else:
        content[-4] ^= 1
    file.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"smoke_text-\w+/train\.safetensors"):
        train_pack(pack_of(SPEC), StopFlag())
    assert not list(Path().glob("results/runs/*"))
