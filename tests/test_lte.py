"""LTE against a loop over dense copies, as published; its identities; its refusals; its counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lowrank.errors import ConfigError
from lowrank.methods.adapted import AdaptedLinear, adapted, dense_weight, replace
from lowrank.methods.lte import Lte
from tests.chain_runs import attach, logits, train
from tests.tiny_models import FAMILIES, batch, make
from tests.tolerances import BIT_EXACT, FLOAT64_IDENTITY

Batch = dict[str, Tensor]


class Published(nn.Module):
    """The published algorithm, by the letter: N dense copies of W, a loop over heads, dense previous deltas."""

    def __init__(self, layer: AdaptedLinear) -> None:
        super().__init__()
        adapter: Any = layer.adapters["lte"]
        self.lora_A = nn.ParameterList(nn.Parameter(A.detach().clone()) for A in adapter.lora_A)
        self.lora_B = nn.ParameterList(nn.Parameter(B.detach().clone()) for B in adapter.lora_B)
        self.scaling, self.bias = adapter.scaling, layer.bias
        self.merged = layer.weight.detach().clone()
        self.copies = [self.merged.clone() for _ in self.lora_A]
        self.previous = [torch.zeros_like(self.merged) for _ in self.lora_A]

    def forward(self, x: Tensor) -> Tensor:
        heads = len(self.copies)
        y = torch.empty(*x.shape[:-1], len(self.merged), dtype=x.dtype)
        for n, (A, B, weight) in enumerate(zip(self.lora_A, self.lora_B, self.copies, strict=True)):
            own = x[n::heads]
            y[n::heads] = own @ weight.t() + self.scaling * (own @ A.t() @ B.t())
        return y if self.bias is None else y + self.bias

    @torch.no_grad()
    def merge(self) -> None:
        deltas = [self.scaling * (B @ A) for A, B in zip(self.lora_A, self.lora_B, strict=True)]
        self.merged += torch.stack([new - old for new, old in zip(deltas, self.previous, strict=True)]).mean(0)
        self.previous = deltas
        self.copies = [self.merged - delta for delta in deltas]


def pair(family: str, **options: Any) -> tuple[nn.Module, Any, nn.Module, list[Published]]:
    """A model under our part, and its twin with the published layers, from the same factors."""
    model, twin = make(family), make(family)
    chain = attach(model, {"part": "lte", "rank": 2, "alpha": 8.0, "head": "frozen", **options})
    attach(twin, {"part": "lte", "rank": 2, "alpha": 8.0, "head": "frozen", **options})
    layers = []
    for _, layer in list(adapted(twin, "lte")):
        layers.append(Published(layer))
        replace(twin, layer, layers[-1])
    return model, chain, twin, layers


@pytest.mark.parametrize("family", FAMILIES)
def test_trajectory_is_the_published_one(family: str) -> None:
    model, chain, twin, layers = pair(family, num_lora_heads=4, merge_every=2)
    ours = torch.optim.SGD(chain.trainable().values(), lr=0.1)
    theirs = torch.optim.SGD([p for layer in layers for p in layer.parameters() if p.requires_grad], lr=0.1)
    for step in range(5):
        inputs = batch(family, 8, step)
        ours.zero_grad()
        train_loss = model(**inputs).loss
        train_loss.backward()
        twin_loss = twin(**inputs).loss
        theirs.zero_grad()
        twin_loss.backward()
        FLOAT64_IDENTITY.check(train_loss, twin_loss)
        for (_, layer), published in zip(adapted(model, "lte"), layers, strict=True):
            adapter: Any = layer.adapters["lte"]
            FLOAT64_IDENTITY.check(adapter.lora_A.grad, torch.stack([A.grad for A in published.lora_A]))
            FLOAT64_IDENTITY.check(adapter.lora_B.grad, torch.stack([B.grad for B in published.lora_B]))
        ours.step()
        theirs.step()
        chain.after_step(ours, step + 1)
        if (step + 1) % 2 == 0:
            for published in layers:
                published.merge()
    for (_, layer), published in zip(adapted(model, "lte"), layers, strict=True):
        FLOAT64_IDENTITY.check(layer.weight, published.merged)


@given(
    heads=st.integers(1, 4),
    rank=st.integers(1, 3),
    each=st.integers(1, 3),
    tokens=st.sampled_from([(), (3,), (2, 2)]),
    kind=st.sampled_from(["linear", "linear without bias", "conv1d"]),
    dtype=st.sampled_from([torch.float64, torch.bfloat16]),
)
def test_each_head_sees_its_own_weight(
    heads: int, rank: int, each: int, tokens: tuple[int, ...], kind: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    base = Conv1D(5, 4) if kind == "conv1d" else nn.Linear(4, 5, bias=kind == "linear")
    layer = AdaptedLinear(base)
    part = Lte(num_lora_heads=heads, rank=rank, alpha=2.0, merge_every=1)
    adapter: Any = part.new_adapter(4, 5, torch.Generator().manual_seed(1))
    layer.adapters["lte"] = adapter
    layer.to(dtype)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    for merged in (False, True):
        nn.init.normal_(adapter.lora_B)
        x = torch.randn(heads * each, *tokens, 4, dtype=dtype)
        y = layer(x)
        assert y.dtype == dtype
        deltas = 2.0 / rank * (adapter.lora_B @ adapter.lora_A)
        previous = 2.0 / rank * (adapter.get_buffer("merged_B") @ adapter.get_buffer("merged_A"))
        for n in range(heads) if dtype == torch.float64 else ():
            weight = layer.weight + deltas[n] - previous[n]
            expected = x[n::heads] @ weight.t()
            FLOAT64_IDENTITY.check(y[n::heads], expected if layer.bias is None else expected + layer.bias)
        if not merged:
            part.after_step(layer, optimizer, 1)


@settings(max_examples=6)
@given(merge_every=st.integers(1, 5), adam=st.booleans(), family=st.sampled_from(sorted(FAMILIES)))
def test_one_head_is_lora_whatever_the_merging(merge_every: int, adam: bool, family: str) -> None:
    model, reference = make(family), make(family)
    shared = {"rank": 2, "alpha": 4.0}
    chain = attach(model, {"part": "lte", "num_lora_heads": 1, "merge_every": merge_every, **shared})
    lora = attach(reference, {"part": "lora", **shared})
    for (_, ours), (_, theirs) in zip(adapted(model), adapted(reference), strict=True):
        theirs.adapters["lora"].lora_A.data.copy_(ours.adapters["lte"].lora_A[0])
    batches = [batch(family, 4, seed) for seed in range(6)]

    def run(model: nn.Module, chain: Any) -> Tensor:
        parameters = list(chain.trainable().values())
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, eps=1e-3) if adam else torch.optim.SGD(parameters, lr=0.1)
        return torch.tensor(train(model, chain, optimizer, batches))

    FLOAT64_IDENTITY.check(run(model, chain), run(reference, lora))
    FLOAT64_IDENTITY.check(logits(chain, batches[0]), logits(lora, batches[0]))
    for (_, ours), (_, theirs) in zip(adapted(model), adapted(reference), strict=True):
        FLOAT64_IDENTITY.check(ours.adapters["lte"].lora_B[0], theirs.adapters["lora"].lora_B)


def test_after_a_merge_every_head_sees_the_same_weight() -> None:
    model = make("gpt2")
    chain = attach(model, {"part": "lte", "num_lora_heads": 4, "rank": 2, "merge_every": 3})
    optimizer = torch.optim.SGD(chain.trainable().values(), lr=0.5)
    start = {name: layer.weight.detach().clone() for name, layer in adapted(model)}
    one = {key: tensor.repeat_interleave(4, 0) for key, tensor in batch("gpt2", 1).items()}  # one example a head
    train(model, chain, optimizer, [batch("gpt2", 8, seed) for seed in range(2)])
    apart = model(**one).logits
    assert (apart - apart[0]).abs().max() > 1e-6
    train(model, chain, optimizer, [batch("gpt2", 8, 2)], first=2)
    together = model(**one).logits
    FLOAT64_IDENTITY.check(together, together[:1].expand_as(together))
    for name, layer in adapted(model):  # the merges telescope: W = W0 + mean_n D_n
        adapter: Any = layer.adapters["lte"]
        FLOAT64_IDENTITY.check(
            layer.weight, start[name] + adapter.scaling * (adapter.lora_B @ adapter.lora_A).detach().mean(0)
        )


def test_merging_each_sgd_step_with_reset_is_multi_head_lora() -> None:
    """With the same examples for each head; the batch mean gives both 1 / N, in the gradient or in the term."""

    def run(part: dict[str, Any]) -> nn.Module:
        model = make("llama")
        chain = attach(model, {"num_lora_heads": 2, "rank": 2, "alpha": 8.0, **part})
        optimizer = torch.optim.SGD(chain.trainable().values(), lr=1.0)
        for step in range(3):
            inputs = {key: tensor.repeat_interleave(2, 0) for key, tensor in batch("llama", 4, step).items()}
            train(model, chain, optimizer, [inputs], first=step)
            for _, layer in adapted(model):
                adapter: Any = layer.adapters[part["part"]]
                if part["part"] == "mhlora":
                    layer.weight.data += adapter.delta_weight(layer).detach()
                else:
                    adapter.get_buffer("merged_B").zero_()
                adapter.lora_B.data.zero_()
        return model

    ours, theirs = run({"part": "lte", "merge_every": 1}), run({"part": "mhlora"})
    start = make("llama")
    for (name, a), (_, b) in zip(adapted(ours), adapted(theirs), strict=True):
        FLOAT64_IDENTITY.check(a.weight, b.weight)
        assert not torch.allclose(a.weight, dense_weight(start.get_submodule(name)))


def test_a_heads_gradient_is_one_nth_of_that_of_its_own_mean() -> None:
    options = {"part": "lte", "rank": 2, "alpha": 8.0}
    model = make("gpt2")
    chain = attach(model, {**options, "num_lora_heads": 2})
    train(model, chain, torch.optim.SGD(chain.trainable().values(), lr=0.5), [batch("gpt2", 4)])
    whole = batch("gpt2", 4, 1)
    model(**whole).loss.backward()
    for head in (0, 1):
        alone = make("gpt2")
        worker = attach(alone, {**options, "num_lora_heads": 1})
        for name, parameter in worker.trainable().items():
            parameter.data.copy_(chain.trainable()[name][head : head + 1])
        alone(**{key: tensor[head::2] for key, tensor in whole.items()}).loss.backward()
        for name, parameter in worker.trainable().items():
            FLOAT64_IDENTITY.check(chain.trainable()[name].grad[head], parameter.grad[0] / 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluation_sees_what_a_merge_would_give(family: str) -> None:
    model, inputs = make(family), batch(family, 3)  # 3 examples: evaluation needs no division by heads
    model.eval()
    bare = model(**inputs).logits
    chain = attach(model, {"part": "lte", "rank": 2, "merge_every": 3})
    BIT_EXACT.check(logits(chain, inputs), bare)
    train(model, chain, torch.optim.SGD(chain.trainable().values(), lr=0.5), [batch(family, 8, s) for s in range(4)])
    seen = logits(chain, inputs)
    assert not torch.allclose(seen, bare)
    chain.merge()
    assert not list(adapted(model))
    FLOAT64_IDENTITY.check(logits(chain, inputs), seen)
    with pytest.raises(ConfigError, match="merged already"):
        chain.merge()
    chain.unmerge()
    FLOAT64_IDENTITY.check(logits(chain, inputs), seen)


def test_stale_evaluation_sees_the_last_merge() -> None:
    inputs = batch("gpt2", 3)
    options = {"part": "lte", "rank": 2, "num_lora_heads": 2, "merge_every": 3}

    def run(steps: int, stale: bool) -> Tensor:
        model = make("gpt2")
        chain = attach(model, {**options, "eval_stale": stale})
        optimizer = torch.optim.SGD(chain.trainable().values(), lr=0.5)
        train(model, chain, optimizer, [batch("gpt2", 4, seed) for seed in range(steps)])
        seen = logits(chain, inputs)
        chain.merge()
        BIT_EXACT.check(logits(chain, inputs), seen) if stale else FLOAT64_IDENTITY.check(logits(chain, inputs), seen)
        return seen

    BIT_EXACT.check(run(5, stale=True), run(3, stale=True))
    FLOAT64_IDENTITY.check(run(3, stale=True), run(3, stale=False))
    assert not torch.allclose(run(5, stale=True), run(5, stale=False))
