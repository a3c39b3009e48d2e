"""A stack in double precision: each member moves as if alone, whatever the part, family, ranks and seeds."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank import registry
from lowrank.errors import ConfigError
from lowrank.methods.chain import Chain
from lowrank.methods.part import make as make_part
from lowrank.methods.stacked import corner, share_base
from lowrank.methods.stacked_chain import StackedChain
from lowrank.spec import TrainSpec
from lowrank.targets import head_names
from lowrank.train.stacked_adamw import StackedAdamW
from tests.tiny_models import batch, make
from tests.tolerances import FLOAT64_IDENTITY

STEPS = 4

TRAINS = [
    TrainSpec(lr=1e-2, steps=STEPS, weight_decay=0.1, clip_norm=0.05),
    TrainSpec(lr=3e-3, steps=STEPS, schedule="cosine", warmup_steps=2),
    TrainSpec(lr=1e-3, steps=STEPS, clip_norm=1.0),
]

PRUNE = {"part": "prune", "start": 1, "every": 2, "sparsity": 0.5}
CHAINS: dict[str, list[list[Any]]] = {
    "lora": [[{"part": "lora", "rank": rank, "alpha": 4 * rank + 1}] for rank in (2, 4, 3)],
    "lora, head adapted": [[{"part": "lora", "rank": rank, "head": "adapted"}] for rank in (2, 4, 3)],
    "lora, all biases": [[{"part": "lora", "rank": rank, "bias": "all", "head": "frozen"}] for rank in (2, 4, 3)],
    "lora, adapted biases": [[{"part": "lora", "rank": rank, "bias": "adapted"}] for rank in (2, 2, 3)],
    "hira": [[{"part": "hira", "rank": rank}] for rank in (2, 4, 3)],
    "hira, adapted biases": [[{"part": "hira", "rank": 2, "bias": "adapted", "form": "product"}]] * 3,
    "linear_probe": [["linear_probe"]] * 3,
    "prune": [
        [{"part": "lora", "rank": 2}, PRUNE],
        [{"part": "lora", "rank": 3}, {**PRUNE, "sparsity": 0.25, "start": 2}],
        [{"part": "lora", "rank": 4}, {"part": "prune", "start": 1, "sparsity": 0.0, "l1_lambda": 1e-3}],
    ],
    "prune, regrow": [[{"part": "lora", "rank": 2}, {**PRUNE, "sparsity": s, "regrow": True}] for s in (0.5, 0.2, 0.7)],
    "prune, structured": [[{"part": "lora", "rank": r}, {**PRUNE, "method": "structured"}] for r in (4, 2, 3)],
    "velora": [[{"part": "lora", "rank": r}, {"part": "velora", "num_groups": 4, "layers": "d"}] for r in (2, 4, 3)],
    "velora, svd": [[{"part": "hira", "rank": 2}, {"part": "velora", "num_groups": 2, "init": "svd"}]] * 3,
}
FAMILIES = {"lora": ["bert", "distilbert", "gpt2", "llama", "vit"], "hira": ["gpt2", "llama", "vit"]}
CASES = [(family, name) for name in CHAINS for family in FAMILIES.get(name, ["distilbert"])]


def attached(family: str, parts: list[Any], seed: int) -> Chain:
    """The same trunk for every seed, a head of the seed's own."""
    model = make(family)
    generator = torch.Generator().manual_seed(seed)
    for name in head_names(model):
        for parameter in model.get_submodule(name).parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)
    chain = Chain([make_part(registry.parse_options(part)) for part in parts]).attach(model, seed)
    model.double().train()
    return chain


def stacked(family: str, chains: list[list[Any]]) -> StackedChain:
    members = [attached(family, parts, seed) for seed, parts in enumerate(chains)]
    first = attached(family, chains[0], 99)
    for member in members:
        share_base(first.attached, member.attached)
    return StackedChain(first, members)


def rows(family: str, member: int, step: int, size: int) -> dict[str, Tensor]:
    return batch(family, size, seed=10 * step + member)


