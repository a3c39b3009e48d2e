"""Every adapter over shapes, ranks, dtypes, biases, weight layouts and batch layouts, against itself in double."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lowrank import registry
from lowrank.methods.adapter import AdapterPart
from lowrank.methods.chain import Chain
from tests.tolerances import BFLOAT16_RUN, FLOAT64_IDENTITY, PEER_GRADIENT

ADAPTERS = [name for name, part in registry.parts().items() if issubclass(part, AdapterPart) and name != "nf4"]
TOLERANCES = {
    torch.float64: FLOAT64_IDENTITY,
    torch.float32: PEER_GRADIENT,
    torch.bfloat16: BFLOAT16_RUN,
    torch.float16: BFLOAT16_RUN,
}


class One(nn.Module):
    """A model of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


def attached(part: str, inside: int, outside: int, rank: int, bias: bool, conv: bool, dtype: torch.dtype) -> Chain:
    """Adapters whose every factor is drawn, beside a base in that dtype."""
    base: nn.Module = Conv1D(outside, inside) if conv else nn.Linear(inside, outside, bias=bias)
    nn.init.normal_(base.weight, std=0.5)  # type: ignore[arg-type]
    options = {"part": part, "rank": rank, "targets": ["layer"]}
    chain = Chain.build([registry.parse_options(options)]).attach(One(base.to(dtype)))
    for parameter in chain.trainable().values():
        nn.init.normal_(parameter, std=0.5)
    assert chain.model is not None
    if dtype == torch.float64:
        chain.model.double()  # the factors too, which are drawn in float32
    chain.model.eval()  # the heads of LTE then see the whole batch, as those of the others do
    return chain


def forward_and_backward(model: nn.Module, x: Tensor, trained: list[nn.Parameter]) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = model(x)
    seed = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype)
    return [y, *torch.autograd.grad(y, [x, *trained], seed)]


def check(computed: torch.dtype, found: list[Tensor], expected: list[Tensor]) -> None:
    """Relative to the largest entry: a small one may be the difference of large ones."""
    for tensor, exact in zip(found, expected, strict=True):
        scale = exact.abs().max().clamp_min(1e-30)
        TOLERANCES[computed].check(tensor.double() / scale, exact.double() / scale)


@pytest.mark.parametrize("part", ADAPTERS)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    inside=st.integers(2, 9),
    outside=st.integers(2, 9),
    rank=st.integers(1, 2),
    bias=st.booleans(),
    conv=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCES)),
    strided=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_value_and_gradients(
    part: str,
    shape: list[int],
    inside: int,
    outside: int,
    rank: int,
    bias: bool,
    conv: bool,
    dtype: torch.dtype,
    strided: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    chain = attached(part, inside, outside, rank, bias, conv, dtype)
    x = torch.randn(*shape, inside).to(dtype)
    if strided and not conv:  # which Conv1D itself does not take
        x = x.transpose(0, -2).contiguous().transpose(0, -2)
    exact = copy.deepcopy(chain)
    assert chain.model is not None
    assert exact.model is not None
    exact.model.double()
    found = forward_and_backward(chain.model, x, list(chain.trainable().values()))
    expected = forward_and_backward(exact.model, x.double(), list(exact.trainable().values()))
    assert [tensor.dtype for tensor in found[:2]] == [dtype, dtype]
    assert [tensor.dtype for tensor in found[2:]] == [p.dtype for p in chain.trainable().values()]
    check(dtype, found, expected)
    merged = forward_and_backward(exact.merge(), x.double(), [])
    check(torch.float64, expected[:2], merged)


@pytest.mark.parametrize("part", ADAPTERS)
def test_factors_in_float32_beside_a_base_in_double(part: str) -> None:
    torch.manual_seed(0)
    exact = attached(part, 5, 4, 2, True, False, torch.float64)
    chain, x = copy.deepcopy(exact), torch.randn(2, 3, 5, dtype=torch.float64)
    assert chain.model is not None
    assert exact.model is not None
    for parameter in chain.trainable().values():
        parameter.data = parameter.data.float()
    found = forward_and_backward(chain.model, x, list(chain.trainable().values()))
    assert [tensor.dtype for tensor in found] == [torch.float64] * 2 + [torch.float32] * (len(found) - 2)
    check(torch.float32, found, forward_and_backward(exact.model, x, list(exact.trainable().values())))
