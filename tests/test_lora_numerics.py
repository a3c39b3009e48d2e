"""LoRA's dropout, whose mask is drawn twice, and its products in half precision."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from lowrank.methods import lora as lora_module
from lowrank.methods.dropout import kept_mask, kept_share
from lowrank.methods.lora import Lora
from tests.lora_layer import by_formula, close_in_bfloat16, gradients, layer_of
from tests.saved_bytes import saved_bytes
from tests.tolerances import BIT_EXACT, FLOAT64_IDENTITY


def test_merging_rounds_once_in_half_precision() -> None:
    layer = layer_of(8, 8, 2, dtype=torch.bfloat16)
    holder = nn.ModuleDict({"layer": layer})
    expected = (layer.weight.float() + layer.adapters["lora"].delta_weight(layer)).bfloat16()
    part = Lora(rank=2)
    part.merge(holder)
    BIT_EXACT.check(holder["layer"].weight, expected)


def test_dropout_gradients_belong_to_the_mask_of_the_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of(6, 5, 3, dropout=0.4)
    x = torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True)
    monkeypatch.setattr(lora_module, "draw_seed", lambda: 11)
    mask = kept_mask(x.shape, x.device, 0.4, 11).double() / kept_share(0.4)
    FLOAT64_IDENTITY.check(layer(x), by_formula(layer, x, mask))
    expected = gradients(by_formula(layer, x, mask), layer, x)
    for ours, formula in zip(gradients(layer(x), layer, x), expected, strict=True):
        FLOAT64_IDENTITY.check(ours, formula)
    FLOAT64_IDENTITY.check(layer.eval()(x), by_formula(layer, x))


def test_dropout_follows_the_global_generator_and_a_checkpointed_layer_draws_it_again() -> None:
    layer = layer_of(6, 5, 3, dropout=0.5)
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    state = torch.get_rng_state()
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    BIT_EXACT.check(layer(x), first)
    torch.set_rng_state(state)
    again = checkpoint(layer, x, use_reentrant=False)
    for ours, plain in zip(gradients(again, layer, x), gradients(first, layer, x), strict=True):
        BIT_EXACT.check(ours, plain)


CPU = torch.device("cpu")


@given(dropout=st.floats(0.0, 1.0, exclude_max=True), seed=st.integers(0, 2**62), size=st.integers(1, 50))
def test_a_mask_follows_from_its_seed_at_any_share(dropout: float, seed: int, size: int) -> None:
    mask = kept_mask(torch.Size([size]), CPU, dropout, seed)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, kept_mask(torch.Size([size]), CPU, dropout, seed))
    assert dropout or mask.all()


@pytest.mark.parametrize("dropout", [0.05, 0.1, 0.5, 0.9])
def test_a_mask_keeps_its_share(dropout: float) -> None:
    kept = kept_mask(torch.Size([400, 1000]), CPU, dropout, 3).double().mean().item()
    deviation = (dropout * (1 - dropout) / 400_000) ** 0.5
    assert abs(kept - kept_share(dropout)) < 5 * deviation
    assert abs(kept_share(dropout) - (1 - dropout)) <= 2**-17
    columns = (
        kept_mask(torch.Size([4000, 4]), CPU, dropout, 3).double().mean(0)
    )  # the four entries of one 64-bit draw are alike
    assert (columns - (1 - dropout)).abs().max() < 6 * (dropout * (1 - dropout) / 4000) ** 0.5


def test_dropout_and_half_precision_store_nothing_more() -> None:
    x = torch.randn(8, 16, dtype=torch.bfloat16, requires_grad=True)
    plain = saved_bytes(layer_of(16, 16, 2, dtype=torch.bfloat16), x)
    assert plain == 8 * 16 * 2 + 8 * 2 * 2  # x itself and A x, in bfloat16
    assert saved_bytes(layer_of(16, 16, 2, dtype=torch.bfloat16, dropout=0.1), x) == plain


def test_half_precision_base_with_float32_factors() -> None:
    layer = layer_of(16, 12, 4, dtype=torch.bfloat16)
    x = torch.randn(8, 16, dtype=torch.bfloat16, requires_grad=True)
    y = layer(x)
    assert y.dtype == torch.bfloat16
    assert layer.adapters["lora"].lora_A.dtype == torch.float32
    wide = copy.deepcopy(layer).double()
    wide_x = x.detach().double().requires_grad_(True)
    close_in_bfloat16(y, by_formula(wide, wide_x))
    pairs = zip(gradients(y, layer, x), gradients(by_formula(wide, wide_x), wide, wide_x), strict=True)
    for (ours, exact), dtype in zip(pairs, (torch.bfloat16, torch.float32, torch.float32), strict=True):
        assert ours.dtype == dtype
        close_in_bfloat16(ours, exact)


def test_autocast_gives_its_dtype_and_float32_gradients() -> None:
    layer = layer_of(16, 12, 4, dtype=torch.float32)
    x = torch.randn(8, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    exact = by_formula(layer, x)
    close_in_bfloat16(y, exact)
    for ours, wide in zip(gradients(y, layer, x), gradients(exact, layer, x), strict=True):
        assert ours.dtype == torch.float32
        close_in_bfloat16(ours, wide)
