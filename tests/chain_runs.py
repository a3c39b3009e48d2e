"""Attaching, training and the checks that hold for every part, on the models of `tiny_models`."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lowrank import registry
from lowrank.methods.chain import Chain
from lowrank.methods.part import make as make_part
from tests.tiny_models import batch, make
from tests.tolerances import Tolerance


def attach(model: nn.Module, *parts: str | dict[str, Any], seed: int = 0) -> Chain:
    """A chain of parts, as a study names them, attached in double precision."""
    chain = Chain([make_part(registry.parse_options(part)) for part in parts]).attach(model, seed)
    model.double()
    return chain


def train(
    model: nn.Module,
    chain: Chain,
    optimizer: torch.optim.Optimizer,
    batches: list[dict[str, Tensor]],
    *,
    first: int = 0,
    micro: int | None = None,
) -> list[float]:
    """One optimizer step per batch, cut into micro-batches of `micro` examples; returns the losses."""
    model.train()
    losses = []
    for step, whole in enumerate(batches, start=first):
        size = len(whole["labels"])
        starts = range(0, size, micro or size)
        cuts = [{key: tensor[i : i + (micro or size)] for key, tensor in whole.items()} for i in starts]
        chain.before_step(cuts, step)
        total = 0.0
        for cut in cuts:
            chain.before_forward(cut, step)
            loss = model(**cut).loss * (len(cut["labels"]) / size)
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        chain.after_step(optimizer, step + 1)
        losses.append(total)
    return losses


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def logits(chain: Chain, inputs: dict[str, Tensor]) -> Tensor:
    """What evaluation sees."""
    with chain.eval_mode() as model:
        result: Tensor = model(**inputs).logits
    return result


def check_resume(family: str, parts: list[Any], *, before: int = 4, after: int = 4, lr: float = 1e-2) -> None:
    """Asserts that a run that is stopped and resumed ends with the same bits as one that is not."""
    batches = [batch(family, 8, seed) for seed in range(before + after)]

    def start() -> tuple[nn.Module, Chain, torch.optim.Optimizer]:
        model = make(family)
        chain = attach(model, *parts)
        return model, chain, torch.optim.AdamW(chain.trainable().values(), lr=lr)

    straight, chain, optimizer = start()
    train(straight, chain, optimizer, batches[:before])
    weights = {name: tensor.clone() for name, tensor in chain.changed().items()}
    moments, state = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(chain.state_dict())
    train(straight, chain, optimizer, batches[before:], first=before)

    resumed, chain, optimizer = start()
    chain.load_changed(weights)
    optimizer.load_state_dict(moments)
    chain.load_state_dict(state)
    train(resumed, chain, optimizer, batches[before:], first=before)
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def check_accumulation(family: str, parts: list[Any], micro: int, tolerance: Tolerance) -> None:
    """Asserts that micro-batches give the weights of one large batch, after steps that include merges."""
    batches = [batch(family, 8, seed) for seed in range(4)]
    ends = []
    for size in (8, micro):
        model = make(family)
        chain = attach(model, *parts)
        optimizer = torch.optim.SGD(chain.trainable().values(), lr=0.1)
        train(model, chain, optimizer, batches, micro=size)
        ends.append(snapshot(model))
    for name, tensor in ends[0].items():
        tolerance.check(ends[1][name], tensor)
