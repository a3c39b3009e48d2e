"""Which parts go together, found by trying: every ordered pair is attached to a tiny model, trained and merged.

`lowrank.catalogue` prints what comes out, and the tests hold it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowrank import registry
from lowrank.errors import ConfigError
from lowrank.methods.chain import Chain
from lowrank.spec import TrainSpec

SMALL: dict[str, Any] = {
    "rank": 4,
    "estimator_rank": 4,
    "num_groups": 4,
    "num_lora_heads": 2,
    "merge_every": 2,
    "update_gap": 2,
    "start": 1,
    "dense_steps": 0,
}
"""Option -> the value with which it fits a model of width 16 and does its work within a few steps."""

FRONTS = ((), ("full",), ("lora",), ("nf4", "lora"))
"""What may stand in front of a part that needs company, the least first."""

STEPS = 3

CHAINS = {
    "full+velora": "VeLoRA in pre-training",
    "full+galore": "GaLore",
    "full+low_rank": "plain low-rank pre-training, W = B A",
    "full+lora+alpha_merge": "SuperReLoRA beside a base that trains",
    "lora+alpha_merge": "SuperReLoRA",
    "lora+relora": "ReLoRA",
    "lora+prune": "the comparison document's Sparse LoRA",
    "lora+contextual_sparsity": "SparseLoRA",
    "lora+velora": "VeLoRA on LoRA's input, as for Alpaca",
    "lora+lean": "LoRA that saves two thirds of the activations, without loss",
    "hira+velora": "VeLoRA on HiRA's input",
    "lte+galore": "LTE with GaLore as its optimizer",
    "nf4+lora": "QLoRA",
    "nf4+lora+paged_adamw": "QLoRA with its optimizer",
    "nf4+hira": "HiRA on a base in 4 bits",
    "nf4+lora+velora": "QLoRA that keeps VeLoRA's sub-tokens",
}
"""Chains that the documents and their papers name, each tried like the pairs."""


@dataclass(frozen=True)
class Trial:
    """What came of trying a chain.

    Args:
        refusal: the sentence with which it was refused, or None where it trained.
        logits: what evaluation sees after `STEPS` steps, (B, classes).
        merge_error: largest difference that merging made to those logits.
        start: the chain's tensors and state before the first step, so that another order can start from the same.
    """

    refusal: str | None
    logits: Tensor | None = None
    merge_error: float = 0.0
    start: tuple[Mapping[str, Tensor], Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Pair:
    """How two parts compose in this order.

    Args:
        refusal: the sentence with which the chain is refused, or None.
        order_matters: both orders train, and from the same start they end with another function.
    """

    refusal: str | None
    order_matters: bool


def small(part: str) -> dict[str, Any]:
    """An entry of a chain: the part with options that fit a tiny model, everything else at its default."""
    fields = registry.part(part).Options.model_fields
    return {"part": part, **{option: value for option, value in SMALL.items() if option in fields}}


def tiny_model() -> nn.Module:
    """A BERT classifier of two layers and width 16, without dropout, always with the same weights."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        vocab_size=40,
        max_position_embeddings=8,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model: nn.Module = BertForSequenceClassification(config)
    return model


def attempt(parts: Sequence[str], like: Trial | None = None) -> Trial:
    """Attaches, trains a few steps and merges. Anything but a refusal in words is a defect, and is raised.

    Args:
        parts: names, in order; each with the options of `small`.
        like: a trial of the same parts in another order, whose start is taken.
    """
    generator = torch.Generator().manual_seed(1)
    batch = {
        "input_ids": torch.randint(40, (4, 6), generator=generator),
        "labels": torch.randint(3, (4,), generator=generator),
    }
    train = TrainSpec(lr=1e-2, steps=STEPS)
    try:
        chain = Chain.build([registry.parse_options(small(part)) for part in parts]).attach(tiny_model())
        if like is not None and like.start is not None:
            chain.load_changed(like.start[0])
            chain.load_state_dict(like.start[1])
        start = {name: tensor.clone() for name, tensor in chain.changed().items()}, chain.state_dict()
        optimizer = chain.optimizer(train)
        chain.schedule(train, STEPS)
        for step in range(STEPS):
            _one_step(chain, optimizer, batch, step)
    except ConfigError as error:
        return Trial(str(error))
    with chain.eval_mode() as model:
        seen: Tensor = model(**batch).logits
    with torch.no_grad():
        merged: Tensor = chain.merge().eval()(**batch).logits
    return Trial(None, seen, (merged - seen).abs().max().item(), start)


def _one_step(chain: Chain, optimizer: torch.optim.Optimizer, batch: Mapping[str, Tensor], step: int) -> None:
    assert chain.model is not None
    chain.model.train()
    chain.before_step([batch], step)
    chain.before_forward(batch, step)
    loss = chain.model(**batch).loss
    penalty = chain.penalty()
    (loss if penalty is None else loss + penalty).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    chain.after_step(optimizer, step + 1)


@functools.cache
def least_chain(part: str) -> tuple[str, ...]:
    """The shortest chain that trains and ends in that part, or begins with it.

    Raises:
        ConfigError: none of those tried trains; the sentence of the last one.
    """
    tried = [(*front, part) for front in FRONTS if part not in front] + [(part, "lora")]
    for chain in sorted(tried, key=len):
        trial = attempt(chain)
        if trial.refusal is None:
            return chain
    raise ConfigError(f"{part}: no chain of {tried} trains; {trial.refusal}")


@functools.cache
def pairs(front: tuple[str, ...] = ()) -> dict[tuple[str, str], Pair]:
    """Every ordered pair of different parts, in alphabetical order.

    Args:
        front: parts that stand in front of each pair.
    """
    found: dict[tuple[str, str], Pair] = {}
    for a, b in itertools.combinations((part for part in registry.parts() if part not in front), 2):
        first = attempt((*front, a, b))
        second = attempt((*front, b, a), like=first)
        matters = False
        if first.logits is not None and second.logits is not None:
            matters = not torch.allclose(first.logits, second.logits, rtol=1e-4, atol=1e-5)
        found[a, b], found[b, a] = Pair(first.refusal, matters), Pair(second.refusal, matters)
    return dict(sorted(found.items()))
