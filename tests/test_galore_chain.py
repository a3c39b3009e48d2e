"""GaLore in a chain: what it projects, with whom it goes together, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lowrank.errors import ConfigError
from lowrank.methods.chain import Chain
from lowrank.methods.galore_projector import state_numel
from lowrank.spec import TrainSpec
from lowrank.targets import linear_names
from tests.chain_runs import attach, snapshot, train
from tests.tiny_models import FAMILIES, batch, make
from tests.tolerances import FLOAT64_IDENTITY


def galore(**options: Any) -> dict[str, Any]:
    return {"part": "galore", "rank": 4, "update_gap": 3, **options}


def spec(**values: Any) -> TrainSpec:
    return TrainSpec(**{"lr": 1e-2, "steps": 1, **values})


@pytest.mark.parametrize("family", FAMILIES)
def test_projects_the_matrices_of_the_trunk_and_nothing_else(family: str) -> None:
    model = make(family)
    names = linear_names(model, head=False)
    chain = attach(model, "full", galore())
    optimizer = chain.optimizer(spec())
    projected, plain = (group["params"] for group in optimizer.param_groups)
    assert {id(p) for p in projected} == {id(model.get_submodule(name).weight) for name in names}
    assert len(projected) + len(plain) == len(list(model.parameters()))
    assert sum(p.numel() for p in projected + plain) == sum(p.numel() for p in model.parameters())
    before = snapshot(model)
    train(model, chain, optimizer, [batch(family, 4, seed) for seed in range(2)])
    for name in names:
        assert not torch.equal(before[f"{name}.weight"], model.state_dict()[f"{name}.weight"]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_full_rank_sgd_through_a_model_is_sgd(family: str) -> None:
    ends = []
    for owned in (True, False):
        model = make(family)
        part = galore(rank=16, scale=1.0, optimizer="sgd", update_gap=2, excess_rank="clip")
        chain = attach(model, "full", *([part] if owned else []))
        optimizer = chain.optimizer(spec(lr=0.1)) if owned else torch.optim.SGD(chain.trainable().values(), lr=0.1)
        train(model, chain, optimizer, [batch(family, 4, seed) for seed in range(3)])
        ends.append(snapshot(model))
    for name, tensor in ends[0].items():
        FLOAT64_IDENTITY.check(tensor, ends[1][name])


def test_accumulation_gives_the_weights_of_one_large_batch() -> None:
    ends = []
    for micro in (8, 2):
        model = make("gpt2")
        chain = attach(model, "full", galore(scale=1.0, optimizer="sgd", update_gap=2))
        train(model, chain, chain.optimizer(spec(lr=0.1)), [batch("gpt2", 8, seed) for seed in range(4)], micro=micro)
        ends.append(snapshot(model))
    for name, tensor in ends[0].items():
        FLOAT64_IDENTITY.check(tensor, ends[1][name])


def test_stacked_heads_are_projected_one_by_one() -> None:
    model = make("gpt2")
    chain = attach(model, {"part": "lte", "num_lora_heads": 4, "rank": 3, "merge_every": 2}, galore(rank=2))
    optimizer = chain.optimizer(spec())
    projected = optimizer.param_groups[0]["params"]
    assert {p.ndim for p in projected} == {3}
    train(model, chain, optimizer, [batch("gpt2", 8, seed) for seed in range(5)])
    for parameter in projected:
        state = optimizer.state[parameter]
        heads, rows, cols = parameter.shape
        assert heads == 4
        held = sum(value.numel() for value in state.values() if isinstance(value, Tensor))
        assert held == heads * state_numel(rows, cols, 2)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([galore()], r"chain galore trains no weight matrix"),
        (["full", galore(rank=17)], r"rank 17 is too large for 'transformer.h.0.attn.c_attn'; allowed: 1 to 16"),
        ([{"part": "lte", "rank": 2}, galore(rank=3)], r"rank 3 is too large .*allowed: 1 to 2, or excess_rank: clip"),
        (["full", galore(targets="c_atn")], r"'c_atn' matches no module.*did you mean 'c_attn'"),
    ],
)
def test_refuses_with_the_layer_and_the_limit(parts: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attach(make("gpt2"), *parts)


def test_refuses_a_linear_probe() -> None:
    with pytest.raises(ConfigError, match=r"chain linear_probe.galore trains no weight matrix"):
        attach(make("bert"), "linear_probe", galore())


def test_refuses_targets_that_the_chain_does_not_train() -> None:
    chain = attach(make("gpt2"), {"part": "lora", "targets": "c_fc", "rank": 4}, galore(targets="c_attn"))
    with pytest.raises(ConfigError, match=r"no matrix of the targets c_attn trains; 4 other parameters do"):
        chain.optimizer(spec())


def test_an_excess_rank_is_cut_where_that_is_asked_for() -> None:
    model = make("gpt2")
    chain: Chain = attach(model, {"part": "lora", "rank": 4}, galore(rank=512, excess_rank="clip"))
    optimizer = chain.optimizer(spec())
    train(model, chain, optimizer, [batch("gpt2", 4)])
    for parameter in optimizer.param_groups[0]["params"]:
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape


@pytest.mark.parametrize("option", [{"rank": 0}, {"scale": 0}, {"update_gap": 0}, {"projector": "std_reverse"}])
def test_refuses_options_out_of_range(option: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=next(iter(option))):
        attach(make("gpt2"), "full", galore(**option))