def mean_loss(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """In double; transformers computes its own in float32."""
    logits, labels = model(**{key: value for key, value in inputs.items() if key != "labels"}).logits, inputs["labels"]
    if labels.ndim == 2:
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return nn.functional.cross_entropy(logits, labels)


def train_alone(family: str, parts: list[Any], member: int, size: int) -> tuple[list[Tensor], Chain]:
    chain, train = attached(family, parts, member), TRAINS[member]
    optimizer = torch.optim.AdamW(chain.trainable().values(), lr=train.lr, weight_decay=train.weight_decay, fused=True)
    factor = StackedAdamW({"x": nn.Parameter(torch.zeros(1, 1))}, [train], STEPS).factors[0]
    losses = []
    for step in range(STEPS):
        inputs = rows(family, member, step, size)
        chain.before_step([inputs], step)
        loss = mean_loss(chain.attached, inputs)
        penalty = chain.penalty()
        (loss if penalty is None else loss + penalty).backward()
        if train.clip_norm is not None:
            nn.utils.clip_grad_norm_(chain.trainable().values(), train.clip_norm)
        optimizer.param_groups[0]["lr"] = train.lr * factor[step]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        chain.after_step(optimizer, step + 1)
        losses.append(loss.detach())
    return losses, chain


def train_together(family: str, stack: StackedChain, size: int) -> list[Tensor]:
    adamw = StackedAdamW(stack.trainable(), TRAINS, STEPS)
    losses = []
    for step in range(STEPS):
        own = [rows(family, member, step, size) for member in range(len(TRAINS))]
        inputs = {key: torch.cat([one[key] for one in own]) for key in own[0]}
        stack.before_step([inputs], step)
        loss = len(own) * mean_loss(stack.attached, inputs)  # the mean over the members, who have equally many units
        penalty = stack.penalty()
        (loss if penalty is None or not penalty.requires_grad else loss + penalty).backward()
        adamw.step()
        stack.after_step(adamw.optimizer, step + 1)
        losses.append(loss.detach())
    return losses


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize(("family", "name"), CASES)
def test_each_member_moves_as_if_alone(family: str, name: str, size: int) -> None:
    chains = CHAINS[name]
    stack = stacked(family, chains)
    found = train_together(family, stack, size)
    ends = [train_alone(family, parts, member, size) for member, parts in enumerate(chains)]
    expected = [torch.stack(losses).sum() for losses in zip(*(losses for losses, _ in ends), strict=True)]
    FLOAT64_IDENTITY.check(torch.stack(found), torch.stack(expected))
    for member, (_, chain) in enumerate(ends):
        ours = stack.weights(member)
        assert ours.keys() == chain.changed().keys()
        for key, tensor in chain.changed().items():
            FLOAT64_IDENTITY.check(ours[key], tensor)
        assert stack.members[member].state_dict().keys() == chain.state_dict().keys()
        for key, value in chain.state_dict().items():
            ours_kept = stack.members[member].state_dict()[key]
            assert torch.equal(ours_kept, value) or value.dtype == torch.float32
            FLOAT64_IDENTITY.check(ours_kept.double(), value.double()) if value.dtype == torch.float32 else None


def test_what_fills_up_a_smaller_rank_stays_zero() -> None:
    stack = stacked("distilbert", CHAINS["lora"])
    train_together("distilbert", stack, 4)
    for name, tensor in stack.trainable().items():
        for member, shapes in enumerate(stack.shapes):
            rest = tensor.detach()[member].clone()
            rest[corner(shapes[name])] = 0
            assert not rest.any(), name


def test_the_trunk_lies_in_memory_once() -> None:
    members = [attached("distilbert", ["lora"], seed) for seed in range(2)]
    share_base(members[0].attached, members[1].attached)
    first, second = (dict(member.attached.named_parameters()) for member in members)
    shared = [name for name in first if first[name].data_ptr() == second[name].data_ptr()]
    assert len(shared) > 10
    assert not any(first[name].requires_grad or name.startswith("classifier") for name in shared)


def test_trunks_that_differ_are_not_shared() -> None:
    members = [attached("distilbert", ["lora"], seed) for seed in range(2)]
    with torch.no_grad():
        next(iter(members[1].attached.parameters())).add_(1)
    with pytest.raises(ConfigError, match="differs between the members"):
        share_base(members[0].attached, members[1].attached)


REFUSED = {
    "a part without the hook": ("distilbert", ["full"], "full has no form for several members"),
    "dropout of the adapter": ("distilbert", [{"part": "lora", "dropout": 0.1}], "lora: dropout 0.1"),
    "what stands beside the adapters": ("distilbert", [{"part": "lora", "rest": "trained"}], "Embedding"),
    "a bias of a transposed layer": ("gpt2", [{"part": "lora", "bias": "adapted"}], "Conv1D"),
}


@pytest.mark.parametrize(("family", "parts", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_stacked_says_why(family: str, parts: list[Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        stacked(family, [parts, copy.deepcopy(parts)])


def test_a_base_with_dropout_cannot_be_stacked() -> None:
    chains = [attached("distilbert", ["lora"], seed) for seed in range(2)]
    next(m for m in chains[0].attached.modules() if isinstance(m, nn.Dropout)).p = 0.1
    with pytest.raises(ConfigError, match=r"dropout .* 0.1"):
        StackedChain(chains[0], chains[1:])
