"""SparseLoRA: what it refuses, and what it leaves dense."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaForSequenceClassification

from lowrank.errors import ConfigError
from lowrank.methods.sparse_tokens import Plan
from tests.chain_runs import attach, logits
from tests.test_contextual_sparsity import lora, prompted, sparse, step_gradients
from tests.tiny_models import NanoGPT, make
from tests.tolerances import FLOAT64_IDENTITY


def test_a_step_that_has_no_context_is_refused() -> None:
    model = make("gpt2")
    chain = attach(model, lora("gpt2"), sparse())
    inputs = prompted("gpt2", 3)
    inputs["labels"] = inputs["input_ids"]
    with pytest.raises(ConfigError, match=r"every token of the batch is an output token.*dense_tokens: none"):
        step_gradients(model, chain, inputs)
    with pytest.raises(ConfigError, match=r"the batch has no labels.*found input_ids"):
        chain.before_forward({"input_ids": inputs["input_ids"]}, 0)
    chain = attach(make("gpt2"), lora("gpt2"), {"part": "contextual_sparsity"})
    with pytest.raises(ConfigError, match=r"dense_fraction 0.05 is a share of a run whose length was not said"):
        chain.before_forward(inputs, 0)


def test_a_model_that_is_called_outside_the_loop_is_dense() -> None:
    model, plain = make("bert"), make("bert")
    chain, peer = attach(model, lora("bert"), sparse()), attach(plain, lora("bert"))
    inputs = prompted("bert", 3)
    chain.before_forward(inputs, 0)
    model.eval()
    FLOAT64_IDENTITY.check(model(**inputs).logits, logits(peer, inputs))


@pytest.mark.parametrize(
    ("family", "parts", "message"),
    [
        ("bert", [sparse()], r"chain contextual_sparsity has no adapters in front of it"),
        ("bert", ["full", sparse()], r"chain full.contextual_sparsity has no adapters in front of it"),
        ("bert", [sparse(), lora("bert")], r"has no adapters in front of it"),
        ("bert", [lora("bert"), "alpha_merge", sparse()], r"alpha_merge changes the base while it trains"),
        ("bert", [lora("bert", "all"), {"part": "velora", "num_groups": 4}, sparse()], r"velora in front of it would"),
        ("bert", [{"part": "lte", "rank": 2}, sparse()], r"lte changes the base while it trains"),
        ("bert", [{"part": "hira", "rank": 2}, sparse()], r"another part computes the base product of 'bert.encoder"),
        ("bert", [{**lora("bert"), "rest": "trained"}, sparse()], r"weight of 'bert.*intermediate.dense' trains"),
        ("bert", [lora("bert"), sparse(estimator_rank=17)], r"rank 17 is too large for '.*query'; allowed: 1 to 16"),
        ("llama", [lora("llama"), sparse(estimator_rank=9)], r"rank 9 is too large for '.*k_proj'; allowed: 1 to 8"),
        ("bert", [lora("bert"), sparse(rules=[{"first": 2, "ffn": 0.5}])], r"names layers 2 to 1; allowed: 0 to 1"),
        ("bert", [lora("bert"), sparse(rules=[{"last": 2}])], r"names layers 0 to 2; allowed: 0 to 1"),
        ("bert", [lora("bert"), sparse(channel_sparsity=1.0)], r"1.0 is out of range"),
        ("bert", [lora("bert"), sparse(rules=[{"fnn": 0.5}])], r"fnn"),
    ],
)
def test_refuses(family: str, parts: list[Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        attach(make(family), *parts)


def test_refuses_models_it_does_not_know() -> None:
    with pytest.raises(ConfigError, match=r"NanoGPT is of no family .*allowed: the transformers models bert, distil"):
        attach(NanoGPT(), {"part": "lora", "rank": 2}, sparse())
    model: Any = make("bert")
    model.config.chunk_size_feed_forward = 2
    with pytest.raises(ConfigError, match=r"chunk_size_feed_forward 2 .*allowed: 0"):
        attach(model, lora("bert"), sparse())


@pytest.mark.parametrize("kind", ["mask", "no mask"])
def test_a_decoder_that_classifies_reads_its_last_token(kind: str) -> None:
    """So that token is dense: the last that is no padding, on whichever side the padding stands."""
    real = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 1, 1, 1]])
    batch = {"labels": torch.zeros(3, dtype=torch.int64)} | ({"attention_mask": real} if kind == "mask" else {})
    split = Plan(batch, "output", "last").split(torch.zeros(3, 4, 2))
    last = [2, 7, 11] if kind == "mask" else [3, 7, 11]
    assert split.order[split.context :].tolist() == last
    assert split.scored.tolist() == [
        token for token in range(12) if token not in last and (kind != "mask" or real.flatten()[token])
    ]


def test_a_llama_that_classifies() -> None:
    torch.manual_seed(0)
    config = make("llama").config
    config.num_labels, config.pad_token_id = 3, 0
    model = LlamaForSequenceClassification(config).double()
    chain = attach(model, lora("llama"), sparse())
    tokens = torch.randint(1, 40, (3, 6))
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": torch.tensor([0, 1, 2])}
    found = step_gradients(model, chain, inputs)
    assert all(tensor.isfinite().all() for tensor in found.values())
    part: Any = chain["contextual_sparsity"]
    assert part._now.plan.split(torch.zeros(3, 6, 1)).outputs == 3
