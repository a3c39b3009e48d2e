"""The loop: one gradient however a batch is cut, every batch of an epoch, divergence, precision, zero steps."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.data.loader import open_splits
from lowrank.errors import ConfigError
from lowrank.evaluate.score import score
from lowrank.methods.chain import Chain
from lowrank.models.load import load_model
from lowrank.signals import StopFlag
from lowrank.spec import RunSpec
from lowrank.tasks import IGNORED, CausalLM, task
from lowrank.train.loop import Loop
from lowrank.train.pack import train_pack
from tests.tolerances import BFLOAT16_LOSS, FLOAT64_IDENTITY
from tests.training_lab import history, manifest, pack_of, prepared, run_spec, weights


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_loop(spec: RunSpec, *, double: bool = False) -> Loop:
    splits = open_splits(prepared(spec), spec.data, spec.task)
    model = load_model(spec.model, spec.task, 4, spec.seed)
    chain = Chain.build(spec.chain).attach(model, spec.seed)
    if double:
        model.double()
    device = torch.device("cpu")
    return Loop(model, chain, task(spec.task), spec.train, splits["train"], splits["validation"], spec.seed, device)


def gradients(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The gradients of the first step, as the optimizer would see them."""
    seen: list[Tensor] = []
    monkeypatch.setattr(
        type(loop.optimizer),
        "step",
        lambda self: seen.extend(p.grad.clone() for p in loop.trainable if p.grad is not None),
    )
    loop.model.eval()  # dropout would draw other masks for other cuts
    loop.one_step(0)
    return seen


@pytest.mark.parametrize("name", ["classification", "causal_lm"])
@pytest.mark.parametrize("micro", [1, 3, 5, 16])
def test_micro_batches_of_any_size_give_the_gradient_of_the_whole_batch(
    name: str, micro: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows have different lengths, so micro-batches are padded differently and hold different numbers of tokens."""
    found = []
    for size in (None, micro):
        spec = run_spec("full", micro_batch_size=size).model_copy(update={"task": name})
        found.append(gradients(make_loop(spec, double=True), monkeypatch))
    assert len(found[0]) == len(found[1]) > 10
    for whole, cut in zip(*found, strict=True):
        FLOAT64_IDENTITY.check(cut, whole)


def test_hooks_are_called_as_often_as_their_contract_says(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A penalty is a term of the batch's loss, so it counts once however the batch is cut."""
    calls: Counter[str] = Counter()
    loop = make_loop(run_spec("lora", micro_batch_size=4))
    for hook in ("before_step", "before_forward", "penalty", "after_step"):
        called = getattr(loop.chain, hook)
        monkeypatch.setattr(
            loop.chain, hook, lambda *given, hook=hook, called=called: (calls.update([hook]), called(*given))[1]
        )
    loop.one_step(0)
    cuts = math.ceil(loop.train.batch_size / 4)
    assert cuts > 1
    assert calls == {"before_step": 1, "before_forward": cuts, "penalty": 1, "after_step": 1}


def test_a_token_weighs_the_same_in_a_long_row_and_in_a_short_one() -> None:
    logits, labels = torch.randn(2, 5, 7), torch.tensor([[1, 2, 3, 4, 5], [1, 2, IGNORED, IGNORED, IGNORED]])
    batch = {"labels": labels}
    losses, _ = CausalLM().losses(logits, batch)
    assert CausalLM().units(batch) == len(losses) == 5
    expected = functional.cross_entropy(
        torch.cat([logits[0, :4], logits[1, :1]]), torch.tensor([2, 3, 4, 5, 2]), reduction="none"
    )
    assert torch.equal(losses, expected)


def test_every_row_of_an_epoch_is_trained_on_once(here: Path) -> None:
    loop = make_loop(run_spec("lora"))  # 40 rows in batches of 16
    assert (loop.steps_per_epoch, loop.total_steps) == (3, 6)
    for epoch in range(2):
        rows = [len(b["labels"]) for step in range(3) for b in loop.gather(3 * epoch + step)[0]]
        assert rows == [16, 16, 8]
    seen = torch.cat([b["input_ids"].sum(1) for step in range(3) for b in loop.gather(step)[0]])
    (everything,) = loop.batches.micro_batches(torch.arange(40), 40)
    assert sorted(seen.tolist()) == sorted(everything["input_ids"].sum(1).tolist())


def test_the_gradient_is_clipped_and_the_schedule_is_applied(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = make_loop(run_spec("full", clip_norm=1e-3, schedule="linear", warmup_steps=2))
    total = math.sqrt(sum(float(g.pow(2).sum()) for g in gradients(loop, monkeypatch)))
    assert total == pytest.approx(1e-3, rel=1e-3)
    assert [group["lr"] for group in loop.optimizer.param_groups] == [0.005]  # half way through the warm-up


class TestEvaluation:
    def test_each_epoch_and_after_the_last_step(self, here: Path) -> None:
        pack = pack_of(run_spec("lora", steps=5))
        train_pack(pack, StopFlag())
        rows = history(pack.members[0].run)
        assert [row["step"] for row in rows if row["val_loss"] is not None] == [3, 5]
        assert [row["epoch"] for row in rows] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3])

    def test_every_so_many_steps(self, here: Path) -> None:
        pack = pack_of(run_spec("lora", steps=5, eval_every=2))
        train_pack(pack, StopFlag())
        assert [row["step"] for row in history(pack.members[0].run) if row["val_loss"] is not None] == [2, 4, 5]

    def test_the_best_weights_are_kept(self, here: Path) -> None:
        spec = run_spec("full", lr=0.05, select="best", eval_every=1, steps=5)
        pack = pack_of(spec)
        train_pack(pack, StopFlag())
        run = pack.members[0].run
        losses = [row["val_loss"] for row in history(run)]
        assert losses.index(min(losses)) < 4
        loop = make_loop(spec)
        loop.chain.load_changed(weights(run))
        loop.model.eval()
        assert score(loop.model, loop.task, loop.validation, 16, loop.device).loss == pytest.approx(
            min(losses), rel=1e-6
        )


