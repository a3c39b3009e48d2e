"""ReLoRA: what a merge keeps, what it draws anew, what becomes of the moments, the jagged schedule."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lowrank.errors import ConfigError
from lowrank.methods.adapted import AdaptedLinear, adapted, dense_weight
from lowrank.methods.chain import Chain
from lowrank.methods.relora import ReLora
from lowrank.spec import TrainSpec
from lowrank.train.schedules import schedule
from tests.chain_runs import attach, check_accumulation, check_resume, logits, snapshot, train
from tests.tiny_models import FAMILIES, batch, make
from tests.tolerances import BIT_EXACT, FLOAT64_IDENTITY, MERGE

LORA = {"part": "lora", "rank": 2, "alpha": 8.0, "head": "frozen"}


def relora(**options: Any) -> dict[str, Any]:
    return {"part": "relora", **options}


def adamw(chain: Chain) -> torch.optim.Optimizer:
    return torch.optim.AdamW(chain.trainable().values(), lr=1e-2)


def factors(layer: AdaptedLinear) -> Any:
    return layer.adapters["lora"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merge_keeps_the_function_and_starts_afresh(family: str) -> None:
    model, inputs = make(family), batch(family, 4)
    chain = attach(model, LORA, relora(merge_every=3))
    optimizer = adamw(chain)
    train(model, chain, optimizer, [batch(family, 4, seed) for seed in range(2)])
    old_A = {name: factors(layer).lora_A.detach().clone() for name, layer in adapted(model)}
    seen = logits(chain, inputs)
    chain.after_step(optimizer, 3)
    FLOAT64_IDENTITY.check(logits(chain, inputs), seen)
    drawn = set()
    for name, layer in adapted(model):
        adapter = factors(layer)
        assert not adapter.lora_B.any()
        assert not torch.equal(adapter.lora_A, old_A[name])
        assert adapter.lora_A.abs().max() <= layer.in_features**-0.5
        drawn.add(adapter.lora_A[0, 0].item())
    assert len(drawn) == len(old_A)  # each layer draws its own
    train(model, chain, optimizer, [inputs], first=3)
    assert all(factors(layer).lora_B.any() for _, layer in adapted(model))  # the adapters go on learning


def test_k_merges_give_rank_k_r_at_most_and_as_a_rule() -> None:
    model = make("llama")
    start = {
        name: dense_weight(module).clone() for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    chain = attach(model, LORA, relora(merge_every=2))
    optimizer = adamw(chain)
    for merges in (1, 2, 3):
        train(model, chain, optimizer, [batch("llama", 4, s) for s in range(2)], first=2 * merges - 2)
        for name, layer in adapted(model):
            rank = torch.linalg.matrix_rank(layer.weight - start[name], rtol=1e-9)
            assert rank == min(2 * merges, *layer.weight.shape), name


def test_before_the_first_merge_it_is_lora_bit_for_bit() -> None:
    ends = []
    for parts in ([LORA], [LORA, relora(merge_every=5)]):
        model = make("gpt2")
        chain = attach(model, *parts)
        train(model, chain, adamw(chain), [batch("gpt2", 4, seed) for seed in range(4)])
        ends.append(snapshot(model))
    for name, tensor in ends[0].items():
        BIT_EXACT.check(ends[1][name], tensor)


def test_a_merge_gives_the_weight_that_a_peer_gives() -> None:
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["c_attn"], fan_in_fan_out=True)
    peer = peft.get_peft_model(make("gpt2").float(), config)
    model = make("gpt2")
    chain = attach(model, {**LORA, "targets": "c_attn"}, relora(merge_every=1))
    model.float()
    for name, parameter in chain.trainable().items():
        nn.init.normal_(parameter, std=0.1)
        peer.get_parameter(f"base_model.model.{name.replace('.adapters.lora', '')}.default.weight").data.copy_(
            parameter
        )
    chain.after_step(adamw(chain), 1)
    merged = peer.merge_and_unload()
    for name, layer in adapted(model):
        MERGE.check(layer.weight, dense_weight(merged.get_submodule(name)))


def moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> list[Tensor]:
    return [optimizer.state[parameter][key] for key in ("exp_avg", "exp_avg_sq")]


def pruned(rank: int = 16, **options: Any) -> list[tuple[Tensor, Tensor]]:
    """Every moment of A and B before and after a merge."""
    model = make("gpt2")
    chain = attach(model, {**LORA, "rank": rank}, relora(merge_every=3, **options))
    optimizer = adamw(chain)
    train(model, chain, optimizer, [batch("gpt2", 4, seed) for seed in range(2)])
    parameters = list(chain.trainable().values())
    before = [moment.clone() for p in parameters for moment in moments(optimizer, p)]
    chain.after_step(optimizer, 3)
    assert all(optimizer.state[p]["step"] == 2 for p in parameters)
    return list(zip(before, [moment for p in parameters for moment in moments(optimizer, p)], strict=True))


def test_random_pruning_keeps_the_drawn_share() -> None:
    pairs = pruned(optimizer_state="random", prune_fraction=0.75)
    kept, total = 0, 0
    for before, after in pairs:
        BIT_EXACT.check(after[after != 0], before[after != 0])
        kept, total = kept + int((after != 0).sum()), total + before.numel()
    assert abs(kept / total - 0.25) < 0.02  # 5 standard deviations of 16,384 draws
    published = pruned(optimizer_state="random")
    assert 0 < sum(int((after != 0).sum()) for _, after in published) < 0.003 * total


@pytest.mark.parametrize(("fraction", "kept"), [(None, 0.1), (0.5, 0.5)])
def test_magnitude_pruning_keeps_the_largest(fraction: float | None, kept: float) -> None:
    for before, after in pruned(optimizer_state="magnitude", prune_fraction=fraction):
        stays = after != 0
        assert abs(stays.sum() - kept * before.numel()) <= 1
        BIT_EXACT.check(after[stays], before[stays])
        assert before[stays].abs().min() > before[~stays].abs().max()


def test_reset_and_keep() -> None:
    assert not any(after.any() for _, after in pruned(optimizer_state="reset"))
    for before, after in pruned(optimizer_state="keep"):
        BIT_EXACT.check(after, before)


def test_works_with_an_optimizer_that_has_no_state() -> None:
    model = make("gpt2")
    chain = attach(model, LORA, relora(merge_every=1))
    optimizer = torch.optim.SGD(chain.trainable().values(), lr=0.1)
    train(model, chain, optimizer, [batch("gpt2", 4)])
    assert not optimizer.state_dict()["state"]  # looking for moments has left no empty entries


@given(warmup=st.integers(0, 5), every=st.integers(6, 12), restart=st.integers(0, 5), floor=st.sampled_from([0.0, 0.1]))
def test_schedule_restarts_with_the_adapters(warmup: int, every: int, restart: int, floor: float) -> None:
    part = ReLora(merge_every=every, restart_warmup_steps=restart)
    settings = {"lr": 1e-3, "warmup_steps": warmup, "min_lr_fraction": floor, "steps": 40}
    train_spec = TrainSpec(schedule="jagged_cosine", cycle_steps=every, **settings)
    factor, cosine = part.schedule(train_spec, 40), schedule(TrainSpec(schedule="cosine", **settings), 40)
    assert factor is not None
    for step in range(40):
        since = step % every
        ramp = (since + 1) / restart if step >= every and since < restart else 1.0
        assert factor(step) == pytest.approx(cosine(step) * ramp, rel=1e-12)
    if warmup == restart:  # then it is the loop's own jagged cosine
        loops = schedule(train_spec, 40)
        assert [factor(step) for step in range(40)] == pytest.approx([loops(step) for step in range(40)], rel=1e-12)


def test_schedule_is_left_to_the_loop_unless_it_is_jagged() -> None:
    assert ReLora().schedule(TrainSpec(lr=1e-3, steps=10, schedule="cosine"), 10) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merge_every": 200}, "cycle_steps 100 is not merge_every 200"),
        ({"merge_every": 100, "restart_warmup_steps": 100}, "restart_warmup_steps 100 does not end; allowed: 0 to 99"),
    ],
)
def test_schedule_refuses(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReLora(**options).schedule(TrainSpec(lr=1e-3, steps=10, schedule="jagged_cosine", cycle_steps=100), 10)


@pytest.mark.parametrize("how", ["random", "magnitude"])
def test_resumes_bit_exact(how: str) -> None:
    check_resume("gpt2", [LORA, relora(merge_every=3, optimizer_state=how, prune_fraction=0.5)])


@settings(max_examples=6)
@given(micro=st.integers(1, 7), family=st.sampled_from(sorted(FAMILIES)))
def test_micro_batches_give_the_answer_of_one_batch(micro: int, family: str) -> None:
    check_accumulation(family, [LORA, relora(merge_every=2)], micro, FLOAT64_IDENTITY)


def test_what_changes_is_saved_and_trained_is_lora_only() -> None:
    model = make("nanogpt")
    chain = attach(model, {**LORA, "targets": ["c_attn", "lm_head"]}, relora(merge_every=1))
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
        (["relora"], r"relora: merges LoRA's term, so lora stands in front of it, as in lora\+relora"),
        (["relora", "lora"], r"relora: merges LoRA's term, so lora stands in front"),
        (["nf4", LORA, "relora"], "relora: merges into the base while training, and nf4 stores"),
        (["full", "relora"], "relora: merges LoRA's term"),
    ],
)
def test_refuses(parts: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attach(make("gpt2").float(), *parts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merge_every": 0}, "merge_every"),
        ({"prune_fraction": 1.0}, "prune_fraction"),
        ({"prune_fraction": 0.5, "optimizer_state": "reset"}, "has no meaning with optimizer_state 'reset'"),
        ({"optimizer_state": "prune"}, "optimizer_state"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReLora(**options)
