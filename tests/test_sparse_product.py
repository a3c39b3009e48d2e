"""Parts of SparseLoRA: picked products and their cost, estimates, tokens, precisions, refusals."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from lowrank.methods.adapted import AdaptedLinear, adapted, dense_weight
from lowrank.methods.sparse_branches import FeedForward, Now, kept
from lowrank.methods.sparse_product import LowRank, columns_product, estimator_numel, lay_out, pick, rows_product
from lowrank.methods.sparse_tokens import Plan, Split
from tests.chain_runs import attach
from tests.test_contextual_sparsity import KNOWN, lora, prompted, randomise, sparse, step_gradients
from tests.tiny_models import make
from tests.tolerances import BFLOAT16_RUN, BIT_EXACT, FLOAT64_IDENTITY, PEER_GRADIENT


def layer(kind: str, inside: int, outside: int, bias: bool, dtype: torch.dtype = torch.float64) -> nn.Module:
    base: nn.Module = nn.Linear(inside, outside, bias=bias) if kind == "linear" else Conv1D(outside, inside)
    nn.init.normal_(base.weight)  # type: ignore[arg-type]
    if base.bias is not None:
        nn.init.normal_(base.bias)  # type: ignore[arg-type]
    return base.to(dtype).requires_grad_(False)


@given(
    kind=st.sampled_from(["linear", "conv1d"]),
    columns=st.booleans(),
    bias=st.booleans(),
    inside=st.integers(2, 7),
    outside=st.integers(2, 7),
    rows=st.integers(0, 4),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_a_picked_product_is_the_product_with_the_picked_weight(
    kind: str, columns: bool, bias: bool, inside: int, outside: int, rows: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    base = layer(kind, inside, outside, bias, dtype)
    channels = inside if columns else outside
    index = torch.randperm(channels)[: max(1, channels // 2)].sort().values
    weight = dense_weight(base)[:, index] if columns else dense_weight(base)[index]
    expected_bias = None if base.bias is None else (base.bias if columns else base.bias[index])
    lay_out(base, columns)
    assert pick(base, index, columns).shape == (len(index), outside if columns else inside)
    x = torch.randn(rows, weight.shape[1], dtype=dtype, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    y = (columns_product if columns else rows_product)(x, base, index)
    expected = other @ weight.t() + (0 if expected_bias is None else expected_bias)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(y, expected)  # torch's own tolerances: three types in one test
    torch.testing.assert_close(x.grad, other.grad)


@given(kind=st.sampled_from(["linear", "conv1d"]), columns=st.booleans())
def test_laying_out_moves_memory_and_no_value(kind: str, columns: bool) -> None:
    base = layer(kind, 5, 3, bias=True)
    before = dense_weight(base).clone()
    weight = base.weight
    lay_out(base, columns)
    BIT_EXACT.check(dense_weight(base), before)
    assert (dense_weight(base).t() if columns else dense_weight(base)).is_contiguous()
    lay_out(base, None)
    BIT_EXACT.check(dense_weight(base), before)
    assert base.weight is weight
    assert weight.is_contiguous()


@given(
    inside=st.integers(1, 8), outside=st.integers(1, 8), bias=st.booleans(), rank=st.integers(1, 8), n=st.integers(1, 9)
)
def test_an_estimate_at_full_rank_is_exact_and_has_the_size_of_the_formula(
    inside: int, outside: int, bias: bool, rank: int, n: int
) -> None:
    base = layer("linear", inside, outside, bias)
    x = torch.randn(n, inside, dtype=torch.float64)
    exact = base(x)
    estimate = LowRank(base.weight, base.bias, min(inside, outside))
    FLOAT64_IDENTITY.check(estimate.values(estimate.hidden(x)), exact)
    # A norm is the root of a difference here: half of the digits are left where it is almost 0.
    FLOAT64_IDENTITY.check(estimate.norms(x).square(), exact.square().sum(0))
    rank = min(rank, inside, outside)
    cut = LowRank(base.weight, base.bias, rank)
    assert cut.left.numel() + cut.right.numel() == estimator_numel(inside, outside, rank, bias)
    left, values, right = torch.linalg.svd(base.weight, full_matrices=False)
    best = (left[:, :rank] * values[:rank]) @ right[:rank]
    FLOAT64_IDENTITY.check(cut.values(cut.hidden(x)), functional.linear(x, best, base.bias))


@given(output=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=3))
def test_taking_apart_and_putting_together_is_the_identity(output: list[list[bool]]) -> None:
    mask = torch.tensor(output)
    split = Split(mask, torch.ones_like(mask))
    x = torch.randn(*mask.shape, 4, dtype=torch.float64, requires_grad=True)
    context, dense = split.take(x)
    BIT_EXACT.check(context, x[~mask])
    BIT_EXACT.check(dense, x[mask])
    again = split.put(context, dense if split.outputs else None)
    upstream = torch.randn_like(x)
    again.backward(upstream)
    BIT_EXACT.check(again, x)
    assert x.grad is not None
    BIT_EXACT.check(x.grad, upstream)


def feed_forward(gated: bool, width: int, keep: float, **options: Any) -> tuple[list[nn.Module], Any, Any, Now]:
    """A branch of its own: its base layers, dense and thinned functions of x, and its switch."""
    torch.manual_seed(0)
    inner = 4 * width
    sizes = [(width, inner)] * (2 if gated else 1) + [(inner, width)]
    bases = [layer("linear", inside, outside, bias=not gated, dtype=torch.float32) for inside, outside in sizes]
    act = functional.silu if gated else functional.gelu
    now = Now()
    layers = [AdaptedLinear(base) for base in bases]
    branch = FeedForward(now, layers, act, kept(inner, 1 - keep), 8, options.get("score", "tokens"))
    for its_layer, product in branch.products().items():
        its_layer.base_product = product

    def run(layers: list[Any], x: Tensor) -> Tensor:
        h = act(layers[0](x)) * layers[1](x) if gated else act(layers[0](x))
        y: Tensor = layers[-1](h)
        return y

    return bases, lambda x: run(bases, x), lambda x: run(layers, x), now


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("keep", [0.75, 0.5, 0.25, 0.1])
def test_the_frozen_feed_forward_costs_the_share_that_is_kept(gated: bool, keep: float) -> None:
    """Operations forward and to the gradient of x, scoring included, against the same layers dense."""
    _, dense, thinned, now = feed_forward(gated, 256, keep)
    counted = []
    for run in (dense, thinned):
        now.plan = Plan({"labels": torch.zeros(4, dtype=torch.int64)}, "none", "first")
        x = torch.randn(4, 32, 256, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            run(x).sum().backward()
        counted.append(counter.get_total_flops())
    assert keep <= counted[1] / counted[0] <= keep + 0.05


def test_backward_keeps_no_copy_of_a_weight() -> None:
    bases, _, thinned, now = feed_forward(True, 32, 0.5)
    now.plan = Plan({}, "none", "first")
    sizes: list[int] = []

    def save(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    tokens, inner = 3, kept(128, 0.5)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        thinned(torch.randn(1, tokens, 32, requires_grad=True))
    assert max(sizes) <= tokens * inner < bases[0].weight[:inner].numel()


def test_sequence_mean_is_the_score_of_the_released_code() -> None:
    """The mean token of each example, through the factors, norm over the examples."""
    bases, _, thinned, now = feed_forward(True, 16, 0.25, score="sequence_mean")
    x = torch.randn(3, 5, 16)
    now.plan = Plan({}, "none", "first")
    thinned(x)
    approximate = []
    for base in bases[:2]:
        left, values, right = torch.linalg.svd(base.weight, full_matrices=False)
        approximate.append((left[:, :8] * values[:8]) @ right[:8])
    mean = x.mean(1)
    scores = (functional.silu(mean @ approximate[0].T) * (mean @ approximate[1].T)).norm(dim=0)
    (chosen,) = now.plan.chosen.values()
    assert chosen.tolist() == scores.topk(16).indices.sort().values.tolist()


@pytest.mark.parametrize("family", KNOWN)
def test_gradient_checkpointing_changes_nothing(family: str) -> None:
    found = []
    for checkpointing in (False, True):
        model = make(family)
        chain = attach(model, lora(family), sparse())
        randomise(chain)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        found.append(step_gradients(model, chain, prompted(family, 3)))
    for name, tensor in found[0].items():
        FLOAT64_IDENTITY.check(tensor, found[1][name])


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", KNOWN)
def test_bfloat16_stays_near_float64(family: str, weights: torch.dtype) -> None:
    """Weights in bfloat16, or autocast over float32; with every channel kept but one, so that choices agree."""
    found = []
    for low in (False, True):
        model = make(family)
        chain = attach(model, lora(family), sparse(channel_sparsity=0.05))
        randomise(chain)
        inputs = prompted(family, 3)
        if low:
            model.to(weights)
            part: Any = chain["contextual_sparsity"]
            part.merge(model)
            part.unmerge(model)
        autocast = (
            torch.autocast("cpu", torch.bfloat16) if low and weights == torch.float32 else contextlib.nullcontext()
        )
        if low and "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(weights)
        with autocast:
            found.append(step_gradients(model, chain, inputs))
    for name, tensor in found[0].items():
        BFLOAT16_RUN.check(found[1][name].double(), tensor.double())  # transformers takes losses in float32


def test_on_a_coded_base() -> None:
    """NF4 in front: rows are picked from the weight that its code stands for, and the code is not rewritten."""
    coded, plain = make("distilbert").float(), make("distilbert").float()
    chain = attach(coded, "nf4", lora("distilbert", "all"), sparse())
    coded.float()  # NF4 stands for its weight in the types that it knows, and double is none of them
    for name, wrapper in adapted(coded, "lora"):
        plain.get_submodule(name).weight.data.copy_(wrapper.weight)
    peer = attach(plain, lora("distilbert", "all"), sparse())
    outputs = []
    for model, its_chain in ((coded, chain), (plain, peer)):
        model.float()
        randomise(its_chain)
        outputs.append(step_gradients(model, its_chain, prompted("distilbert", 3)))
    for name, tensor in outputs[0].items():
        PEER_GRADIENT.check(tensor, outputs[1][name])
