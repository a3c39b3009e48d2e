"""The NF4 layer: equal to bitsandbytes where that is right, to its own codes everywhere, 4.127 bits a weight."""

from __future__ import annotations

import math
from typing import Any

import bitsandbytes
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lowrank.methods.nf4_linear import Nf4Linear, stored_bytes
from tests.tolerances import BIT_EXACT, NF4_HALF, PEER_FORWARD

CODEBOOK = [-1, -0.69619, -0.52507, -0.39492, -0.28444, -0.18477, -0.09105, 0]
CODEBOOK += [0.07958, 0.16093, 0.24611, 0.33792, 0.44071, 0.56262, 0.72296, 1]


def stored(module: nn.Module, double_quant: bool = True, dtype: torch.dtype | None = None) -> Nf4Linear:
    return Nf4Linear(module, double_quant, dtype, requantize=False)


def linear(rows: int, columns: int, bias: bool = True, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    module = nn.Linear(columns, rows, bias=bias, dtype=dtype)
    return module.requires_grad_(False)


def peer_of(module: nn.Linear, double_quant: bool) -> Any:
    nn4bit = bitsandbytes.nn
    peer = nn4bit.Linear4bit(module.in_features, module.out_features, compute_dtype=module.weight.dtype)
    peer.weight = nn4bit.Params4bit(
        module.weight.clone(), requires_grad=False, quant_type="nf4", compress_statistics=double_quant
    )
    peer.bias = module.bias
    return peer.to("cpu")


def test_codebook() -> None:
    """Each value of the codebook, times the block's largest weight, is stored exactly."""
    table = bitsandbytes.functional.get_4bit_type("nf4", device="cpu")
    torch.testing.assert_close(table, torch.tensor(CODEBOOK), rtol=0, atol=5e-6)
    module = nn.Linear(64, 2, bias=False)
    module.weight = nn.Parameter(3 * table.repeat(8).view(2, 64), requires_grad=False)
    layer = stored(module, double_quant=False)
    BIT_EXACT.check(layer.dense_weight(), module.weight)
    assert layer.drift == (0, 0)


SHAPES: dict[str, Any] = {
    "rows": st.integers(1, 40),
    "columns": st.integers(1, 140) | st.sampled_from([16, 32, 48, 80, 96, 112]),
    "double_quant": st.booleans(),
    "dtype": st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
}


@given(**SHAPES)
def test_nearest_code(rows: int, columns: int, double_quant: bool, dtype: torch.dtype) -> None:
    """Decoding by hand, value by value, gives the same weight; and no code lies nearer to what was stored."""
    weight = linear(rows, columns, dtype=dtype).weight.float().flatten()
    layer = stored(linear(rows, columns, dtype=dtype), double_quant)
    absmax = layer.absmax
    if double_quant:
        table = bitsandbytes.functional.create_dynamic_map()
        scale = layer.absmax_scale.repeat_interleave(256)[: len(absmax)]
        absmax = table[absmax.long()] * scale + layer.absmax_mean
    absmax = absmax.repeat_interleave(64)[: len(weight)]
    book = bitsandbytes.functional.get_4bit_type("nf4", device="cpu")
    codes = torch.stack([layer.codes >> 4, layer.codes & 15], 1).flatten()[: len(weight)].long()
    by_hand = (book[codes] * absmax).view(rows, columns)
    PEER_FORWARD.check(layer.dense_weight(torch.float32), by_hand)
    largest = weight.split(64)
    ratio = weight / torch.cat([block.abs().max().expand_as(block) for block in largest])
    distance = (ratio[:, None] - book).abs()
    assert (distance.gather(1, codes[:, None])[:, 0] <= distance.min(1).values + 1e-6).all()
    error = error_of(layer, linear(rows, columns, dtype=dtype).weight)
    assert layer.drift is not None
    assert math.isclose(layer.drift.relative, (error.norm() / weight.norm()).item(), rel_tol=1e-4)


def error_of(layer: Nf4Linear, weight: Tensor) -> Tensor:
    return layer.dense_weight().float() - weight.float()


@given(
    rows=st.integers(1, 24),
    columns=st.sampled_from([10, 18, 30, 64, 128, 192]),
    bias=st.booleans(),
    double_quant=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    lead=st.sampled_from([(3,), (2, 3), (1,), (2, 1, 3)]),
)
def test_same_as_bitsandbytes(
    rows: int, columns: int, bias: bool, double_quant: bool, dtype: torch.dtype, lead: tuple[int, ...]
) -> None:
    """Weights bit for bit, where its kernel is right; outputs and gradients of x within rounding."""
    module = linear(rows, columns, bias, dtype)
    layer, peer = stored(module, double_quant), peer_of(module, double_quant)
    state = peer.weight.quant_state
    BIT_EXACT.check(layer.dense_weight(), bitsandbytes.functional.dequantize_4bit(peer.weight.data, state))
    x = torch.randn(*lead, columns, dtype=dtype)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = layer(ours), peer(theirs)
    grad = torch.randn_like(y)
    y.backward(grad)
    tolerance = PEER_FORWARD if dtype == torch.float32 else NF4_HALF
    tolerance.check(y, expected)
    expected.backward(grad)
    tolerance.check(ours.grad, theirs.grad)


def test_peer_takes_constants_from_other_blocks() -> None:
    """Why the widths above are chosen: once bitsandbytes is right for 48 too, they need not be."""
    module = linear(2, 48)
    peer = peer_of(module, double_quant=False).weight
    theirs = bitsandbytes.functional.dequantize_4bit(peer.data, peer.quant_state)
    assert not torch.equal(stored(module, double_quant=False).dense_weight(), theirs)


def test_conv1d_is_a_transposed_linear() -> None:
    module = linear(12, 20)
    transposed = Conv1D(12, 20)
    transposed.weight = nn.Parameter(module.weight.t().contiguous())
    transposed.bias = nn.Parameter(module.bias)
    layer, expected = stored(transposed.requires_grad_(False)), stored(module)
    x = torch.randn(3, 20)
    BIT_EXACT.check(layer(x), expected(x))
    plain = layer.plain()
    assert type(plain) is Conv1D
    BIT_EXACT.check(plain.weight, expected.dense_weight().t())
    assert plain.bias is transposed.bias


@given(st.integers(1, 300), st.integers(1, 300), st.booleans(), st.sampled_from(["cpu", "meta"]))
def test_bytes_in_closed_form(rows: int, columns: int, double_quant: bool, device: str) -> None:
    layer = stored(nn.Linear(columns, rows, device=device), double_quant)
    assert sum(buffer.nbytes for buffer in layer.buffers()) == stored_bytes(columns, rows, double_quant)


def test_bits_per_weight() -> None:
    """4 + 8/64 + 32/(64 * 256) = 4.127 with double quantisation, 4 + 32/64 without."""
    n = 4096 * 4096
    assert round(8 * stored_bytes(4096, 4096) / n, 3) == 4.127
    assert 8 * stored_bytes(4096, 4096, double_quant=False) / n == 4.5


def test_backward_keeps_only_codes() -> None:
    """Nothing is saved for the gradient of x: neither x nor a dense weight."""
    layer = stored(linear(32, 64))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(torch.randn(2, 64, requires_grad=True))
        bare = layer(torch.randn(2, 64))
    assert kept == []
    assert y.requires_grad
    assert not bare.requires_grad


def test_bias_trains() -> None:
    """The gradient of a bias that trains is the sum over tokens."""
    module = linear(8, 64)
    module.bias.requires_grad_(True)
    layer = stored(module)
    grad = torch.randn(2, 3, 8)
    layer(torch.randn(2, 3, 64)).backward(grad)
    PEER_FORWARD.check(module.bias.grad, grad.sum((0, 1)))


@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float16, torch.float32])
def test_compute_dtype(compute: torch.dtype) -> None:
    """The product runs in the given type, the result has the input's."""
    module = linear(8, 64)
    layer = stored(module, dtype=compute)
    x = torch.randn(2, 64, requires_grad=True)
    y = layer(x)
    expected = nn.functional.linear(x.to(compute), layer.dense_weight(compute), module.bias.to(compute)).float()
    BIT_EXACT.check(y, expected)
    (grad,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    (expected_grad,) = torch.autograd.grad(expected.sum(), x)
    BIT_EXACT.check(grad, expected_grad)


def test_autocast() -> None:
    """Under autocast the layer answers as a plain one does: in autocast's type, or in the given one."""
    module = linear(8, 64)
    x = torch.randn(2, 64, requires_grad=True)
    plain = stored(module).plain()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected, single = stored(module)(x), plain(x), stored(module, dtype=torch.float32)(x)
    assert y.dtype == torch.bfloat16
    BIT_EXACT.check(y, expected)
    assert single.dtype == torch.float32
    BIT_EXACT.check(single, plain(x))
    (grad,) = torch.autograd.grad(y.float().sum(), x)
    assert grad.dtype == torch.float32
