"""SparseLoRA: the masked dense model, LoRA, its estimates, its cost, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lowrank.methods.adapted import AdaptedLinear
from lowrank.methods.chain import Chain
from lowrank.methods.contextual_sparsity import ContextualSparsity
from lowrank.spec import TrainSpec
from tests.chain_runs import attach, check_resume, logits, snapshot, train
from tests.sparse_reference import ROLES, Reference, at_rank
from tests.tiny_models import TOKENS, batch, make
from tests.tolerances import BIT_EXACT, FLOAT64_IDENTITY

KNOWN = list(ROLES)
HEADS = {"llama": (2, 1)}
LANGUAGE = ("gpt2", "llama")


def sparse(**options: Any) -> dict[str, Any]:
    return {"part": "contextual_sparsity", "dense_steps": 0, **options}


def lora(family: str, where: str = "attention") -> dict[str, Any]:
    """Adapters on the attention, as published, or on every layer."""
    roles = ROLES[family]
    kinds = [kind for kind in ("q", "k", "v", "qkv", "o") if kind in roles]
    targets = ["all-linear"] if where == "all" else [f"*.{roles[kind]}" for kind in kinds]
    return {"part": "lora", "rank": 2, "alpha": 3.0, "targets": targets}


def randomise(chain: Chain) -> None:
    """lora_B starts at zero, which would hide what the adapters do."""
    for index, (name, parameter) in enumerate(sorted(chain.trainable().items())):
        if "lora_" in name:
            generator = torch.Generator().manual_seed(index)
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter) * 0.3


def prompted(family: str, size: int, seed: int = 0, *, padded: bool = True) -> dict[str, Tensor]:
    """A batch with prompts of two lengths and, in its last row, two tokens of padding."""
    inputs = batch(family, size, seed)
    if family == "vit":
        return inputs
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if padded:
        inputs["attention_mask"][-1, -2:] = 0
    if family in LANGUAGE:
        inputs["labels"] = inputs["labels"].clone()
        inputs["labels"][0, :3] = -100
        inputs["labels"][1:, :2] = -100
        inputs["labels"][inputs["attention_mask"] == 0] = -100
    return inputs


def kinds_of_token(family: str, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Context and real tokens, spelled out row by row."""
    if family == "vit":
        real = torch.ones(len(inputs["labels"]), 5, dtype=torch.bool)
    else:
        real = inputs["attention_mask"].bool()
    context = torch.ones_like(real)
    for row, columns in enumerate(real.tolist()):
        for column in range(len(columns)):
            if family in LANGUAGE:
                context[row, column] = bool(inputs["labels"][row, column] == -100)
            else:
                context[row, column] = column != 0
    return context, real


