"""Plain low-rank training: the start, the counts, the function, merging and refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowrank.errors import ConfigError
from lowrank.methods.adapted import dense_weight
from lowrank.methods.chain import Chain
from lowrank.methods.low_rank import FactoredLinear
from lowrank.registry import parse_options
from lowrank.spec import TrainSpec
from lowrank.targets import linear_names
from tests.chain_runs import attach, train
from tests.tiny_models import WIDTH, batch, make
from tests.tolerances import BIT_EXACT, FLOAT64_IDENTITY, MERGE


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_the_start_is_the_best_approximation_of_that_rank(family: str) -> None:
    plain, model = make(family), make(family)
    attach(model, "full", {"part": "low_rank", "rank": 3})
    assert linear_names(model, head=False) == linear_names(plain, head=False)
    for name in linear_names(plain, head=False):
        weight = dense_weight(plain.get_submodule(name)).double()
        missed = torch.linalg.matrix_norm(dense_weight(model.get_submodule(name)) - weight)
        # Eckart and Young: what no matrix of rank 3 can hold.
        FLOAT64_IDENTITY.check(missed, torch.linalg.svdvals(weight)[3:].square().sum().sqrt())


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_the_factors_do_not_depend_on_a_librarys_signs(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, inner = nn.Linear(*shape, dtype=torch.float64), torch.linalg.svd
    plain = FactoredLinear(layer, 4)

    def other(weight: torch.Tensor, **told: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        U, S, Vh = inner(weight, **told)
        signs = torch.tensor([-1.0, 1.0], dtype=U.dtype).repeat(len(S) // 2)
        return U * signs, S, Vh * signs[:, None]

    monkeypatch.setattr(torch.linalg, "svd", other)
    turned = FactoredLinear(layer, 4)
    BIT_EXACT.check(turned.factor_A, plain.factor_A)
    BIT_EXACT.check(turned.factor_B, plain.factor_B)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_at_full_rank_the_function_is_kept(family: str) -> None:
    plain, model, inputs = make(family), make(family), batch(family, 3)
    attach(model, "full", {"part": "low_rank", "rank": WIDTH})
    with torch.no_grad():
        FLOAT64_IDENTITY.check(model.eval()(**inputs).logits, plain.eval()(**inputs).logits)


def test_a_layer_trains_rank_times_in_plus_out_numbers() -> None:
    plain, model = make("gpt2"), make("gpt2")
    chain = attach(model, {"part": "low_rank", "rank": 2})
    sizes = [sum(dense_weight(plain.get_submodule(name)).shape) for name in linear_names(plain, head=False)]
    assert sum(p.numel() for p in chain.trainable().values()) == 2 * sum(sizes)
    assert not any(name.endswith(".weight") for name in chain.trainable())
    full = attach(make("gpt2"), "full", {"part": "low_rank", "rank": 2})
    rest = sum(p.numel() for name, p in full.trainable().items() if "factor_" not in name)
    weights = sum(dense_weight(plain.get_submodule(name)).numel() for name in linear_names(plain, head=False))
    assert rest == sum(p.numel() for p in plain.parameters()) - weights


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_trained_merged_and_unmerged(family: str) -> None:
    model = make(family)
    chain = attach(model, "full", {"part": "low_rank", "rank": 3})
    batches = [batch(family, 4, seed) for seed in range(3)] * 6
    losses = train(model, chain, torch.optim.AdamW(chain.trainable().values(), lr=1e-2), batches)
    assert losses[-1] < losses[0]
    inputs = batch(family, 4)
    with torch.no_grad():
        before = model.eval()(**inputs).logits
        merged = chain.merge().eval()
        MERGE.check(merged(**inputs).logits, before)
        assert not any(isinstance(module, FactoredLinear) for module in merged.modules())
        for name in linear_names(merged, head=False):
            assert torch.linalg.matrix_rank(dense_weight(merged.get_submodule(name))) == 3
        chain.unmerge()
        MERGE.check(model(**inputs).logits, before)


def test_another_part_can_bring_the_optimizer() -> None:
    model = make("llama")
    chain = attach(model, "full", {"part": "low_rank", "rank": 4}, {"part": "galore", "rank": 2})
    factor = next(p for name, p in chain.trainable().items() if name.endswith("factor_B"))
    before = factor.detach().clone()
    train(model, chain, chain.optimizer(TrainSpec(lr=1e-2, steps=1)), [batch("llama", 4)])
    assert torch.linalg.matrix_rank(factor.detach() - before) == 2


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["full", {"part": "low_rank", "rank": WIDTH + 1}], rf"rank {WIDTH + 1} is too large for .*allowed: 1 to"),
        (["lora", "low_rank"], "low_rank: no weight is left that lora could work on"),
        (["low_rank", "hira"], "low_rank: no weight is left that hira could work on"),
        (["nf4", "low_rank"], "low_rank: no weight is left that nf4 could work on"),
        (["full", {"part": "low_rank", "rank": 2, "targets": "lm_head"}], "the weight of 'lm_head' is tied"),
        (["full", {"part": "low_rank", "targets": "wte"}], "wte.*which is a Embedding"),
    ],
)
def test_refusals(parts: list[object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attach(make("gpt2").float(), *parts)  # type: ignore[arg-type]


def test_on_the_meta_device_it_is_counted_without_numbers() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(96, 64))
    chain = Chain.build([parse_options({"part": "low_rank", "rank": 8})]).attach(model)
    assert {tuple(p.shape) for p in chain.trainable().values()} == {(8, 96), (64, 8)}
