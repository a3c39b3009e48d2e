"""bitsandbytes on the GPU: NF4 as its own layer computes it, optimizers in pages and in 8 bits, and the CPU's codes."""

from __future__ import annotations

import copy
from typing import Any

import bitsandbytes
import pytest
import torch
from torch import nn

from lowrank.methods.galore_optimizer import GaloreOptimizer
from lowrank.methods.paged_adamw import PagedAdamW
from lowrank.spec import TrainSpec
from tests.gpu.lab import CPU, DEVICE, cuda_alone
from tests.test_nf4 import linear, stored
from tests.tolerances import BIT_EXACT, NF4_HALF, PEER_FORWARD, PEER_GRADIENT

SHAPES = [(24, 64), (64, 128), (128, 192), (256, 1376), (3, 64)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WIDE = 512
"""A square matrix of this side has more than the 100,000 numbers from which bitsandbytes pages a state."""


def peer_on_device(module: nn.Linear, double_quant: bool) -> Any:
    peer = bitsandbytes.nn.Linear4bit(module.in_features, module.out_features, compute_dtype=module.weight.dtype)
    peer.weight = bitsandbytes.nn.Params4bit(
        module.weight.detach().to(CPU), requires_grad=False, quant_type="nf4", compress_statistics=double_quant
    )
    peer.bias = module.bias
    return peer.to(DEVICE)


@cuda_alone
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_nf4_is_bitsandbytes_own(shape: tuple[int, int], double_quant: bool, dtype: torch.dtype) -> None:
    """Weights bit for bit; outputs and gradients of x up to the order of their sums."""
    module = linear(*shape, True, dtype).to(DEVICE)
    layer, peer = stored(module, double_quant), peer_on_device(module, double_quant)
    state = peer.weight.quant_state
    BIT_EXACT.check(layer.dense_weight(), bitsandbytes.functional.dequantize_4bit(peer.weight.data, state))
    x = torch.randn(5, 7, shape[1], dtype=dtype, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = layer(ours), peer(theirs)
    y.sum().backward()
    expected.sum().backward()
    (PEER_FORWARD if dtype == torch.float32 else NF4_HALF).check(y, expected)
    assert ours.grad is not None
    assert theirs.grad is not None
    (PEER_GRADIENT if dtype == torch.float32 else NF4_HALF).check(ours.grad, theirs.grad)


@pytest.mark.parametrize("double_quant", [True, False])
def test_nf4_on_the_cpu_and_on_the_gpu_is_the_same_weight_almost_everywhere(double_quant: bool) -> None:
    """A value half-way between two codes may go to either, and a constant follows the mean that is taken off."""
    module = linear(128, 192)
    there = stored(copy.deepcopy(module).to(DEVICE), double_quant)
    here = stored(module, double_quant)
    weight, expected = there.dense_weight().cpu(), here.dense_weight()
    assert (weight != expected).float().mean() < (0.02 if double_quant else 1e-3)
    assert there.drift is not None
    assert here.drift is not None
    assert there.drift.relative == pytest.approx(here.drift.relative, rel=1e-3)
    moved = copy.deepcopy(here).to(DEVICE)
    PEER_FORWARD.check(moved.dense_weight().cpu(), expected)


def steps_of(optimizer: torch.optim.Optimizer, weight: nn.Parameter, first: int, last: int) -> None:
    for seed in range(first, last):
        generator = torch.Generator().manual_seed(seed)
        weight.grad = torch.randn(weight.shape, generator=generator).to(weight.device)
        optimizer.step()


def weight_on(device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.randn(WIDE, WIDE, generator=torch.Generator().manual_seed(9)).to(device))


SPEC = TrainSpec(lr=1e-2, steps=4, weight_decay=0.1, betas=(0.8, 0.95))


@pytest.mark.parametrize("bits", [32, 8])
def test_paged_adamw_pages_and_takes_adamws_steps(bits: int) -> None:
    ours, theirs = weight_on(DEVICE), weight_on(DEVICE)
    optimizer = PagedAdamW(bits=bits).optimizer([("weight", ours)], SPEC)
    settings: dict[str, Any] = {"lr": 1e-2, "betas": (0.8, 0.95), "weight_decay": 0.1}
    peer: Any = (torch.optim.AdamW if bits == 32 else bitsandbytes.optim.AdamW8bit)([theirs], **settings)
    steps_of(optimizer, ours, 0, 4)
    steps_of(peer, theirs, 0, 4)
    (PEER_FORWARD if bits == 32 else BIT_EXACT).check(ours, theirs)
    state = optimizer.state[ours]
    assert all(getattr(state[key], "is_paged", False) == (DEVICE.type == "cuda") for key in ("state1", "state2"))


@pytest.mark.parametrize("bits", [32, 8])
def test_a_resumed_paged_adamw_is_paged_again_and_bit_equal(bits: int) -> None:
    straight, resumed = weight_on(DEVICE), weight_on(DEVICE)
    optimizer, other = (PagedAdamW(bits=bits).optimizer([("weight", w)], SPEC) for w in (straight, resumed))
    steps_of(optimizer, straight, 0, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    for values in saved["state"].values():  # as a checkpoint gives them back
        values |= {key: value.cpu().clone() for key, value in values.items() if isinstance(value, torch.Tensor)}
    with torch.no_grad():
        resumed.copy_(straight)
    other.load_state_dict(saved)
    paged = [getattr(other.state[resumed][key], "is_paged", False) for key in ("state1", "state2")]
    assert paged == [DEVICE.type == "cuda"] * 2
    steps_of(optimizer, straight, 2, 4)
    steps_of(other, resumed, 2, 4)
    BIT_EXACT.check(resumed, straight)


@pytest.mark.parametrize("base", ["adamw", "adamw8bit"])
def test_galore_steps_as_on_the_cpu(base: Any) -> None:
    """Projected moments of more than 4096 numbers are held in codes, whose rounding may differ by one."""
    found = []
    for device in (DEVICE, CPU):
        weight = weight_on(device)
        optimizer = GaloreOptimizer([weight], [], rank=16, update_gap=2, base=base, lr=1e-2)
        steps_of(optimizer, weight, 0, 4)
        state = optimizer.state[weight]
        held = state["codes_1"] if base == "adamw8bit" else state["exp_avg"]
        assert held.device.type == device.type
        found.append((weight.detach() - weight_on(device)).cpu())
    assert (found[0] - found[1]).norm() < 0.05 * found[1].norm()


@pytest.mark.parametrize("base", ["adamw", "adamw8bit"])
def test_a_resumed_galore_is_bit_equal(base: Any) -> None:
    straight, resumed = weight_on(DEVICE), weight_on(DEVICE)
    settings: dict[str, Any] = {"rank": 16, "update_gap": 3, "base": base, "lr": 1e-2}
    optimizer, other = GaloreOptimizer([straight], [], **settings), GaloreOptimizer([resumed], [], **settings)
    steps_of(optimizer, straight, 0, 2)
    with torch.no_grad():
        resumed.copy_(straight)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps_of(optimizer, straight, 2, 5)
    steps_of(other, resumed, 2, 5)
    BIT_EXACT.check(resumed, straight)