def step_gradients(model: nn.Module, chain: Chain, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Loss and gradients of one training step, which then is taken back."""
    model.train()
    chain.before_step([inputs], 0)
    chain.before_forward(inputs, 0)
    output = model(**inputs)
    output.loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in chain.trainable().items()}
    model.zero_grad()
    return {**found, "loss": output.loss.detach(), "logits": output.logits.detach()}


@pytest.mark.parametrize("where", ["attention", "all"])
@pytest.mark.parametrize("family", KNOWN)
def test_equals_the_dense_model_with_the_exact_choice_masked(family: str, where: str) -> None:
    """Forward and gradients; the estimates are exact, so the channels are those of the true activations."""
    inputs, found = prompted(family, 3), []
    keep = {"ffn": 0.5, "vo": 0.4, "qk": 0.7}
    rules = [{branch: 1 - share for branch, share in keep.items()}]
    for part in (True, False):
        model = make(family)
        at_rank(model, family, 8)
        chain = attach(model, lora(family, where), *([sparse(estimator_rank=8, rules=rules)] if part else []))
        randomise(chain)
        if not part:
            reference = Reference(model, family, keep, HEADS.get(family, (2, 2)))
            reference.tokens(*kinds_of_token(family, inputs))
        found.append(step_gradients(model, chain, inputs))
    dense = step_gradients(make_lora := make(family), attach(make_lora, lora(family, where)), inputs)
    assert found[0].keys() == found[1].keys() == dense.keys()
    for name, tensor in found[0].items():
        FLOAT64_IDENTITY.check(tensor, found[1][name])
    assert not torch.allclose(found[0]["logits"], dense["logits"])


@pytest.mark.parametrize("where", ["attention", "all"])
@pytest.mark.parametrize("family", KNOWN)
def test_sparsity_zero_is_lora_bit_for_bit(family: str, where: str) -> None:
    ends = []
    for parts in ([], [sparse(channel_sparsity=0.0)]):
        model = make(family)
        chain = attach(model, lora(family, where), *parts)
        optimizer = torch.optim.AdamW(chain.trainable().values(), lr=1e-2)
        train(model, chain, optimizer, [prompted(family, 3, seed) for seed in range(3)])
        ends.append(snapshot(model))
    for name, tensor in ends[0].items():
        BIT_EXACT.check(tensor, ends[1][name])


@pytest.mark.parametrize("family", KNOWN)
def test_first_steps_and_evaluation_are_dense(family: str) -> None:
    model, plain = make(family), make(family)
    chain, peer = attach(model, lora(family), sparse(dense_steps=2)), attach(plain, lora(family))
    losses = []
    for each, its_chain in ((model, chain), (plain, peer)):
        optimizer = torch.optim.SGD(its_chain.trainable().values(), lr=0.1)
        losses.append(train(each, its_chain, optimizer, [prompted(family, 3, seed) for seed in range(4)]))
    assert losses[0][:2] == pytest.approx(losses[1][:2], abs=1e-12)
    assert abs(losses[0][2] - losses[1][2]) > 1e-9
    peer.load_changed(chain.changed())
    inputs = prompted(family, 3, 9)
    chain.before_forward(inputs, 2)
    FLOAT64_IDENTITY.check(logits(chain, inputs), logits(peer, inputs))


def test_the_dense_fraction_is_a_share_of_the_run() -> None:
    model = make("bert")
    chain = attach(model, lora("bert"), {"part": "contextual_sparsity", "dense_fraction": 0.25})
    chain.schedule(TrainSpec(lr=1e-2, steps=10), 10)
    part: Any = chain["contextual_sparsity"]
    seen = []
    for step in range(5):
        chain.before_forward(prompted("bert", 3), step)
        seen.append(part._now.plan is not None)
    assert seen == [False, False, False, True, True]


@pytest.mark.parametrize("family", ["distilbert", "llama"])
def test_choice_depends_on_no_padding_and_no_order(family: str) -> None:
    model = make(family)
    chain = attach(model, lora(family), sparse())
    randomise(chain)
    inputs = prompted(family, 4, padded=False)
    found = step_gradients(model, chain, inputs)
    flipped = {key: tensor.flip(0) for key, tensor in inputs.items()}
    fill = {"input_ids": 7, "attention_mask": 0, "labels": -100}
    wide = {
        key: tensor if tensor.ndim == 1 else torch.cat([tensor, torch.full((4, 2), fill[key])], 1)
        for key, tensor in inputs.items()
    }
    assert wide["input_ids"].shape == (4, TOKENS + 2)
    for other in (flipped, wide):
        again = step_gradients(model, chain, other)
        for name in chain.trainable():
            FLOAT64_IDENTITY.check(again[name], found[name])


@pytest.mark.parametrize("family", KNOWN)
def test_resumes_bit_for_bit(family: str) -> None:
    tokens = "none" if family in LANGUAGE else "output"
    check_resume(family, [lora(family), sparse(dense_steps=3, dense_tokens=tokens)])


@pytest.mark.parametrize("where", ["attention", "all"])
@pytest.mark.parametrize("family", KNOWN)
def test_merge_and_unmerge(family: str, where: str) -> None:
    model, plain = make(family), make(family)
    chain, peer = attach(model, lora(family, where), sparse()), attach(plain, lora(family, where))
    randomise(chain)
    randomise(peer)
    inputs = prompted(family, 3)
    before = step_gradients(model, chain, inputs)
    chain.merge()
    peer.merge()
    assert not any(isinstance(module, AdaptedLinear) for module in model.modules())
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    for name, tensor in snapshot(plain).items():
        BIT_EXACT.check(snapshot(model)[name], tensor)
    chain.unmerge()
    for name, tensor in step_gradients(model, chain, inputs).items():
        FLOAT64_IDENTITY.check(tensor, before[name])


@given(index=st.integers(0, 5), base=st.sampled_from([0.0, 0.5]))
def test_the_last_rule_that_fits_holds(index: int, base: float) -> None:
    rules = [
        {"first": 1, "last": 4, "ffn": 0.9},
        {"first": 2, "last": 3, "ffn": 0.0, "vo": 0.25},
        {"first": 4, "qk": 0.75},
    ]
    part = ContextualSparsity(channel_sparsity=base, rules=rules)
    expected_ffn = {1: 0.9, 2: 0.0, 3: 0.0, 4: 0.9}.get(index, base)
    assert part._sparsity(index, "ffn") == expected_ffn
    assert part._sparsity(index, "vo") == (0.25 if index in (2, 3) else base)
    assert part._sparsity(index, "qk") == (0.75 if index >= 4 else base)


def test_trains_what_lora_trains_and_adds_no_parameters() -> None:
    plain, thinned = (attach(make("bert"), lora("bert"), *parts) for parts in ([], [sparse()]))
    assert {n: p.shape for n, p in plain.trainable().items()} == {n: p.shape for n, p in thinned.trainable().items()}
    assert not thinned.state_dict()
