"""LoRA against its formula, PEFT, and the symmetries it has; merging; refusals."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lowrank.errors import ConfigError
from lowrank.methods.adapted import adapted
from lowrank.methods.lora import Lora
from tests.chain_runs import attach, check_accumulation, check_resume, logits, snapshot, train
from tests.lora_layer import by_formula, gradients, layer_of
from tests.tiny_models import FAMILIES, WIDTH, batch, make
from tests.tolerances import BIT_EXACT, FLOAT64_IDENTITY, PEER_FORWARD, PEER_GRADIENT

LORA: dict[str, Any] = {"part": "lora", "rank": 2, "alpha": 6.0}


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    n=st.integers(1, 9),
    m=st.integers(1, 9),
    rank=st.integers(1, 9),
    bias=st.booleans(),
    strided=st.booleans(),
)
def test_is_its_formula(shape: list[int], n: int, m: int, rank: int, bias: bool, strided: bool) -> None:
    layer = layer_of(n, m, rank, bias=bias, alpha=3.0)
    x = torch.randn(*shape, n, dtype=torch.float64)
    x = x.transpose(0, -2).contiguous().transpose(0, -2) if strided else x
    x.requires_grad_(True)
    FLOAT64_IDENTITY.check(layer(x), by_formula(layer, x))
    for ours, formula in zip(gradients(layer(x), layer, x), gradients(by_formula(layer, x), layer, x), strict=True):
        FLOAT64_IDENTITY.check(ours, formula)


@pytest.mark.parametrize("family", FAMILIES)
def test_same_as_peft(family: str) -> None:
    ours, theirs = make(family).float(), make(family).float()
    chain = attach(ours, {**LORA, "head": "frozen"})
    ours.float()
    names = {name.rsplit(".", 1)[-1] if family != "bert" else name for name, _ in adapted(ours, "lora")}
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=sorted(names), fan_in_fan_out=family == "gpt2")
    wrapped = peft.inject_adapter_in_model(config, theirs)
    layers = {name: layer.adapters["lora"] for name, layer in adapted(ours, "lora")}
    for name, adapter in layers.items():
        nn.init.normal_(adapter.lora_B, std=0.1)
        peer = wrapped.get_submodule(name)
        peer.lora_A.default.weight.data.copy_(adapter.lora_A)
        peer.lora_B.default.weight.data.copy_(adapter.lora_B)
    inputs = {key: value.float() if value.is_floating_point() else value for key, value in batch(family, 4).items()}
    ours.train(), wrapped.train()
    out, peer_out = ours(**inputs), wrapped(**inputs)
    PEER_FORWARD.check(out.logits, peer_out.logits)
    out.loss.backward(), peer_out.loss.backward()
    for name, adapter in layers.items():
        peer = wrapped.get_submodule(name)
        PEER_GRADIENT.check(adapter.lora_A.grad, peer.lora_A.default.weight.grad)
        PEER_GRADIENT.check(adapter.lora_B.grad, peer.lora_B.default.weight.grad)
    assert len(chain.trainable()) == 2 * len(layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_attaching_changes_nothing_and_merging_keeps_the_function(family: str) -> None:
    model, inputs = make(family), batch(family, 4)
    before = model.eval()(**inputs).logits
    weights = snapshot(model)
    chain = attach(model, LORA)
    BIT_EXACT.check(logits(chain, inputs), before)
    for _, layer in adapted(model, "lora"):
        nn.init.normal_(layer.adapters["lora"].lora_B)
    trained = logits(chain, inputs)
    assert not torch.allclose(trained, before)
    plain = chain.merge()
    assert set(snapshot(plain)) == set(weights)
    FLOAT64_IDENTITY.check(plain.eval()(**inputs).logits, trained)
    chain.unmerge()
    FLOAT64_IDENTITY.check(logits(chain, inputs), trained)


def test_the_embedding_survives_a_merge_into_a_tied_head() -> None:
    model, inputs = make("nanogpt"), batch("nanogpt", 4)
    chain = attach(model, {**LORA, "targets": ["lm_head"]})
    nn.init.normal_(model.lm_head.adapters["lora"].lora_B)  # type: ignore[union-attr, index]
    trained, embedding = logits(chain, inputs), model.wte.weight.clone()  # type: ignore[union-attr, operator]
    plain = chain.merge()
    BIT_EXACT.check(plain.wte.weight, embedding)
    FLOAT64_IDENTITY.check(plain(**inputs).logits, trained)


def test_a_shared_module_gets_one_adapter_and_both_gradients() -> None:
    shared = nn.Linear(4, 4).double()
    model = nn.Sequential(shared, nn.Tanh(), shared)
    chain = attach(model, {**LORA, "targets": ["0"]})
    assert len(chain.trainable()) == 2
    assert model[0] is model[2]
    layer: Any = model[0]
    nn.init.normal_(layer.adapters["lora"].lora_B)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    formula = by_formula(layer, torch.tanh(by_formula(layer, x)))
    for ours, expected in zip(gradients(model(x), layer, x), gradients(formula, layer, x), strict=True):
        FLOAT64_IDENTITY.check(ours, expected)


def test_adam_sees_only_the_product_of_the_scales() -> None:
    """alpha -> alpha p q, A -> A / p with lr_A / p, and lr_B / q leave the whole run as it is."""
    p, q, lr = 3.0, 0.5, 1e-2
    batches = [batch("distilbert", 4, seed) for seed in range(6)]
    ends = []
    for up, down in ((1.0, 1.0), (p, q)):
        model = make("distilbert")
        chain = attach(model, {**LORA, "alpha": 6.0 * up * down, "head": "frozen"})
        factors: dict[str, list[Tensor]] = {"lora_A": [], "lora_B": []}
        for name, parameter in chain.trainable().items():
            factors[name[-6:]].append(parameter)
        for A in factors["lora_A"]:
            A.data /= up
        groups = [{"params": factors["lora_A"], "lr": lr / up}, {"params": factors["lora_B"], "lr": lr / down}]
        optimizer = torch.optim.AdamW(groups, eps=1e-30, weight_decay=0.0)
        train(model, chain, optimizer, batches)
        ends.append(logits(chain, batches[0]))
    FLOAT64_IDENTITY.check(ends[1], ends[0])


def test_the_output_may_be_written_into() -> None:
    layer = layer_of(3, 4, 2)
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    y += 1
    for ours, formula in zip(gradients(y, layer, x), gradients(by_formula(layer, x), layer, x), strict=True):
        FLOAT64_IDENTITY.check(ours, formula)


def test_integer_scaling_as_published_kills_ranks_above_alpha() -> None:
    scales = [layer_of(16, 16, r, alpha=4.0, integer_scaling=True).adapters["lora"].scaling for r in (1, 4, 8, 16)]
    assert scales == [4, 1, 0, 0]
    assert layer_of(16, 16, 8, alpha=4.0).adapters["lora"].scaling == 0.5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rank", [1, 3])
def test_parameter_count(family: str, rank: int) -> None:
    model = make(family)
    chain = attach(model, {**LORA, "rank": rank, "head": "frozen"})
    counted = sum(p.numel() for p in chain.trainable().values())
    assert counted == sum(rank * (layer.in_features + layer.out_features) for _, layer in adapted(model, "lora"))


def test_resume_is_bit_exact() -> None:
    check_resume("distilbert", [LORA])


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "nanogpt", "vit"])
def test_micro_batches_give_the_gradient_of_the_whole_batch(family: str) -> None:
    check_accumulation(family, [{**LORA, "bias": "adapted"}], 2, FLOAT64_IDENTITY)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": WIDTH + 1}, f"rank {WIDTH + 1} is too large for 'distilbert.transformer.layer.0.attention.q_lin'"),
        ({"targets": ["q_lim"]}, "did you mean 'q_lin'"),
        ({"targets": ["ffn"]}, "allowed: linear layers"),
    ],
)
def test_refuses(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        attach(make("distilbert"), {**LORA, **options})


@pytest.mark.parametrize(
    "options", [{"alpha": 0}, {"rank": 0}, {"dropout": 1.0}, {"aplha": 1}, {"alpha": float("nan")}]
)
def test_refuses_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Lora(**options)


def test_refuses_a_second_attach_and_a_second_merge() -> None:
    model = make("distilbert")
    chain = attach(model, LORA)
    with pytest.raises(ConfigError, match="attached already"):
        attach(model, LORA)
    chain.merge()
    with pytest.raises(ConfigError, match="merged already"):
        chain.merge()
