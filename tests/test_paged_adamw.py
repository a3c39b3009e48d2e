"""Paged AdamW: the steps of AdamW, a state that a checkpoint can hold, one optimizer a chain."""

from __future__ import annotations

from typing import Any

import bitsandbytes
import pytest
import torch
from torch import nn

from lowrank.errors import ConfigError
from lowrank.methods.chain import Chain
from lowrank.methods.paged_adamw import PagedAdamW
from lowrank.spec import TrainSpec
from tests.tolerances import BIT_EXACT, PEER_FORWARD


@pytest.mark.parametrize("bits", [32, 8])
def test_is_adamw(bits: int) -> None:
    """In 32 bits the steps of torch's AdamW; in 8 bits those of bitsandbytes, moments in bytes."""
    spec = TrainSpec(lr=1e-2, steps=3, weight_decay=0.1, betas=(0.8, 0.95))
    ours, theirs = (nn.Parameter(torch.ones(64, 64)) for _ in range(2))
    optimizer = PagedAdamW(bits=bits).optimizer([("weight", ours)], spec)
    settings: dict[str, Any] = {"lr": 1e-2, "betas": (0.8, 0.95), "weight_decay": 0.1}
    peers = {32: torch.optim.AdamW, 8: bitsandbytes.optim.AdamW8bit}
    peer = peers[bits]([theirs], **settings)
    for seed in range(3):
        ours.grad = torch.randn(64, 64, generator=torch.Generator().manual_seed(seed))
        theirs.grad = ours.grad.clone()
        optimizer.step()
        peer.step()
    (BIT_EXACT if bits == 8 else PEER_FORWARD).check(ours, theirs)
    assert optimizer.state[ours]["state1"].dtype == {32: torch.float32, 8: torch.uint8}[bits]
    assert not torch.allclose(ours, torch.ones(64, 64))


@pytest.mark.parametrize("bits", [32, 8])
def test_resume_is_bit_exact(bits: int) -> None:
    """The state is flat, as a checkpoint wants it; after loading it the steps go on with the same bits."""
    spec = TrainSpec(lr=1e-2, steps=4)
    straight, resumed = (nn.Parameter(torch.ones(64, 64)) for _ in range(2))
    optimizer, other = (PagedAdamW(bits=bits).optimizer([("weight", w)], spec) for w in (straight, resumed))
    for step in range(4):
        if step == 2:
            state = optimizer.state_dict()
            assert all(isinstance(value, torch.Tensor | int) for value in state["state"][0].values())
            with torch.no_grad():
                resumed.copy_(straight)
            other.load_state_dict(state)
        for weight, at in ((straight, optimizer), (resumed, other)):
            weight.grad = torch.randn(64, 64, generator=torch.Generator().manual_seed(step))
            if weight is straight or step >= 2:
                at.step()
    BIT_EXACT.check(resumed, straight)


def test_one_optimizer_a_chain() -> None:
    with pytest.raises(ConfigError, match="'paged_adamw' stands in it twice"):
        Chain([PagedAdamW(), PagedAdamW()])
