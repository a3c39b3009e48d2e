"""Gradient checkpointing: the same bits for less memory, for every kind of chain, and predicted as it is measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank.compositions import CHAINS, small
from lowrank.errors import ConfigError
from lowrank.measure import Accounting, measure_step, predict_step
from lowrank.methods.chain import Chain
from lowrank.models.load import skeleton
from lowrank.recompute import checkpoint_blocks, checkpointed_blocks
from lowrank.signals import StopFlag
from lowrank.spec import ModelSpec, RunSpec, TrainSpec
from lowrank.train.pack import train_pack
from tests.test_measure_step import B, batch_for, entries, hold_together
from tests.tiny_models import FAMILIES
from tests.tolerances import BIT_EXACT
from tests.training_lab import history, pack_of, run_spec, weights

DROPOUT = [{"part": "lora", "dropout": 0.3}, {"part": "velora", "num_groups": 4}]
EVERY_BATCH = ["full", {"part": "velora", "num_groups": 4, "init": "batch_average"}]
"""Draws in the forward pass, and vectors that change from step to step: what a second pass could do otherwise."""


def model_of(family: str, checkpointed: bool) -> nn.Module:
    torch.manual_seed(0)
    model = FAMILIES[family]()
    if checkpointed:
        checkpoint_blocks(model)
    return model.train()


def step_of(family: str, options: list[Any], checkpointed: bool) -> dict[str, Tensor]:
    """Loss, gradients and moved weights of two steps."""
    model, batch = model_of(family, checkpointed), batch_for(family, hidden=2)
    chain = Chain.build(entries(*options)).attach(model)
    train = TrainSpec(lr=1e-2, steps=2)
    optimizer = chain.optimizer(train)
    chain.schedule(train, 2)
    torch.manual_seed(1)
    found = {}
    for step in range(2):
        chain.before_step([batch], step)
        chain.before_forward(batch, step)
        loss = model(**batch).loss
        loss.backward()
        found[f"{step} loss"] = loss.detach()
        found |= {f"{step} {name}": p.grad.clone() for name, p in chain.trainable().items() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
        chain.after_step(optimizer, step + 1)
    return found | {name: tensor.clone() for name, tensor in chain.changed().items()}


@pytest.mark.parametrize("chain", [*sorted(CHAINS), DROPOUT, EVERY_BATCH], ids=str)
@pytest.mark.parametrize("family", [pytest.param("bert", marks=pytest.mark.slow), "llama"])
def test_every_chain_gives_the_same_bits(family: str, chain: Any) -> None:
    options = [small(part) for part in chain.split("+")] if isinstance(chain, str) else chain
    if family == "llama" and "contextual_sparsity" in chain:
        options[-1]["dense_tokens"] = "none"
    plain, again = (step_of(family, options, checkpointed) for checkpointed in (False, True))
    assert plain.keys() == again.keys()
    for name, tensor in plain.items():
        BIT_EXACT.check(again[name], tensor)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"nanogpt"}))
def test_every_family_gives_the_same_bits(family: str) -> None:
    plain, again = (step_of(family, ["lora"], checkpointed) for checkpointed in (False, True))
    for name, tensor in plain.items():
        BIT_EXACT.check(again[name], tensor)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match="NanoGPT has no blocks that transformers can compute again; allowed: false"):
        checkpoint_blocks(FAMILIES["nanogpt"]())


def accounted(family: str, options: list[Any], checkpointed: bool) -> tuple[Accounting, Accounting]:
    """Measured and predicted."""
    batch, model = batch_for(family), model_of(family, checkpointed)
    chain = Chain.build(entries(*options)).attach(model)
    found = measure_step(model, chain, chain.optimizer(TrainSpec(lr=1e-3, steps=1)), batch, steps=1)
    return found, predict_step(lambda: model_of(family, checkpointed), entries(*options), batch)


@pytest.mark.parametrize("options", [["full"], ["lora"], ["nf4", "lora", {"part": "velora", "num_groups": 8}]], ids=str)
@pytest.mark.parametrize("family", ["distilbert", "llama"])
def test_what_is_kept_and_computed_again_is_predicted(family: str, options: list[Any]) -> None:
    (plain, _), (found, predicted) = (accounted(family, options, checkpointed) for checkpointed in (False, True))
    hold_together(found, predicted)
    assert predicted.recomputed_activation_bytes == found.recomputed_activation_bytes > 0
    assert plain.recomputed_activation_bytes == 0
    assert found.flops_forward == plain.flops_forward
    assert found.flops_backward > plain.flops_backward
    # Two equal blocks: one of them is held at a time, and of both their inputs.
    inputs = B * 6 * 16 * 4 * 2
    blocks = 2 * found.recomputed_activation_bytes
    assert found.saved_activation_bytes < plain.saved_activation_bytes
    assert abs(plain.saved_activation_bytes - (found.saved_activation_bytes - inputs + blocks)) <= 2 * inputs


def test_a_run_reaches_it_from_its_spec(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = run_spec([{"part": "nf4"}, {"part": "lora", "dropout": 0.2}], dropout=0.1)
    checkpointed = spec.model_copy(update={"model": spec.model.model_copy(update={"gradient_checkpointing": True})})
    assert checkpointed.dump()["model"]["gradient_checkpointing"] is True
    packs = [pack_of(RunSpec.model_validate(one.dump())) for one in (spec, checkpointed)]
    for pack in packs:
        train_pack(pack, StopFlag())
    plain, again = (pack.members[0].run for pack in packs)
    assert plain != again
    assert history(plain) == history(again)
    for name, tensor in weights(plain).items():
        BIT_EXACT.check(weights(again)[name], tensor)


def test_a_skeleton_has_it_too() -> None:
    model = skeleton(ModelSpec(card="llama_60m", gradient_checkpointing=True), "causal_lm", 0)
    assert len(checkpointed_blocks(model)) == 8