def test_zero_steps_is_the_untouched_base(here: Path) -> None:
    spec = run_spec("full", steps=0)
    pack = pack_of(spec)
    train_pack(pack, StopFlag())
    run = pack.members[0].run
    base = load_model(spec.model, spec.task, 4, spec.seed)
    saved = weights(run)
    assert all(torch.equal(saved[name], parameter) for name, parameter in base.named_parameters())
    (row,) = history(run)
    assert (row["step"], row["train_loss"]) == (0, None)
    assert row["val_loss"] > 0
    assert manifest(run)["metrics"]["delta_norm_mean"] == 0


class TestDivergence:
    @pytest.mark.parametrize("keep_every_s", [0.0, 1e9])
    def test_it_is_a_result(self, keep_every_s: float, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The manifest names the first bad step, whether or not a checkpoint looked at the loss early."""
        monkeypatch.setattr("lowrank.train.pack.CHECKPOINT_EVERY_S", keep_every_s)
        monkeypatch.setattr(Loop, "one_step", lambda self, step: torch.tensor(math.nan if step >= 1 else 1.5))
        pack = pack_of(run_spec("lora", steps=30, eval_every=30))
        train_pack(pack, StopFlag())
        run = pack.members[0].run
        found = manifest(run)
        assert (found["status"], found["cause"]) == ("diverged", "the loss was not finite at step 2")
        assert found["metrics"]["steps"] == 2
        assert found["metrics"]["last_val_loss"] is None
        assert [row["train_loss"] for row in history(run)] == [1.5, None]

    def test_in_a_real_run(self, here: Path) -> None:
        pack = pack_of(run_spec("full", lr=1e30, steps=6), run_spec("full", lr=1e-3, steps=2))
        train_pack(pack, StopFlag())
        assert [manifest(member.run)["status"] for member in pack.members] == ["diverged", "ok"]


def test_autocast_computes_in_bfloat16_and_keeps_float32_weights(here: Path) -> None:
    plain, autocast = make_loop(run_spec("full")), make_loop(run_spec("full", precision="bf16"))
    kinds: set[torch.dtype] = set()
    layer = next(m for m in autocast.model.modules() if isinstance(m, nn.Linear))
    layer.register_forward_hook(lambda module, inputs, output: kinds.add(output.dtype))
    losses, seen = [], list[bool]()
    for loop in (plain, autocast):
        loop.model.eval()
        loop.chain.before_step = lambda batches, step: seen.append(torch.is_autocast_enabled("cpu"))  # type: ignore[method-assign]
        losses.append(loop.one_step(0))
    assert kinds == {torch.bfloat16}
    assert {p.dtype for p in autocast.model.parameters()} == {torch.float32}
    BFLOAT16_LOSS.check(losses[1], losses[0])
    assert losses[0] != losses[1]
    assert seen == [False, True]


class TestBatchesThatHeadsShare:
    LTE = [{"part": "lte", "num_lora_heads": 4, "rank": 2}]

    @pytest.mark.parametrize(
        ("train", "rows", "message"),
        [
            ({"batch_size": 6}, 40, "chain lte: batch_size 6 is no multiple of 4"),
            ({"micro_batch_size": 2}, 40, "micro_batch_size 2 is no multiple of 4"),
            ({}, 38, "the last batch of an epoch, 6 of 38 rows at batch_size 16, is no multiple of 4"),
            ({"steps": 3}, 38, "the last batch of an epoch, 6 of 38 rows"),
        ],
    )
    def test_are_refused_at_the_start(self, train: dict[str, Any], rows: int, message: str, here: Path) -> None:
        with pytest.raises(ConfigError, match=message):
            make_loop(run_spec(self.LTE, data={"train_rows": rows}, **train))

    def test_a_last_batch_that_is_never_reached_is_no_fault(self, here: Path) -> None:
        make_loop(run_spec(self.LTE, data={"train_rows": 38}, steps=2)).one_step(0)
