"""VeLoRA against a plain reference, PEFT and the published code's arithmetic; its identities; its vectors."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from lowrank.methods.adapted import AdaptedLinear, adapted
from lowrank.methods.subtokens import KeptProduct, SubTokens
from tests.chain_runs import attach
from tests.saved_bytes import saved_bytes
from tests.tiny_models import batch, make
from tests.tolerances import BIT_EXACT, FLOAT16, FLOAT64_IDENTITY, PEER_FORWARD, PEER_GRADIENT


def unit(size: int) -> Tensor:
    return functional.normalize(torch.randn(size, dtype=torch.float64), dim=0)


def layer_of(
    groups: int, size: int, m: int, *, bias: bool = True, scale: float = 1.0, half: bool = False, conv: bool = False
) -> Any:
    """One layer, groups * size to m, whose weight trains."""
    torch.manual_seed(1)
    n = groups * size
    base = (Conv1D(m, n) if conv else nn.Linear(n, m, bias=bias)).double()
    layer = AdaptedLinear(base)
    layer.keep = SubTokens(groups, n, scale, torch.float16 if half else None)
    layer.keep.vector = unit(size)
    layer.base_product = KeptProduct(layer)
    return layer


def projected(layer: Any, x: Tensor) -> Tensor:
    """x with every sub-token replaced by its part along v, and the scale."""
    keep = layer.keep
    tokens = x.reshape(-1, keep.size)
    return (keep.scale * (tokens @ keep.vector).unsqueeze(-1) * keep.vector).view_as(x)


def seed_like(y: Tensor) -> Tensor:
    return torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype)


layers = given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    groups=st.integers(1, 5),
    size=st.integers(1, 5),
    m=st.integers(1, 6),
    bias=st.booleans(),
    conv=st.booleans(),
    scale=st.sampled_from([1.0, 0.1, 1.5]),
)


@layers
def test_output_and_input_gradient_are_exact_and_the_weight_gradient_is_that_of_the_projection(
    shape: list[int], groups: int, size: int, m: int, bias: bool, conv: bool, scale: float
) -> None:
    layer = layer_of(groups, size, m, bias=bias, scale=scale, conv=conv)
    x = torch.randn(*shape, groups * size, dtype=torch.float64, requires_grad=True)
    y, plain = layer(x), layer.base(x)
    BIT_EXACT.check(y, plain)
    seed = seed_like(y)
    ours = torch.autograd.grad(y, [x, *layer.base.parameters()], seed)
    exact = torch.autograd.grad(plain, [x, *layer.base.parameters()], seed)
    FLOAT64_IDENTITY.check(ours[0], exact[0])
    if layer.bias is not None:
        FLOAT64_IDENTITY.check(ours[2], exact[2])
    (expected,) = torch.autograd.grad(layer.base(projected(layer, x)), [layer.base.weight], seed)
    FLOAT64_IDENTITY.check(ours[1], expected)


@pytest.mark.parametrize("case", ["sub-tokens of one number", "sub-tokens along v"])
def test_where_the_weight_gradient_is_exact(case: str) -> None:
    layer = layer_of(6, 1, 4) if case == "sub-tokens of one number" else layer_of(3, 2, 4)
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    if case == "sub-tokens along v":
        x = (torch.randn(2, 5, 3, 1, dtype=torch.float64) * layer.keep.vector).flatten(-2)
    x.requires_grad_(True)
    y = layer(x)
    ours = torch.autograd.grad(y, layer.base.weight, seed_like(y))
    FLOAT64_IDENTITY.check(ours[0], torch.autograd.grad(layer.base(x), layer.base.weight, seed_like(y))[0])


def test_the_projection_is_idempotent() -> None:
    layer = layer_of(3, 4, 2)
    once = projected(layer, torch.randn(5, 12, dtype=torch.float64))
    FLOAT64_IDENTITY.check(projected(layer, once), once)
    FLOAT64_IDENTITY.check(layer.keep.compress(once), (once.view(-1, 4) @ layer.keep.vector).view(5, 3))


@pytest.mark.parametrize(("groups", "size"), [(2, 8), (4, 4), (16, 1)])
def test_saves_one_number_a_sub_token(groups: int, size: int) -> None:
    layer, x = layer_of(groups, size, 3), torch.randn(10, 16, dtype=torch.float64, requires_grad=True)
    whole = saved_bytes(layer.base, x)
    assert whole == 10 * 16 * 8
    assert saved_bytes(layer, x) * size == whole
    with torch.no_grad():
        assert saved_bytes(layer, x) == 0


def test_float16_as_published() -> None:
    """z and v are float16, x^ = z v^T is rounded to it, and the product is formed in it, then scaled."""
    layer = layer_of(4, 8, 6, half=True, scale=1.5).float()
    x = torch.randn(3, 7, 32, requires_grad=True)
    y = layer(x)
    seed = seed_like(y)
    _, ours, _ = torch.autograd.grad(y, [x, layer.base.weight, layer.base.bias], seed)
    vector = layer.keep.vector.half()
    z = (x.half().view(-1, 8) * vector).sum(-1)
    rounded = (z.unsqueeze(-1) * vector).view(3, 7, 32)
    published = 1.5 * torch.einsum("blm,bld->md", seed.half(), rounded).float()
    assert ours.dtype == torch.float32
    FLOAT16.check(ours / published.abs().max(), published / published.abs().max())
    assert saved_bytes(layer, x) == 3 * 7 * 4 * 2


@pytest.mark.parametrize("groups", [1, 4, 8, 16])
def test_same_as_peft(groups: int) -> None:
    ours, theirs = make("llama").float(), make("llama").float()
    entry = {"part": "velora", "layers": "vk", "num_groups": groups, "scale": 0.5}
    lora = {"part": "lora", "rank": 3, "alpha": 6.0, "targets": ["v_proj", "k_proj"]}
    chain = attach(ours, lora, entry)
    ours.float()
    config = peft.LoraConfig(
        r=3,
        lora_alpha=6,
        target_modules=["v_proj", "k_proj"],
        velora_config=peft.tuners.lora.VeloraConfig(num_groups=groups, scale=0.5, init_type="batch_average_once"),
    )
    wrapped = peft.inject_adapter_in_model(config, theirs)
    found = {name: layer.adapters["lora"] for name, layer in adapted(ours, "lora")}
    for name, adapter in found.items():
        nn.init.normal_(adapter.lora_B, std=0.1)
        peer = wrapped.get_submodule(name)
        peer.lora_A.default.weight.data.copy_(adapter.lora_A)
        peer.lora_B.default.weight.data.copy_(adapter.lora_B)
    inputs = batch("llama", 4)
    ours.train(), wrapped.train()
    chain.before_step([inputs], 0)
    out, peer_out = ours(**inputs), wrapped(**inputs)
    PEER_FORWARD.check(out.logits, peer_out.logits)
    out.loss.backward(), peer_out.loss.backward()
    for name, adapter in found.items():
        peer = wrapped.get_submodule(name)
        PEER_FORWARD.check(ours.get_submodule(name).keep.vector, peer.lora_velora_embed["default"])
        PEER_GRADIENT.check(adapter.lora_A.grad, peer.lora_A.default.weight.grad)
        PEER_GRADIENT.check(adapter.lora_B.grad, peer.lora_B.default.weight.grad)


@pytest.mark.parametrize("part", ["lora", "hira"])
def test_on_the_factors_of_an_adapter(part: str) -> None:
    """The gradients of the factors are those of the projected input, under the gradient of the exact output."""
    model = nn.Sequential(nn.Linear(12, 5)).double()
    attach(
        model,
        {"part": part, "rank": 3, "targets": ["0"]},
        {"part": "velora", "layers": ["0"], "num_groups": 4, "init": "random", "scale": 0.5},
    )
    layer: Any = model[0]
    factors = list(layer.adapters[part].parameters())
    nn.init.normal_(factors[1])
    x = torch.randn(6, 12, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    seed = seed_like(y)
    ours = torch.autograd.grad(y, [x, *factors], seed)
    layer.keep.vector, keep = layer.keep.vector.double(), layer.keep
    along = projected(layer, x.detach())
    layer.keep = None
    whole = layer(x)
    BIT_EXACT.check(y, whole)
    exact = torch.autograd.grad(whole, [x, *factors], seed)
    weight_gradient = seed.t() @ along
    if part == "lora":
        A, B = factors
        scaling = layer.adapters[part].scaling
        expected = [exact[0], scaling * B.t() @ weight_gradient, exact[2]]
    else:
        A, B = factors
        expected = [exact[0], B.t() @ (weight_gradient * layer.weight), (weight_gradient * layer.weight) @ A.t()]
    assert keep.size == 3
    for found, reference in zip(ours, expected, strict=True):
        PEER_GRADIENT.check(found, reference)
