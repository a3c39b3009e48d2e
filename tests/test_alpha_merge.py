"""SuperReLoRA's alpha-merge: what each rule keeps, the moments that match it, the document's switches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lowrank.errors import ConfigError
from lowrank.methods.adapted import adapted
from lowrank.methods.alpha_merge import AlphaMerge
from lowrank.methods.chain import Chain
from tests.chain_runs import attach, check_accumulation, check_resume, logits, snapshot, train
from tests.tiny_models import FAMILIES, batch, make
from tests.tolerances import BIT_EXACT, FLOAT64_IDENTITY

LORA = {"part": "lora", "rank": 2, "alpha": 8.0, "head": "frozen"}
RULES = ["as_published", "one_factor", "both_factors"]
PRESERVING = ["one_factor", "both_factors"]


def merges(**options: Any) -> dict[str, Any]:
    return {"part": "alpha_merge", "merge_every": 3, **options}


def adamw(chain: Chain, lr: float = 1e-2) -> torch.optim.Optimizer:
    return torch.optim.AdamW(chain.trainable().values(), lr=lr)


def trained(family: str, **options: Any) -> tuple[nn.Module, Chain, torch.optim.Optimizer]:
    """After two steps: the call that follows is the merge of step 3."""
    model = make(family)
    chain = attach(model, LORA, merges(**options))
    optimizer = adamw(chain)
    train(model, chain, optimizer, [batch(family, 4, seed) for seed in range(2)])
    return model, chain, optimizer


@pytest.mark.parametrize("rule", PRESERVING)
@pytest.mark.parametrize("family", FAMILIES)
def test_corrected_rules_keep_the_function(family: str, rule: str) -> None:
    _, chain, optimizer = trained(family, merge_fraction=0.3, rule=rule)
    inputs = batch(family, 4)
    seen, before = logits(chain, inputs), snapshot(chain.model)
    chain.after_step(optimizer, 3)
    FLOAT64_IDENTITY.check(logits(chain, inputs), seen)
    assert any(not torch.equal(t, before[n]) for n, t in snapshot(chain.model).items() if n.endswith("base.weight"))


@given(share=st.floats(0, 1, exclude_max=True), rule=st.sampled_from(RULES), family=st.sampled_from(["gpt2", "llama"]))
def test_what_is_left_of_the_delta(share: float, rule: str, family: str) -> None:
    model, chain, optimizer = trained(family, merge_fraction=share, rule=rule)
    before = [(layer.weight.clone(), layer.delta_weight().detach()) for _, layer in adapted(model)]
    chain.after_step(optimizer, 3)
    kept = 1 - share + share**2 if rule == "as_published" else 1.0
    for (weight, delta), (_, layer) in zip(before, adapted(model), strict=True):
        FLOAT64_IDENTITY.check(layer.weight + layer.delta_weight() - weight, kept * delta)
        FLOAT64_IDENTITY.check(layer.weight - weight, share * delta)


def test_published_rule_leaves_91_percent_at_a_tenth() -> None:
    model, chain, optimizer = trained("gpt2", merge_fraction=0.1)
    layer = next(layer for _, layer in adapted(model))
    weight, delta = layer.weight.clone(), layer.delta_weight().detach()
    chain.after_step(optimizer, 3)
    FLOAT64_IDENTITY.check(layer.weight + layer.delta_weight() - weight, 0.91 * delta)


def run(parts: list[Any], steps: int = 5) -> tuple[nn.Module, dict[str, Tensor]]:
    model = make("gpt2")
    chain = attach(model, *parts)
    train(model, chain, adamw(chain), [batch("gpt2", 4, seed) for seed in range(steps)])
    return model, snapshot(model)


@pytest.mark.parametrize(
    "options", [{"merge_fraction": 0, "rule": rule} for rule in RULES] + [{"merge_every": "none"}], ids=str
)
def test_merging_nothing_is_lora_bit_for_bit(options: dict[str, Any]) -> None:
    lora, ours = run([LORA])[1], run([LORA, merges(**options)])[1]
    for name, tensor in lora.items():
        BIT_EXACT.check(ours[name], tensor)


def test_the_published_runs_train_base_and_adapters_and_never_merge() -> None:
    model, end = run(["full", LORA, merges(merge_every="none")])
    start = make("gpt2")
    attach(start, "full", LORA)
    began = snapshot(start)
    still = {name for name, tensor in end.items() if torch.equal(tensor, began[name])}
    assert still == set()  # everything moved: base, embeddings, norms, A and B
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("rule", ["as_published", "both_factors"])
def test_merging_all_leaves_a_dead_adapter_and_says_so(rule: str) -> None:
    with pytest.warns(UserWarning, match="merge_fraction 1 under rule .* gets no gradient; rule 'one_factor'"):
        model, chain, optimizer = trained("gpt2", merge_fraction=1, rule=rule)
    chain.after_step(optimizer, 3)
    model(**batch("gpt2", 4)).loss.backward()
    for parameter in chain.trainable().values():
        assert not parameter.any()
        assert not parameter.grad.any()


def test_merging_all_of_one_factor_leaves_it_alive() -> None:
    model, chain, optimizer = trained("gpt2", merge_fraction=1, rule="one_factor")
    chain.after_step(optimizer, 3)
    model(**batch("gpt2", 4)).loss.backward()
    assert all(p.grad.any() for name, p in chain.trainable().items() if name.endswith("lora_B"))


@pytest.mark.parametrize("rule", PRESERVING)
def test_moments_are_those_that_the_new_factors_would_have_gathered(rule: str) -> None:
    """Gathers moments at fixed weights (lr 0), merges, and gathers again at the merged weights from nothing."""
    model, chain, _ = trained("llama", merge_fraction=0.3, rule=rule)
    batches = [batch("llama", 4, seed) for seed in range(10, 13)]

    def gather() -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(chain.trainable().values(), lr=0.0)
        for inputs in batches:
            optimizer.zero_grad()
            model(**inputs).loss.backward()
            optimizer.step()
        return optimizer

    merged = gather()
    unscaled = copy.deepcopy(merged.state_dict()["state"])
    chain.after_step(merged, 3)
    gathered = gather()
    for index, parameter in enumerate(chain.trainable().values()):
        for key in ("exp_avg", "exp_avg_sq"):
            FLOAT64_IDENTITY.check(merged.state[parameter][key], gathered.state[parameter][key])
        ratio = merged.state[parameter]["exp_avg"] ** 2 / merged.state[parameter]["exp_avg_sq"]
        FLOAT64_IDENTITY.check(ratio, unscaled[index]["exp_avg"] ** 2 / unscaled[index]["exp_avg_sq"])


def test_published_rule_scales_both_moments_alike() -> None:
    _, chain, optimizer = trained("gpt2", merge_fraction=0.2)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    chain.after_step(optimizer, 3)
    for index, state in optimizer.state_dict()["state"].items():
        for key in ("exp_avg", "exp_avg_sq"):
            FLOAT64_IDENTITY.check(state[key], 0.8 * before[index][key])
        assert state["step"] == before[index]["step"]


def test_momentum_of_sgd_scales_as_the_gradient() -> None:
    model = make("gpt2")
    chain = attach(model, LORA, merges(merge_fraction=0.2, rule="one_factor"))
    optimizer = torch.optim.SGD(chain.trainable().values(), lr=0.1, momentum=0.9)
    train(model, chain, optimizer, [batch("gpt2", 4, seed) for seed in range(2)])
    before = {name: optimizer.state[p]["momentum_buffer"].clone() for name, p in chain.trainable().items()}
    chain.after_step(optimizer, 3)
    for name, p in chain.trainable().items():
        scale = 0.8 if name.endswith("lora_A") else 1.0
        FLOAT64_IDENTITY.check(optimizer.state[p]["momentum_buffer"], scale * before[name])


@pytest.mark.parametrize("rule", RULES)
def test_resumes_bit_exact(rule: str) -> None:
    check_resume("gpt2", ["full", LORA, merges(merge_fraction=0.3, rule=rule)])


@settings(max_examples=6)
@given(micro=st.integers(1, 7), family=st.sampled_from(sorted(FAMILIES)), rule=st.sampled_from(RULES))
def test_micro_batches_give_the_answer_of_one_batch(micro: int, family: str, rule: str) -> None:
    check_accumulation(family, [LORA, merges(merge_every=2, rule=rule)], micro, FLOAT64_IDENTITY)


def test_what_changes_is_saved_and_trained_is_lora_only() -> None:
    model = make("nanogpt")
    chain = attach(model, {**LORA, "targets": ["c_attn", "lm_head"]}, merges(merge_every=1))
    embedding = model.wte.weight.detach().clone()
    assert sum(p.numel() for p in chain.trainable().values()) == 2 * 2 * (16 + 48) + 2 * (16 + 40)
    start = snapshot(model)
    train(model, chain, adamw(chain), [batch("nanogpt", 4, seed) for seed in range(2)])
    moved = {name for name, tensor in snapshot(model).items() if not torch.equal(tensor, start[name])}
    assert moved <= set(chain.changed())
    assert "lm_head.base.weight" in moved
    BIT_EXACT.check(model.wte.weight.detach(), embedding)  # its tied head has a weight of its own


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["alpha_merge"], r"alpha_merge: merges LoRA's term, so lora stands in front of it, as in lora\+alpha_merge"),
        (["alpha_merge", "lora"], "alpha_merge: merges LoRA's term"),
        (["nf4", LORA, "alpha_merge"], "alpha_merge: merges into the base while training, and nf4 stores"),
    ],
)
def test_refuses(parts: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attach(make("gpt2").float(), *parts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merge_fraction": 1.1}, "merge_fraction: 1.1 is out of range, allowed: 0 to 1"),
        ({"merge_fraction": -0.1}, "merge_fraction: -0.1 is out of range"),
        ({"merge_every": 0}, "merge_every"),
        ({"rule": "half"}, "rule"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AlphaMerge(**options)
