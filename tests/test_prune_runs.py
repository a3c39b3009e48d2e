"""Pruning in a run: weights stay zero or grow back, with every kind of adapter, and masks survive a restart."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank.errors import ConfigError, IntegrityError
from lowrank.methods.adapted import adapted
from lowrank.methods.chain import Chain
from tests.chain_runs import attach, check_accumulation, check_resume, logits, train
from tests.tiny_models import FAMILIES, batch, make
from tests.tolerances import BIT_EXACT, FLOAT64_IDENTITY

METHODS = ["magnitude", "topk", "l1", "structured"]
ADAPTERS: list[dict[str, Any]] = [
    {"part": "lora", "rank": 4},
    {"part": "hira", "rank": 4},
    {"part": "mhlora", "rank": 2, "num_lora_heads": 2},
    {"part": "lte", "rank": 2, "num_lora_heads": 2, "merge_every": 2},
]


def prune(method: str = "magnitude", **options: Any) -> dict[str, Any]:
    return {"part": "prune", "method": method, "l1_lambda": 1e-3 if method == "l1" else 0.0, "start": 2} | options


def factors(chain: Chain) -> dict[str, nn.Parameter]:
    return {
        f"{name}.{key}": factor
        for name, layer in adapted(chain.model)
        for key, factor in layer.adapters.named_parameters()
    }


def run(family: str, parts: list[Any], steps: int, lr: float = 1e-2) -> tuple[Chain, list[dict[str, Tensor]]]:
    """A chain after so many steps, and the factors after each of them."""
    chain = attach(make(family), *parts)
    optimizer = torch.optim.AdamW(chain.trainable().values(), lr=lr, weight_decay=0.1)
    seen = []
    for step in range(steps):
        train(chain.model, chain, optimizer, [batch(family, 8, step)], first=step)
        seen.append({name: factor.detach().clone() for name, factor in factors(chain).items()})
    return chain, seen


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_pruned_weights_stay_zero(family: str, method: str) -> None:
    """Through momentum, weight decay and further gradients; the others go on training."""
    chain, seen = run(family, [{"part": "lora", "rank": 4}, prune(method)], steps=4)
    for name, end in seen[-1].items():
        zero = seen[1][name] == 0
        assert zero.sum() == zero.numel() // 2
        assert (end[zero] == 0).all()
        assert (end[~zero] != seen[1][name][~zero]).all()
    part: Any = chain["prune"]
    assert part.zeros() == (part.zeros()[1] // 2, sum(factor.numel() for factor in factors(chain).values()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda part: part["part"])
def test_every_kind_of_adapter(adapter: dict[str, Any], method: str) -> None:
    """Zeros in each factor, and the merged model answers as the adapted one."""
    chain, seen = run("bert", [adapter, prune(method)], steps=3)
    assert all((end == 0).sum() == end.numel() // 2 for end in seen[-1].values())
    rows = batch("bert", 4)
    before = logits(chain, rows)
    FLOAT64_IDENTITY.check(chain.merge().eval()(**rows).logits, before)


def test_dead_gradients_do_not_count() -> None:
    """The gradient of a pruned weight is zero, so that clipping sees live weights only."""
    chain, seen = run("bert", [{"part": "lora", "rank": 4}, prune()], steps=2)
    chain.model(**batch("bert", 4)).loss.backward()
    for name, factor in factors(chain).items():
        assert factor.grad is not None
        dead = seen[-1][name] == 0
        assert (factor.grad[dead] == 0).all()
        assert (factor.grad[~dead] != 0).any()


def test_weights_grow_back() -> None:
    """As published: pruned at the end of each epoch, training on in between."""
    _, seen = run("bert", [{"part": "lora", "rank": 4}, prune(start=2, every=2, regrow=True)], steps=5)
    for name, factor in seen[0].items():
        shares = [(step[name] == 0).sum() / factor.numel() for step in seen]
        assert shares == [0, 0.5, 0, 0.5, 0], name


def test_without_sparsity_it_is_lora() -> None:
    _, pruned = run("bert", [{"part": "lora", "rank": 4}, prune(sparsity=0.0, start=1, every=1)], steps=3)
    _, plain = run("bert", [{"part": "lora", "rank": 4}], steps=3)
    for name, factor in plain[-1].items():
        BIT_EXACT.check(pruned[-1][name], factor)


def test_gradual_zeros_only_grow() -> None:
    """A weight that went in an early step of the ramp is gone for good."""
    options = {"schedule": "cubic", "start": 1, "every": 2, "end": 7, "sparsity": 0.7}
    _, seen = run("gpt2", [{"part": "lora", "rank": 4}, prune(**options)], steps=9)
    for name, end in seen[-1].items():
        zeros = [step[name] == 0 for step in seen[1:]]
        assert all((later | ~earlier).all() for earlier, later in itertools.pairwise(zeros))
        assert (end == 0).sum() == int(0.7 * (end.numel() - 1)) + 1


@pytest.mark.parametrize("method", METHODS)
def test_penalty(method: str) -> None:
    """lambda times the sum of |w| over every factor, with gradient lambda sign(w)."""
    chain = attach(make("bert"), {"part": "lora", "rank": 4}, prune(method, l1_lambda=0.01))
    with torch.no_grad():
        for factor in factors(chain).values():
            factor.normal_(generator=torch.Generator().manual_seed(0))
    penalty = chain.penalty()
    assert penalty is not None
    FLOAT64_IDENTITY.check(penalty, 0.01 * torch.cat([f.flatten() for f in factors(chain).values()]).abs().sum())
    penalty.backward()
    for factor in factors(chain).values():
        FLOAT64_IDENTITY.check(factor.grad, 0.01 * factor.sign())


def test_no_penalty_without_lambda() -> None:
    chain = attach(make("bert"), {"part": "lora", "rank": 4}, prune())
    assert chain.penalty() == 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "structured", "start": 5},
        {"regrow": True, "every": 3},
        {"schedule": "linear", "start": 1, "every": 2, "end": 7},
    ],
)
@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda part: part["part"])
def test_resume_is_bit_exact(adapter: dict[str, Any], options: dict[str, Any]) -> None:
    check_resume("bert", [adapter, prune(**options)])


@pytest.mark.parametrize("method", METHODS)
def test_accumulation(method: str) -> None:
    check_accumulation("gpt2", [{"part": "lora", "rank": 4}, prune(method)], 2, FLOAT64_IDENTITY)


def test_refused_chains() -> None:
    with pytest.raises(ConfigError, match=r"prune: no adapters before it in chain full\.prune"):
        attach(make("bert"), "full", prune())
    with pytest.raises(ConfigError, match=r"prune: no adapters before it in chain prune\.lora"):
        attach(make("bert"), prune(), "lora")


def test_refused_state() -> None:
    chain = attach(make("bert"), {"part": "lora", "rank": 4}, prune())
    with pytest.raises(IntegrityError, match=r"mask 'nowhere' of shape \(2,\) fits no adapter"):
        chain.load_state_dict({"prune.nowhere": torch.ones(2, dtype=torch.bool)})
