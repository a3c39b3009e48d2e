"""Accounting of a step: closed forms, and prediction held to measurement."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from lowrank import registry
from lowrank.errors import ConfigError
from lowrank.measure import (
    Accounting,
    PeakMemory,
    measure_step,
    model_loss,
    predict_step,
)
from lowrank.methods.bnb import dynamic_map
from lowrank.methods.chain import Chain
from lowrank.spec import TrainSpec
from tests import tiny_models
from tests.tiny_models import FAMILIES, TOKENS, WIDTH
from tests.tolerances import SAVED_BYTES

B = 8
TRAIN = TrainSpec(lr=1e-3, steps=1)
EXACT = [
    "parameters",
    "trainable_parameters",
    "parameter_bytes",
    "gradient_bytes",
    "optimizer_bytes",
    "flops_forward",
    "flops_backward",
]

# What a part needs on models of this size; every other option keeps its default.
NEEDED: dict[str, dict[str, Any]] = {
    "contextual_sparsity": {"dense_steps": 0, "dense_tokens": "none"},
    "galore": {"rank": 4},
    "hira": {"rank": 4},
    "low_rank": {"rank": 4},
    "prune": {"start": 1},
    "velora": {"num_groups": 8},
}


def batch_for(family: str, hidden: int = 0) -> dict[str, torch.Tensor]:
    """Eight examples; of the first, the last `hidden` tokens are masked."""
    batch = tiny_models.batch(family, B)
    if family == "vit":
        return {**batch, "pixel_values": batch["pixel_values"].float()}
    if family == "nanogpt":
        return batch
    mask = torch.ones_like(batch["input_ids"])
    mask[0, TOKENS - hidden :] = 0
    return {**batch, "attention_mask": mask}


def entries(*chain: Any) -> list[Any]:
    return [registry.parse_options(entry) for entry in chain]


def measured(family: str, options: list[Any], batch: dict[str, torch.Tensor], **told: Any) -> Accounting:
    torch.manual_seed(0)
    model = FAMILIES[family]().train()
    chain = Chain.build(options).attach(model)
    return measure_step(model, chain, chain.optimizer(TRAIN), batch, steps=1, **told)


def hold_together(found: Accounting, predicted: Accounting) -> None:
    assert {key: getattr(predicted, key) for key in EXACT} == {key: getattr(found, key) for key in EXACT}
    assert predicted.saved_activation_bytes == pytest.approx(found.saved_activation_bytes, rel=SAVED_BYTES.relative)
    assert (found.origin, predicted.origin) == ("measured", "predicted")
    assert found.step_time_s is not None
    assert found.step_time_s > 0
    assert predicted.step_time_s is predicted.peak_rss_bytes is predicted.cuda_peak_bytes is None


@pytest.mark.parametrize("chain", [["full"], ["lora"]], ids=lambda chain: ".".join(chain))
@pytest.mark.parametrize("family", FAMILIES)
def test_prediction_is_the_measurement_for_every_family(family: str, chain: list[str]) -> None:
    options, batch = entries(*chain), batch_for(family)
    hold_together(measured(family, options, batch), predict_step(FAMILIES[family], options, batch))


def accepted(family: str, part: str) -> list[Any] | None:
    """The shortest chain with this part that the family accepts, or None."""
    entry = {"part": part, **NEEDED.get(part, {})}
    for chain in ([entry], ["full", entry], ["lora", entry], [entry, "lora"]):
        with contextlib.suppress(ConfigError):
            Chain.build(entries(*chain)).attach(FAMILIES[family]())
            return entries(*chain)
    return None


@pytest.mark.parametrize("part", registry.parts())
def test_prediction_is_the_measurement_for_every_part(part: str) -> None:
    found = ((family, accepted(family, part)) for family in FAMILIES)
    family, options = next(((family, chain) for family, chain in found if chain is not None), (None, None))
    assert family is not None, f"no chain with {part} attaches: if it needs an option here, name it in NEEDED"
    assert options is not None
    batch = batch_for(family)
    hold_together(measured(family, options, batch), predict_step(FAMILIES[family], options, batch))


@pytest.mark.parametrize("hidden", [0, 2])
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"nanogpt"}))
def test_a_sparse_step_is_predicted_from_the_labels_and_the_mask(family: str, hidden: int) -> None:
    options, batch = entries("lora", {"part": "contextual_sparsity", "dense_steps": 0}), batch_for(family, hidden)
    if batch["labels"].ndim == 2:
        batch["labels"] = batch["labels"].masked_fill(torch.arange(TOKENS) < 2, -100)
    hold_together(measured(family, options, batch), predict_step(FAMILIES[family], options, batch))


def test_which_tokens_are_dense_is_not_guessed() -> None:
    options = entries("lora", {"part": "contextual_sparsity", "dense_steps": 0})
    batch = {key: value.to("meta") for key, value in batch_for("llama").items()}
    with pytest.raises(
        ConfigError, match=r"its step depends on values .* does not have; measure it, or give the batch"
    ):
        predict_step(FAMILIES["llama"], options, batch)


@pytest.mark.parametrize(
    "parts", [[{"part": "paged_adamw", "bits": 8}], [{"part": "galore", "rank": 40, "optimizer": "adamw8bit"}]]
)
def test_moments_of_8_bits_are_predicted(parts: list[Any]) -> None:
    """Of tensors above and below the 4096 elements from which they are coded, and of blocks that are not full."""
    shape = {"dim": 64, "n_layers": 1, "n_heads": 2, "hidden_dim": 130, "vocab_size": 70}
    config = DistilBertConfig(**shape, max_position_embeddings=8, num_labels=3)
    options, batch = entries("full", *parts), batch_for("distilbert")

    def build() -> nn.Module:
        return DistilBertForSequenceClassification(config)

    chain = Chain.build(options).attach(model := build().train())
    found = measure_step(model, chain, chain.optimizer(TRAIN), batch, steps=1)
    hold_together(found, predict_step(build, options, batch))
    assert found.optimizer_bytes < 0.6 * 8 * found.trainable_parameters


@pytest.mark.slow
@pytest.mark.parametrize("part", registry.parts())
@pytest.mark.parametrize("family", FAMILIES)
def test_prediction_is_the_measurement_for_every_part_and_family(family: str, part: str) -> None:
    options, batch = accepted(family, part), batch_for(family)
    if options is not None:
        hold_together(measured(family, options, batch), predict_step(FAMILIES[family], options, batch))


def test_a_prediction_caches_real_tables() -> None:
    options, batch = entries("nf4", "lora"), batch_for("bert")
    dynamic_map.cache_clear()  # as in a fresh process, where the prediction asks for the table first
    predicted = predict_step(FAMILIES["bert"], options, batch)
    assert not isinstance(dynamic_map(torch.device("cpu")), FakeTensor)
    hold_together(measured("bert", options, batch), predicted)


@pytest.mark.parametrize(("hidden", "precision"), [(0, "fp32"), (3, "fp32"), (3, "bf16")])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_prediction_follows_mask_and_precision(family: str, hidden: int, precision: Any) -> None:
    options, batch = entries({"part": "lora", "dropout": 0.1}), batch_for(family, hidden)
    found = measured(family, options, batch, precision=precision)
    hold_together(found, predict_step(FAMILIES[family], options, batch, precision=precision))


def test_a_mask_without_values_is_one_that_hides_something() -> None:
    options, batch = entries("full"), batch_for("bert", hidden=3)
    shapes = {key: value.to("meta") for key, value in batch.items()}
    assert predict_step(FAMILIES["bert"], options, shapes) == predict_step(FAMILIES["bert"], options, batch)
    unmasked = predict_step(FAMILIES["bert"], options, batch_for("bert"))
    assert unmasked.saved_activation_bytes < predict_step(FAMILIES["bert"], options, shapes).saved_activation_bytes


def test_a_step_that_depends_on_values_cannot_be_predicted() -> None:
    def peeking(model: nn.Module, batch: Any) -> torch.Tensor:
        loss = model_loss(model, batch)
        return loss if loss.item() > 0 else -loss

    with pytest.raises(ConfigError, match="chain full: its step depends on values"):
        predict_step(FAMILIES["bert"], entries("full"), batch_for("bert"), loss=peeking)


def test_prediction_of_a_real_size_allocates_nothing() -> None:
    config = DistilBertConfig(dim=768, n_layers=6, n_heads=12, hidden_dim=3072, vocab_size=30522)
    batch = {"input_ids": (16, 64), "attention_mask": (16, 64), "labels": (16,)}
    shapes = {key: torch.empty(size, dtype=torch.int64, device="meta") for key, size in batch.items()}
    with PeakMemory() as peak:
        predicted = predict_step(lambda: DistilBertForSequenceClassification(config), entries("full"), shapes)
    assert predicted.parameters == 66_955_010
    assert predicted.gradient_bytes == 4 * 66_955_010
    moments = 2 * 4 * 66_955_010
    assert moments < predicted.optimizer_bytes < moments + 1024  # and one step counter for each tensor
    tokens, layers, width = 16 * 64, 6, 768
    products = layers * 12 * width**2 * tokens + 16 * (width**2 + 2 * width)
    attention = layers * 2 * 64 * width * tokens
    assert predicted.flops_forward == 2 * (products + attention)
    if peak.rss_growth_bytes is not None:
        assert peak.rss_growth_bytes < 4 * 66_955_010


def test_frozen_weights_cost_no_gradient_and_no_state() -> None:
    batch = batch_for("bert")
    full, probe = (measured("bert", entries(part), batch) for part in ("full", "linear_probe"))
    assert probe.parameters == full.parameters == full.trainable_parameters
    assert probe.trainable_parameters == 3 * WIDTH + 3
    assert probe.gradient_bytes == 4 * probe.trainable_parameters
    assert probe.optimizer_bytes == 2 * 4 * probe.trainable_parameters + 2 * 4
    assert probe.saved_activation_bytes < 0.2 * full.saved_activation_bytes
    assert probe.flops_forward == full.flops_forward
    assert probe.flops_backward == 2 * B * WIDTH * 3


def test_parts_are_told_the_number_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int]] = []
    model = FAMILIES["bert"]().train()
    chain = Chain.build(entries("full")).attach(model)
    monkeypatch.setattr(chain, "before_step", lambda batches, step: told.append(("before_step", step)))
    monkeypatch.setattr(chain, "before_forward", lambda batch, step: told.append(("before_forward", step)))
    monkeypatch.setattr(chain, "after_step", lambda optimizer, step: told.append(("after_step", step)))
    measure_step(model, chain, chain.optimizer(TRAIN), batch_for("bert"), steps=1, first_step=7)
    hooks = ["before_step", "before_forward", "after_step"]
    assert told == [(hook, 7 + taken + (hook == "after_step")) for taken in range(3) for hook in hooks]


def test_importing_the_counters_loads_no_model_library() -> None:
    code = "import sys, lowrank.measure; print([m for m in ('transformers', 'bitsandbytes') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
