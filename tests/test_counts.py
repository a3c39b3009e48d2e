"""Parameters of the documents' real models, counted on the meta device, against closed forms and published numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from lowrank.methods.adapted import features
from lowrank.methods.chain import Chain
from lowrank.registry import parse_options
from lowrank.targets import select

HEAD = (768 * 768 + 768) + (768 * 2 + 2)
"""DistilBERT's pre_classifier and classifier."""


def distilbert() -> nn.Module:
    return DistilBertForSequenceClassification(DistilBertConfig(num_labels=2))


def bert() -> nn.Module:
    return BertForSequenceClassification(BertConfig(num_labels=2))


def llama(layers: int, width: int, inner: int, heads: int = 12, **more: Any) -> nn.Module:
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        **more,
    )
    return LlamaForCausalLM(config)


def teeny_tiny() -> nn.Module:
    """TeenyTinyLlama-160m: 12 layers of 768, 12 heads, inner width 3072."""
    return llama(12, 768, 3072)


def trained(build: Any, *parts: dict[str, Any] | str) -> tuple[int, int]:
    """(trainable, all of the base) after attaching on the meta device."""
    with torch.device("meta"):
        model = build()
    total = sum(parameter.numel() for parameter in model.parameters())
    chain = Chain.build([parse_options(part) for part in parts]).attach(model)
    assert all(parameter.is_meta for parameter in model.parameters())
    return sum(parameter.numel() for parameter in chain.trainable().values()), total


def lora(rank: int, *targets: str, head: str = "trained", part: str = "lora") -> dict[str, Any]:
    return {"part": part, "rank": rank, "targets": targets, "head": head}


HIRA_TARGETS = ("q_lin", "k_lin", "v_lin", "lin1", "lin2")

PUBLISHED = [
    pytest.param(distilbert, lora(8, "q_lin", "v_lin"), 739_586, id="001-N1: LoRA r 8"),
    pytest.param(distilbert, lora(8, "q_lin", "v_lin", head="frozen"), 147_456, id="001-N1: its adapters"),
    pytest.param(distilbert, "linear_probe", 592_130, id="001-N1: its head"),
    pytest.param(distilbert, lora(32, "q_lin", "v_lin"), 1_181_954, id="001-N4: what ran as HiRA"),
    pytest.param(distilbert, lora(32, *HIRA_TARGETS), 2_951_426, id="001-N4: HiRA's own targets, as LoRA"),
    pytest.param(distilbert, lora(32, *HIRA_TARGETS, part="hira"), 2_951_426, id="001-N4: HiRA's own targets"),
    pytest.param(distilbert, lora(128, "q_lin", "v_lin"), 2_951_426, id="001-N4: the same count, q,v r 128"),
    pytest.param(
        distilbert, lora(64, "q_lin", "k_lin", "v_lin", "out_lin"), 2_951_426, id="001-N4: the same count, q,k,v,o r 64"
    ),
    pytest.param(bert, lora(8, "query", "key", "value"), 443_906, id="001-N3: what ran as QLoRA"),
    pytest.param(teeny_tiny, lora(8, "all-linear"), 1_695_744, id="000: SuperReLoRA's adapters"),
]


@pytest.mark.parametrize(("build", "part", "expected"), PUBLISHED)
def test_published_counts(build: Any, part: Any, expected: int) -> None:
    assert trained(build, part)[0] == expected


@pytest.mark.parametrize(("build", "part", "expected"), PUBLISHED)
def test_quantised_base_changes_no_count(build: Any, part: Any, expected: int) -> None:
    """What trains is the same on a base in 4 bits."""
    assert trained(build, "nf4", part)[0] == expected


def test_share_of_distilbert() -> None:
    """1.0925 % of 67,694,596, in which PEFT counts the head twice: the original, and the copy that trains."""
    count, total = trained(distilbert, lora(8, "q_lin", "v_lin"))
    assert total + 147_456 + HEAD == 67_694_596
    assert f"{100 * count / 67_694_596:.4f}" == "1.0925"


@pytest.mark.parametrize(
    ("build", "millions"),
    [
        pytest.param(lambda: llama(8, 512, 1376, 8), "58.07", id="60M"),
        pytest.param(lambda: llama(12, 768, 2048), "134.1", id="130M"),
    ],
)
def test_llama_sizes(build: Any, millions: str) -> None:
    """VeLoRA's pre-training models, all of which trains."""
    count, total = trained(build, "full")
    assert count == total
    assert f"{total / 1e6:.{len(millions.split('.')[1])}f}" == millions


@pytest.mark.parametrize("rank", [1, 8, 33])
@pytest.mark.parametrize("build", [distilbert, bert, teeny_tiny])
def test_closed_form(build: Any, rank: int) -> None:
    """rank (in + out) for each target."""
    with torch.device("meta"):
        model = build()
    expected = sum(rank * sum(features(model.get_submodule(name))) for name in select(model, "all-linear"))
    assert trained(build, lora(rank, "all-linear", head="frozen"))[0] == expected
