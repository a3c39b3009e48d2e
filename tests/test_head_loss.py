"""The loss from hidden states and head in one function: the same numbers, without all logits at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaModel

from lowrank import head_loss as module
from lowrank.head_loss import head_loss, plain_head
from lowrank.measure import saved_tensors, storage_bytes
from lowrank.tasks import IGNORED, forward, task
from tests.chain_runs import attach
from tests.tiny_models import FAMILIES, VOCABULARY, batch, make
from tests.tolerances import BFLOAT16, BFLOAT16_LOSS, FLOAT64_IDENTITY, PEER_GRADIENT


def plain(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(functional.linear(hidden, weight), labels, reduction="sum")


def operands(positions: int, width: int, vocabulary: int, trains: bool, dtype: torch.dtype = torch.float64) -> Any:
    hidden = torch.randn(positions, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, width, dtype=dtype, requires_grad=trains)
    return hidden, weight, torch.randint(vocabulary, (positions,))


@given(
    positions=st.integers(1, 600),
    width=st.integers(1, 9),
    vocabulary=st.integers(1, 12),
    trains=st.booleans(),
    upstream=st.floats(-2, 2),
)
def test_is_the_cross_entropy_of_the_logits(
    positions: int, width: int, vocabulary: int, trains: bool, upstream: float
) -> None:
    """Value and gradients, of few tokens and of several chunks, the last one short."""
    hidden, weight, labels = operands(positions, width, vocabulary, trains)
    wanted = [hidden, weight] if trains else [hidden]
    ours, expected = head_loss(hidden, weight, labels), plain(hidden, weight, labels)
    FLOAT64_IDENTITY.check(ours, expected)
    found = (torch.autograd.grad(loss * upstream, wanted) for loss in (ours, expected))
    for gradient, its_own in zip(*found, strict=True):
        FLOAT64_IDENTITY.check(gradient, its_own)


@pytest.mark.parametrize(("positions", "trains", "kept"), [(700, False, 700 * 4), (700, True, 704 * 4 + 46 * 4)])
def test_keeps_the_gradients_and_no_logits(positions: int, trains: bool, kept: int) -> None:
    hidden, weight, labels = operands(positions, 4, 50, trains, torch.float32)
    with saved_tensors() as saved:
        loss = head_loss(hidden, weight, labels)
    assert storage_bytes(saved.held(), exclude=[hidden, weight]) == 4 * kept
    assert 4 * kept < 4 * positions * 50
    assert loss.requires_grad


def test_takes_the_plain_way_where_that_keeps_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HeadLoss", None)
    for positions, trains in ((3, True), (40, True)):
        hidden, weight, labels = operands(positions, 40, 30, trains)
        FLOAT64_IDENTITY.check(head_loss(hidden, weight, labels), plain(hidden, weight, labels))
    with torch.no_grad():
        head_loss(*operands(700, 4, 50, False))
    with pytest.raises(AttributeError):
        head_loss(*operands(700, 4, 50, False))


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
def test_bfloat16_in_the_weights_or_under_autocast(weights: torch.dtype, trains: bool) -> None:
    hidden, weight, labels = operands(600, 8, 20, trains, torch.float32)
    exact = torch.autograd.grad(plain(hidden, weight, labels), [hidden, weight] if trains else [hidden])
    half = [tensor.detach().to(weights).requires_grad_(tensor.requires_grad) for tensor in (hidden, weight)]
    with torch.autocast("cpu", torch.bfloat16, enabled=weights == torch.float32):
        loss = head_loss(half[0], half[1], labels)
    assert loss.dtype == torch.float32
    BFLOAT16_LOSS.check(loss, plain(hidden, weight, labels))
    found = torch.autograd.grad(loss, half if trains else half[:1])
    for gradient, expected in zip(found, exact, strict=True):
        assert gradient.dtype == weights
        scale = expected.abs().max()
        BFLOAT16.check(gradient.float() / scale, expected / scale)


def rows(family: str) -> dict[str, Tensor]:
    """Texts with a prompt and, in the last one, padding."""
    inputs = batch(family, 4)
    labels = inputs["labels"].clone()
    labels[:, :2] = IGNORED
    if family == "nanogpt":
        return {**inputs, "labels": labels}
    mask = torch.ones_like(labels)
    mask[-1, -2:] = 0
    return {**inputs, "labels": labels.where(mask == 1, IGNORED), "attention_mask": mask}


@pytest.mark.parametrize("parts", [["full"], ["lora"], [{"part": "lora", "targets": ["lm_head"], "rank": 2}]], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_task_gives_the_loss_and_gradients_of_the_logits(family: str, parts: list[Any]) -> None:
    """A head that trains, one that is frozen, and one with an adapter; GPT-2's is tied to its embedding."""
    lm, inputs, found = task("causal_lm"), rows(family), []
    for ours in (True, False):
        chain = attach(model := make(family), *parts)
        loss = lm.loss(model, inputs) if ours else lm.losses(forward(model, inputs), inputs)[0].sum()
        loss.backward()
        gradients = {name: p.grad for name, p in chain.trainable().items() if p.grad is not None}
        found.append({**gradients, "loss": loss.detach().float()})
    assert found[0].keys() == found[1].keys()
    for name, tensor in found[1].items():
        PEER_GRADIENT.check(found[0][name], tensor)  # the logits' own loss is taken in float32


def test_which_heads_are_a_product_and_nothing_more() -> None:
    heads = {family: plain_head(make(family)) for family in FAMILIES}
    assert {family for family, head in heads.items() if head is not None} == {"gpt2", "llama"}
    adapted = make("llama")
    attach(adapted, {"part": "lora", "targets": ["lm_head"], "rank": 2})
    assert plain_head(adapted) is None
    assert plain_head(LlamaModel(adapted.config)) is None  # type: ignore[arg-type]
    biased: Any = make("gpt2")
    biased.lm_head.bias = nn.Parameter(torch.zeros(VOCABULARY))
    assert plain_head(biased) is None


def test_training_never_asks_for_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama")
    attach(model, "lora")
    monkeypatch.setattr(model.lm_head, "forward", None)
    task("causal_lm").loss(model, rows("llama")).backward()
