"""LLaMA 7B and 13B on one card of 80 GB: every setting that makes them fit is one of a spec, and predicted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank.cards import model_card
from lowrank.head_loss import head_loss
from lowrank.measure import predict_step
from lowrank.models.load import skeleton
from lowrank.spec import RunSpec

GB = 10**9

LORA = {"part": "lora", "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
VELORA = {"part": "velora", "layers": "vd", "num_groups": 32, "scale": 0.1}
PAGED = {"part": "paged_adamw", "bits": 8}

BYTES = (
    "parameter_bytes",
    "gradient_bytes",
    "optimizer_bytes",
    "saved_activation_bytes",
    "recomputed_activation_bytes",
)


def spec_of(card: str, *chain: Any, layers: int, checkpointed: bool = True) -> RunSpec:
    """The VeLoRA document's fine-tuning on Alpaca: 16 rows of 512 tokens."""
    return RunSpec.model_validate(
        {
            "task": "causal_lm",
            "model": {"card": card, "layers": layers, "dtype": "bfloat16", "gradient_checkpointing": checkpointed},
            "data": {"card": "alpaca", "max_length": 512},
            "chain": chain,
            "train": {"lr": 4e-4, "epochs": 3, "batch_size": 16, "precision": "bf16"},
        }
    )


def loss(model: Any, batch: Any) -> Tensor:
    """What the task computes where every token is predicted; which are, is a matter of values."""
    hidden = model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    return head_loss(hidden[:, :-1].flatten(0, 1), model.lm_head.weight, batch["labels"][:, 1:].flatten())


def of_layers(card: str, *chain: Any, layers: int, checkpointed: bool = True) -> dict[str, int]:
    spec = spec_of(card, *chain, layers=layers, checkpointed=checkpointed)
    ids = torch.zeros(spec.train.batch_size, spec.data.max_length, dtype=torch.int64)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    def build() -> nn.Module:
        return skeleton(spec.model, spec.task, 0)

    found = predict_step(build, spec.chain, batch, loss=loss, precision=spec.train.precision)
    return {name: getattr(found, name) for name in BYTES}


def of_whole(card: str, *chain: Any, checkpointed: bool = True) -> dict[str, int]:
    """The whole model from two of its layers and three: every further one takes as much, and none is computed again
    together with another."""
    two, three = (of_layers(card, *chain, layers=layers, checkpointed=checkpointed) for layers in (2, 3))
    further = int(str(model_card(card).config["num_hidden_layers"])) - 2
    return {name: two[name] + further * (three[name] - two[name]) for name in BYTES}


def test_every_further_layer_takes_as_much() -> None:
    two, three, four = (of_layers("llama_7b", {"part": "nf4"}, LORA, VELORA, PAGED, layers=n) for n in (2, 3, 4))
    assert {name: four[name] - three[name] for name in BYTES} == {name: three[name] - two[name] for name in BYTES}


@pytest.mark.parametrize(("card", "rank", "parameters"), [("llama_7b", 32, 79_953_920), ("llama_13b", 64, 250_347_520)])
def test_it_fits(card: str, rank: int, parameters: int) -> None:
    found = of_whole(card, {"part": "nf4"}, {**LORA, "rank": rank, "alpha": 16}, VELORA, PAGED)
    assert found["gradient_bytes"] == 4 * parameters
    assert 2 * parameters <= found["optimizer_bytes"] < 2.1 * parameters  # two moments of a byte each, and their scales
    assert round(sum(found.values()) / GB, 1) == {"llama_7b": 8.2, "llama_13b": 14.8}[card]  # as docs/cluster.md has it


def test_what_each_setting_is_worth() -> None:
    """13 B: the base in 4 bits instead of 16, blocks computed again, moments in 8 bits instead of 32."""
    lora = {**LORA, "rank": 64, "alpha": 16}
    least = of_whole("llama_13b", {"part": "nf4"}, lora, VELORA, PAGED)
    published = of_whole("llama_13b", lora, VELORA, checkpointed=False)
    checkpointed = of_whole("llama_13b", lora, VELORA)
    assert published["parameter_bytes"] - least["parameter_bytes"] > 18 * GB
    assert published["optimizer_bytes"] > 3.9 * least["optimizer_bytes"]
    activations = checkpointed["saved_activation_bytes"] + checkpointed["recomputed_activation_bytes"]
    assert published["saved_activation_bytes"] > 11 * activations
    assert [round(sum(found.values()) / GB, 1) for found in (published, checkpointed)] == [91.2, 35.2]
