"""HiRA against its formula, PEFT and LoRA; its two forms; merging; refusals."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from lowrank.errors import ConfigError
from lowrank.methods.adapted import adapted
from lowrank.methods.hira import Hira
from tests.chain_runs import attach, check_accumulation, check_resume, logits, snapshot
from tests.saved_bytes import saved_bytes
from tests.tiny_models import FAMILIES, WIDTH, batch, make
from tests.tolerances import BIT_EXACT, FLOAT64_IDENTITY, PEER_FORWARD, PEER_GRADIENT

HIRA: dict[str, Any] = {"part": "hira", "rank": 2}


def layer_of(n: int, m: int, rank: int, *, bias: bool = True, **options: Any) -> Any:
    """One adapted linear layer, n to m, with random factors and a bias that trains."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(n, m, bias=bias).double())
    entry = {"part": "hira", "rank": min(rank, n, m), "targets": ["0"], "bias": "adapted", **options}
    attach(model, entry)
    layer: Any = model[0]
    nn.init.normal_(layer.adapters["hira"].hira_B)
    return layer


def by_formula(layer: Any, x: Tensor) -> Tensor:
    adapter = layer.adapters["hira"]
    one = 1.0 if adapter.residual else 0.0
    return functional.linear(x, layer.weight * (one + adapter.hira_B @ adapter.hira_A), layer.bias)


def gradients(y: Tensor, layer: Any, x: Tensor) -> list[Tensor]:
    """Of a loss with a gradient of its own at every entry of y: to x, A, B and the bias."""
    seed = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    adapter = layer.adapters["hira"]
    inputs = [x, adapter.hira_A, adapter.hira_B] + ([] if layer.bias is None else [layer.bias])
    return list(torch.autograd.grad(y, inputs, seed))


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    n=st.integers(1, 9),
    m=st.integers(1, 9),
    rank=st.integers(1, 9),
    bias=st.booleans(),
    form=st.sampled_from(["residual", "product"]),
)
def test_is_its_formula(shape: list[int], n: int, m: int, rank: int, bias: bool, form: str) -> None:
    layer = layer_of(n, m, rank, bias=bias, form=form)
    x = torch.randn(*shape, n, dtype=torch.float64, requires_grad=True)
    FLOAT64_IDENTITY.check(layer(x), by_formula(layer, x))
    for ours, formula in zip(gradients(layer(x), layer, x), gradients(by_formula(layer, x), layer, x), strict=True):
        FLOAT64_IDENTITY.check(ours, formula)


@pytest.mark.parametrize("family", FAMILIES)
def test_same_as_peft(family: str) -> None:
    ours, theirs = make(family).float(), make(family).float()
    attach(ours, {**HIRA, "head": "frozen"})
    ours.float()
    layers = {name: layer.adapters["hira"] for name, layer in adapted(ours, "hira")}
    names = [name if family == "bert" else name.rsplit(".", 1)[-1] for name in layers]
    config = peft.HiraConfig(r=2, target_modules=sorted(set(names)), fan_in_fan_out=family == "gpt2")
    wrapped = peft.inject_adapter_in_model(config, theirs)
    for name, adapter in layers.items():
        nn.init.normal_(adapter.hira_B, std=0.5)
        peer = wrapped.get_submodule(name)
        peer.hira_A.default.data.copy_(adapter.hira_A)
        peer.hira_B.default.data.copy_(adapter.hira_B)
    inputs = {key: value.float() if value.is_floating_point() else value for key, value in batch(family, 4).items()}
    ours.train(), wrapped.train()
    out, peer_out = ours(**inputs), wrapped(**inputs)
    PEER_FORWARD.check(out.logits, peer_out.logits)
    out.loss.backward(), peer_out.loss.backward()
    for name, adapter in layers.items():
        peer = wrapped.get_submodule(name)
        PEER_GRADIENT.check(adapter.hira_A.grad, peer.hira_A.default.grad)
        PEER_GRADIENT.check(adapter.hira_B.grad, peer.hira_B.default.grad)


def test_with_a_base_of_ones_it_is_lora() -> None:
    x = torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)
    runs = []
    for part, options in (("hira", {}), ("lora", {"alpha": 3.0})):
        model = nn.Sequential(nn.Linear(6, 4).double())
        nn.init.ones_(model[0].weight)
        nn.init.ones_(model[0].bias)
        attach(model, {"part": part, "rank": 3, "targets": ["0"], **options})
        layer: Any = model[0]
        nn.init.normal_(layer.adapters[part].get_parameter(f"{part}_B"), generator=torch.Generator().manual_seed(2))
        y = model(x)
        factors = [layer.adapters[part].get_parameter(f"{part}_{which}") for which in "AB"]
        runs.append([y, *torch.autograd.grad(y.square().sum(), [x, *factors])])
    for hira, lora in zip(*runs, strict=True):
        FLOAT64_IDENTITY.check(hira, lora)


def test_rank_of_the_update_is_above_the_rank_of_the_factors_and_within_its_bound() -> None:
    layer = layer_of(12, 12, 2)
    rank = torch.linalg.matrix_rank
    delta = layer.adapters["hira"].delta_weight(layer)
    assert rank(delta) == 12
    with torch.no_grad():
        layer.base.weight.copy_(torch.randn(12, 2, dtype=torch.float64) @ torch.randn(2, 12, dtype=torch.float64))
    assert rank(layer.adapters["hira"].delta_weight(layer)) == 2 * rank(layer.weight)


