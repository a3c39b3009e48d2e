"""Lean: the same forward pass and gradients as the plain modules, fewer bytes, the closed form of them."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from transformers import DistilBertConfig, DistilBertForSequenceClassification, LlamaConfig
from transformers.activations import ACT2FN, NewGELUActivation
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from lowrank.errors import ConfigError
from lowrank.methods.keep import made_from, origin
from lowrank.methods.lean_modules import LeanActivation, LeanGatedMlp, LeanNorm, activation_of, look_at
from tests.chain_runs import attach
from tests.saved_bytes import saved_bytes
from tests.tiny_models import FAMILIES, batch
from tests.tolerances import BIT_EXACT, FLOAT64_IDENTITY, LEAN_GRADIENT, PEER_FORWARD

FRONTS: dict[str, Any] = {
    "lora": {"part": "lora", "rank": 4},
    "lora with dropout": {"part": "lora", "rank": 4, "dropout": 0.3},
    "hira": {"part": "hira", "rank": 4},
    "full": "full",
    "lte": {"part": "lte", "rank": 4, "num_lora_heads": 2, "rest": "trained"},
}


def model_of(family: str) -> nn.Module:
    """In float32, with norms and biases that are not those of a fresh model."""
    torch.manual_seed(0)
    model = FAMILIES[family]()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
        elif parameter.ndim == 1:
            nn.init.normal_(parameter, mean=1.0, std=0.2)
    return model.train()


def attached(family: str, *parts: Any) -> nn.Module:
    model = model_of(family)
    attach(model, *parts)
    model.float().train()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith("_B"):
            nn.init.normal_(parameter, std=0.1, generator=generator)
    return model


def rows_of(family: str) -> dict[str, Tensor]:
    rows = batch(family, 4)
    return {key: value.float() if value.is_floating_point() else value for key, value in rows.items()}


def learned(model: nn.Module, rows: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradients by name."""
    torch.manual_seed(5)  # of dropout
    output = model(**rows)
    output.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return output.logits.detach(), {name.replace(".base.", "."): g for name, g in gradients.items()}


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_function_and_gradients_from_fewer_bytes(family: str, front: str) -> None:
    rows = rows_of(family)
    plain, lean = attached(family, FRONTS[front]), attached(family, FRONTS[front], "lean")
    (seen, expected), (found, gradients) = learned(plain, rows), learned(lean, rows)
    (PEER_FORWARD if family == "gpt2" else BIT_EXACT).check(found, seen)  # gpt2's gelu_new is another kernel
    assert gradients.keys() == expected.keys()
    scale = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        LEAN_GRADIENT.check(gradients[name] / scale, gradient / scale)
    assert saved_bytes(lean, **rows) < saved_bytes(plain, **rows)


@pytest.mark.parametrize("front", ["lora", "lora with dropout", "full", "hira"])
def test_saved_bytes_are_the_closed_form(front: str) -> None:
    """10 d a token and layer (x, q, k, v, the attention's output, LN1's output, 4 d of z), and less than 1 % beside."""
    layers, width, rows = 6, 256, {"input_ids": torch.randint(40, (8, 32)), "labels": torch.randint(3, (8,))}
    none = dict.fromkeys(("dropout", "attention_dropout", "seq_classif_dropout"), 0.0)
    shape: dict[str, Any] = {"dim": width, "hidden_dim": 4 * width, "n_layers": layers, "n_heads": 4}
    config = DistilBertConfig(vocab_size=40, num_labels=3, **shape, **none)
    sizes = []
    for parts in ([], ["lean"]):
        model = DistilBertForSequenceClassification(config).train()
        attach(model, {**FRONTS[front], "rank": 1} if isinstance(FRONTS[front], dict) else FRONTS[front], *parts)
        model.float()
        sizes.append(saved_bytes(model, **rows) / (8 * 32 * width * 4))
    assert 16 * layers <= sizes[0] < 16.2 * layers + 3
    assert 10 * layers <= sizes[1] < 10.2 * layers + 3


def norm_of(kind: str, weight: Tensor, bias: Tensor, dtype: torch.dtype = torch.float32) -> nn.Module:
    plain: Any = nn.LayerNorm(len(weight)) if kind == "layer" else LlamaRMSNorm(len(weight))
    plain.weight.data.copy_(weight)
    if kind == "layer":
        plain.bias.data.copy_(bias)
    return cast(nn.Module, plain.to(dtype))


def through(module: nn.Module, x: Tensor, gradient: Tensor) -> list[Tensor]:
    """Output, and gradients to x and the parameters."""
    x = x.clone().requires_grad_()
    y = module(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *module.parameters()], gradient)]


