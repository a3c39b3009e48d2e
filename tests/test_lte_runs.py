"""LTE: parameter counts of the document, resume, accumulation, saving, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from lowrank.errors import ConfigError
from lowrank.methods.lte import Lte
from lowrank.spec import TrainSpec
from tests.chain_runs import attach, check_accumulation, check_resume, logits, snapshot, train
from tests.tiny_models import FAMILIES, batch, make
from tests.tolerances import BFLOAT16_LOSS, BIT_EXACT, FLOAT64_IDENTITY

GPT2_SMALL = GPT2Config(vocab_size=50304, n_positions=512)  # the document's nanoGPT: 12 layers, 768 wide, tied head


@pytest.mark.parametrize(
    ("targets", "heads", "rank", "millions"),
    [
        (("attn.c_attn", "attn.c_proj"), 1, 4, 95.955),
        (("attn.c_attn", "attn.c_proj"), 1, 64, 99.273),
        (("attn.c_attn", "attn.c_proj"), 4, 4, 96.619),
        (("attn.c_attn", "attn.c_proj"), 4, 64, 109.890),
        (("attn.c_attn", "attn.c_proj", "lm_head"), 4, 1, 96.160),
    ],
)
def test_counts_of_the_document(targets: tuple[str, ...], heads: int, rank: int, millions: float) -> None:
    """What its figures 6 and 7 count: all that trains, with the adapted weights and biases frozen, the rest not."""
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2_SMALL)
    whole = sum(p.numel() for p in model.parameters())
    assert round(whole / 1e6, 3) == 124.083
    chain = attach(model, {"part": "lte", "num_lora_heads": heads, "rank": rank, "targets": targets, "rest": "trained"})
    shapes = [(768, 2304), (768, 768)] * 12
    heads_only = sum(heads * rank * (i + o) for i, o in [*shapes, *([(768, 50304)] if "lm_head" in targets else [])])
    frozen = sum(i * o + o for i, o in shapes)
    counted = sum(p.numel() for p in chain.trainable().values())
    assert counted == whole - frozen + heads_only  # the embedding goes on training when its tied head is adapted
    assert round(counted / 1e6, 3) == millions


def test_refuses_a_batch_that_heads_do_not_divide() -> None:
    model = make("gpt2")
    chain = attach(model, {"part": "lte", "rank": 2, "num_lora_heads": 4})
    with pytest.raises(
        ConfigError, match=r"step 7 has micro-batches of \[4, 2\] examples, and 4 heads do not divide 2"
    ):
        chain.before_step([batch("gpt2", 4), batch("gpt2", 2)], 7)
    with pytest.raises(ConfigError, match=r"4 heads do not divide the 6 examples of an input of shape \(6, 6, 16\)"):
        model(**batch("gpt2", 6))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            [{"part": "lte", "rank": 17, "targets": "c_attn"}],
            r"lte: rank 17 is too large for '.*c_attn'; allowed: 1 to 16",
        ),
        (["nf4", {"part": "lte", "rank": 2}], "lte: merges into the base while training, and nf4 stores"),
        ([{"part": "lte", "rank": 2, "targets": "wte"}], r"'transformer.wte', which is a Embedding; allowed: linear"),
        (["lte", "lte"], "'lte' stands in it twice"),
    ],
)
def test_refuses(parts: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attach(make("gpt2").float(), *parts)


@pytest.mark.parametrize("wrong", [{"num_lora_heads": 0}, {"alpha": 0}, {"merge_every": 0}, {"rank": -1}])
def test_refuses_options_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Lte(**wrong)


def test_refuses_a_second_attach() -> None:
    model = make("gpt2")
    attach(model, {"part": "lte", "rank": 2})
    with pytest.raises(ConfigError, match="attached already"):
        attach(model, {"part": "lte", "rank": 2})


@pytest.mark.parametrize("family", ["gpt2", "vit"])
def test_resumes_bit_exact(family: str) -> None:
    check_resume(family, [{"part": "lte", "rank": 2, "merge_every": 3, "rest": "trained"}])


@settings(max_examples=6)
@given(micro=st.sampled_from([2, 4, 6]), family=st.sampled_from(sorted(FAMILIES)))
def test_micro_batches_give_the_answer_of_one_batch(micro: int, family: str) -> None:
    check_accumulation(
        family, [{"part": "lte", "rank": 2, "num_lora_heads": 2, "merge_every": 2}], micro, FLOAT64_IDENTITY
    )


def test_saved_tensors_are_what_evaluation_needs() -> None:
    model, inputs = make("gpt2"), batch("gpt2", 3)
    parts = [{"part": "lte", "rank": 2, "merge_every": 2}]
    chain = attach(model, *parts)
    start = snapshot(model)
    train(model, chain, torch.optim.SGD(chain.trainable().values(), lr=0.5), [batch("gpt2", 4, s) for s in range(3)])
    moved = {name for name, tensor in snapshot(model).items() if not torch.equal(tensor, start[name])}
    assert moved <= set(chain.changed())
    again = make("gpt2")
    fresh = attach(again, *parts)
    fresh.load_changed(chain.changed())
    BIT_EXACT.check(logits(fresh, inputs), logits(chain, inputs))


@pytest.mark.parametrize("family", ["gpt2", "nanogpt"])
def test_a_tied_head_gets_its_own_weight(family: str) -> None:
    model = make(family)
    head, embedding = (
        model.lm_head,
        model.get_parameter("wte.weight" if family == "nanogpt" else "transformer.wte.weight"),
    )
    before = embedding.detach().clone()
    assert head.weight is embedding
    chain = attach(model, {"part": "lte", "rank": 2, "merge_every": 1, "targets": "lm_head"})
    train(model, chain, torch.optim.SGD(chain.trainable().values(), lr=0.5), [batch(family, 4)] * 2)
    BIT_EXACT.check(embedding.detach(), before)
    assert not torch.equal(model.lm_head.base.weight, before)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", ["lte", "mhlora"])
def test_trains_under_autocast(family: str, part: str) -> None:
    model = make(family)
    chain = attach(model, {"part": part, "rank": 2})
    model.float().train()
    inputs = {k: v.float() if v.is_floating_point() else v for k, v in batch(family, 8).items()}
    exact = model(**inputs).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**inputs).loss
    BFLOAT16_LOSS.check(loss, exact)
    loss.backward()
    for name, parameter in chain.trainable().items():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.any() or name.endswith("lora_A"), name


def test_galore_drives_the_heads() -> None:
    model = make("gpt2").float()
    chain = attach(model, {"part": "lte", "rank": 4, "merge_every": 2}, {"part": "galore", "rank": 2})
    model.float()
    optimizer = chain.optimizer(TrainSpec(lr=1e-2, steps=4))
    start = snapshot(model)
    train(model, chain, optimizer, [batch("gpt2", 8, seed) for seed in range(4)])
    still = {name for name, tensor in snapshot(model).items() if torch.equal(tensor, start[name])}
    assert not {name for name in still if "lte" in name or name.endswith("c_attn.base.weight")}


def test_velora_keeps_the_input_of_summed_heads_and_refuses_parallel_ones() -> None:
    velora = {"part": "velora", "layers": "c_attn", "num_groups": 4}
    with pytest.raises(ConfigError, match="no adapter whose gradient needs its input"):
        attach(make("gpt2"), {"part": "lte", "rank": 2}, velora)
    model = make("gpt2")
    chain = attach(model, {"part": "mhlora", "rank": 2}, velora)
    train(model, chain, torch.optim.SGD(chain.trainable().values(), lr=0.1), [batch("gpt2", 4, s) for s in range(3)])