@pytest.mark.parametrize("family", FAMILIES)
def test_attaching_changes_nothing_and_merging_keeps_the_function(family: str) -> None:
    model, inputs = make(family), batch(family, 4)
    before, weights = model.eval()(**inputs).logits, snapshot(model)
    chain = attach(model, HIRA)
    FLOAT64_IDENTITY.check(logits(chain, inputs), before)
    for _, layer in adapted(model, "hira"):
        nn.init.normal_(layer.adapters["hira"].hira_B)
    trained = logits(chain, inputs)
    assert not torch.allclose(trained, before)
    factors = {name: layer.adapters["hira"] for name, layer in adapted(model, "hira")}
    plain = chain.merge()
    FLOAT64_IDENTITY.check(plain.eval()(**inputs).logits, trained)
    for name, adapter in factors.items():
        merged = plain.get_submodule(name).weight
        product = adapter.hira_B @ adapter.hira_A
        original = merged / (1 + (product.t() if family == "gpt2" else product))
        FLOAT64_IDENTITY.check(original, weights[f"{name}.weight"])
    chain.unmerge()
    BIT_EXACT.check(logits(chain, inputs), trained)


def test_merged_into_a_tied_head_the_embedding_stays() -> None:
    model, inputs = make("nanogpt"), batch("nanogpt", 4)
    chain = attach(model, {**HIRA, "targets": ["lm_head"]})
    nn.init.normal_(model.lm_head.adapters["hira"].hira_B)  # type: ignore[union-attr, index]
    trained, embedding = logits(chain, inputs), model.wte.weight.clone()  # type: ignore[union-attr, operator]
    plain = chain.merge()
    BIT_EXACT.check(plain.wte.weight, embedding)
    FLOAT64_IDENTITY.check(plain(**inputs).logits, trained)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_product_form_starts_as_biases_alone(family: str) -> None:
    model, inputs = make(family), batch(family, 4)
    chain = attach(model, {**HIRA, "form": "product"})
    silent = make(family)
    for name, _ in adapted(model, "hira"):
        nn.init.zeros_(silent.get_submodule(name).weight)
    FLOAT64_IDENTITY.check(logits(chain, inputs), silent.eval()(**inputs).logits)
    for _, layer in adapted(model, "hira"):
        nn.init.normal_(layer.adapters["hira"].hira_B)
    trained = logits(chain, inputs)
    FLOAT64_IDENTITY.check(chain.merge().eval()(**inputs).logits, trained)


def test_saves_its_input_and_no_weight() -> None:
    layer = layer_of(32, 24, 4)
    x = torch.randn(5, 32, dtype=torch.float64, requires_grad=True)
    assert saved_bytes(layer, x) == 5 * 32 * 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dtypes_with_a_half_precision_base_and_under_autocast(dtype: torch.dtype) -> None:
    layer = layer_of(16, 12, 4)
    layer.base.to(dtype), layer.adapters.float()
    x = torch.randn(3, 16, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    found = [gradient.dtype for gradient in gradients(y, layer, x)]
    assert found == [dtype, torch.float32, torch.float32, dtype]


@pytest.mark.parametrize("family", FAMILIES)
def test_parameter_count(family: str) -> None:
    model = make(family)
    chain = attach(model, {**HIRA, "rank": 3, "head": "frozen"})
    counted = sum(p.numel() for p in chain.trainable().values())
    assert counted == sum(3 * (layer.in_features + layer.out_features) for _, layer in adapted(model, "hira"))


def test_resume_is_bit_exact() -> None:
    check_resume("distilbert", [HIRA])


@pytest.mark.parametrize("family", FAMILIES)
def test_micro_batches_give_the_gradient_of_the_whole_batch(family: str) -> None:
    check_accumulation(family, [{**HIRA, "bias": "adapted"}], 2, FLOAT64_IDENTITY)


@pytest.mark.parametrize("other", ["full", "lora", "lte"])
def test_refuses_a_base_that_changes(other: str) -> None:
    with pytest.raises(ConfigError, match=f"{other} changes the weight that hira multiplies"):
        attach(make("distilbert"), other, HIRA)


def test_refuses() -> None:
    with pytest.raises(ConfigError, match=f"rank {WIDTH + 1} is too large for .* allowed: 1 to {WIDTH}"):
        attach(make("distilbert"), {**HIRA, "rank": WIDTH + 1})
    with pytest.raises(ConfigError, match="alpha"):
        Hira(alpha=16)
    model = make("distilbert")
    chain = attach(model, HIRA)
    with pytest.raises(ConfigError, match="attached already"):
        attach(model, HIRA)
    chain.merge()
    with pytest.raises(ConfigError, match="merged already"):
        chain.merge()


def test_over_a_coded_base_no_dense_weight_is_saved() -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    attach(model, {"part": "nf4", "targets": ["0"]}, {"part": "hira", "rank": 2, "targets": ["0"]})
    layer: Any = model.float()[0]
    nn.init.normal_(layer.adapters["hira"].hira_B)
    x = torch.randn(3, 64, requires_grad=True)
    PEER_FORWARD.check(layer(x), by_formula(layer, x))
    assert saved_bytes(layer, x) == 3 * 64 * 4