@given(st.sampled_from(["layer", "rms"]), st.integers(0, 2**20), st.floats(0.0, 60.0), st.floats(0.01, 100.0))
def test_a_norm_inverted_from_its_output(kind: str, seed: int, ratio: float, size: float) -> None:
    """Whatever the size of input and weights, as long as biases are at most 64 times the weights."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(24, generator=generator).sign() * torch.rand(24, generator=generator).add(0.01)
    bias = (2 * torch.rand(24, generator=generator) - 1) * ratio * weight
    plain = norm_of(kind, weight, bias)
    lean = LeanNorm(plain)
    look_at([lean])
    assert lean.invertible
    x, gradient = (torch.randn(2, 5, 24, generator=generator) for _ in range(2))
    expected, found = through(plain, size * x, gradient), through(lean, size * x, gradient)
    BIT_EXACT.check(found[0], expected[0])
    for actual, wanted in zip(found[1:], expected[1:], strict=True):
        scale = wanted.abs().max()
        LEAN_GRADIENT.check(actual / scale, wanted / scale)


def test_a_norm_in_double_is_the_plain_one_to_ten_digits() -> None:
    torch.manual_seed(0)
    plain = norm_of("layer", torch.randn(24), torch.randn(24), torch.float64)
    x, gradient = torch.randn(3, 24, dtype=torch.float64), torch.randn(3, 24, dtype=torch.float64)
    for actual, wanted in zip(through(LeanNorm(plain), x, gradient), through(plain, x, gradient), strict=True):
        FLOAT64_IDENTITY.check(actual, wanted)


@pytest.mark.parametrize("weight", [0.0, 1e-3], ids=["a weight of 0", "a bias of a thousand weights"])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
def test_a_norm_that_cannot_be_inverted_stays_as_it_is(weight: float, frozen: bool) -> None:
    weights, biases = torch.ones(24), torch.ones(24)
    weights[3] = weight
    plain = norm_of("layer", weights, biases).requires_grad_(not frozen)
    lean = LeanNorm(plain)
    look_at([lean])
    assert not lean.invertible
    x = torch.randn(5, 24, requires_grad=True)
    assert saved_bytes(lean, x) == saved_bytes(plain, x)
    y = lean(x)
    (actual,) = torch.autograd.grad(y.square().sum(), x)
    (wanted,) = torch.autograd.grad(plain(x).square().sum(), x)
    BIT_EXACT.check(actual, wanted)


def test_norms_that_train_are_looked_at_in_each_step() -> None:
    """Resumed weights and training may take a norm to where it cannot be inverted, and back."""
    model = model_of("bert")
    chain = attach(model, "full", "lean")
    norm = next(module for module in model.modules() if isinstance(module, LeanNorm))
    chain.before_step([], 0)
    assert norm.invertible
    norm.weight.data[0] = 0.0
    chain.before_step([], 1)
    assert not norm.invertible
    norm.weight.data[0] = 1.0
    chain.before_step([], 2)
    assert norm.invertible


def test_half_precision_stays_as_it_is() -> None:
    torch.manual_seed(0)
    for kind in ("layer", "rms"):
        plain = norm_of(kind, torch.ones(24), torch.zeros(24), torch.bfloat16)
        x, gradient = torch.randn(3, 24).bfloat16(), torch.randn(3, 24).bfloat16()
        for actual, wanted in zip(through(LeanNorm(plain), x, gradient), through(plain, x, gradient), strict=True):
            BIT_EXACT.check(actual, wanted)


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "gelu_pytorch_tanh", "silu", "swish"])
def test_activations(name: str) -> None:
    plain = ACT2FN[name]
    function = activation_of(plain)
    assert function is not None
    lean, x = LeanActivation(plain, function), torch.randn(50, requires_grad=True)
    found = lean(x)
    (PEER_FORWARD if isinstance(plain, NewGELUActivation) else BIT_EXACT).check(found, plain(x))
    make, sources, _ = origin(found)
    BIT_EXACT.check(make(*sources), found)
    assert sources[0].data_ptr() == x.data_ptr()


def test_other_activations_are_left_alone() -> None:
    for plain in (nn.ReLU(), nn.Tanh(), ACT2FN["gelu_python"], ACT2FN["quick_gelu"], nn.Linear(2, 2)):
        assert activation_of(plain) is None


def test_an_input_that_was_written_to_is_saved_itself() -> None:
    z = torch.randn(8, requires_grad=True)
    h = made_from(functional.silu(z), functional.silu, z)
    assert origin(h).make is functional.silu
    h.mul_(2.0)
    assert origin(h).sources[0] is h
    with torch.no_grad():
        h = made_from(functional.silu(z), functional.silu, z)
    assert origin(h).sources[0] is h


def test_the_gated_block() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=16, intermediate_size=24, num_attention_heads=2)
    plain = LlamaMLP(config).double()
    lean = LeanGatedMlp(plain)
    assert dict(lean.named_parameters()).keys() == dict(plain.named_parameters()).keys()
    x, gradient = torch.randn(3, 5, 16, dtype=torch.float64), torch.randn(3, 5, 16, dtype=torch.float64)
    for actual, wanted in zip(through(lean, x, gradient), through(plain, x, gradient), strict=True):
        FLOAT64_IDENTITY.check(actual, wanted)


def test_merging_puts_the_same_modules_back() -> None:
    model = model_of("llama")
    modules = {name: id(module) for name, module in model.named_modules()}
    chain = attach(model, "full", "lean")
    model.float()
    assert any(isinstance(module, LeanGatedMlp) for module in model.modules())
    twin = copy.deepcopy(chain)
    chain.merge()
    assert {name: id(module) for name, module in model.named_modules()} == modules
    assert any(isinstance(module, LeanNorm) for module in cast(nn.Module, twin.model).modules())


def test_a_model_without_any_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^lean: Sequential has no module that lean knows; allowed: models with"):
        attach(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.LayerNorm(4, elementwise_affine=False)), "full", "lean")


def test_it_stands_behind_what_trains() -> None:
    with pytest.raises(ConfigError, match=r"^lean: lora stands behind it; allowed: behind full and all adapters"):
        attach(model_of("bert"), "full", "lean", {"part": "lora", "rank": 4})
