"""Every part and every chain that the documents name, on the GPU and on the CPU: the same losses and weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lowrank.compositions import small
from lowrank.measure import compute_device
from lowrank.spec import RunSpec
from tests.gpu.lab import CPU, CUDA_DOUBLE, CUDA_HALF, CUDA_SINGLE, DEVICE, assert_like, cuda_alone, in_double, train
from tests.test_image_runs import CHAINS as IMAGES
from tests.test_image_runs import spec_of as image_spec
from tests.test_train_resume import NAMED
from tests.training_lab import manifest, member, run_spec

PRUNE = {"part": "prune", "start": 1, "every": 2}
VARIANTS: dict[str, Any] = {
    "lora, biases and head": [{"part": "lora", "rank": 4, "bias": "all", "head": "adapted"}],
    "hira, product": [{"part": "hira", "rank": 4, "form": "product"}],
    "prune, topk": ["lora", {**PRUNE, "method": "topk"}],
    "prune, l1": ["lora", {**PRUNE, "method": "l1", "l1_lambda": 1e-3}],
    "prune, structured": ["lora", {**PRUNE, "method": "structured", "regrow": True}],
    "prune, cubic": ["lora", {**PRUNE, "schedule": "cubic", "every": 1, "end": 3}],
    "relora, magnitude": ["lora", {"part": "relora", "merge_every": 2, "optimizer_state": "magnitude"}],
    "relora, reset": ["lora", {"part": "relora", "merge_every": 2, "optimizer_state": "reset"}],
    "alpha_merge, one_factor": ["lora", {"part": "alpha_merge", "merge_every": 2, "rule": "one_factor"}],
    "mhlora, sum": [{"part": "mhlora", "num_lora_heads": 2, "rank": 4, "combine": "sum"}],
    "velora, svd": ["full", {"part": "velora", "num_groups": 4, "init": "svd"}],
    "velora, each batch": ["lora", {"part": "velora", "num_groups": 4, "init": "batch_average"}],
    "velora, random": ["lora", {"part": "velora", "num_groups": 4, "init": "random"}],
    "galore, both sides": ["full", {"part": "galore", "rank": 4, "update_gap": 2, "projector": "full"}],
    "galore, sgd": ["full", {"part": "galore", "rank": 4, "update_gap": 2, "optimizer": "sgd"}],
    "galore, identity": ["full", {"part": "galore", "rank": 4, "projector": "identity"}],
    "sparse, means": [
        "lora",
        {"part": "contextual_sparsity", "estimator_rank": 4, "dense_steps": 1, "ffn_score": "sequence_mean"},
    ],
}
CODED: dict[str, Any] = {
    "galore, 8 bit": ["full", {"part": "galore", "rank": 4, "update_gap": 2, "optimizer": "adamw8bit"}],
    "paged, 8 bit": ["full", {"part": "paged_adamw", "bits": 8}],
    "velora, float16": ["lora", {"part": "velora", "num_groups": 4, "precision": "float16"}],
    "nf4, single quantisation": [{"part": "nf4", "double_quant": False}, "lora"],
}
"""What has no form in double."""
CHAINS = {"+".join(parts): [small(part) for part in parts] for parts in NAMED} | VARIANTS
EXACT = {name: chain for name, chain in CHAINS.items() if "nf4" not in name and "paged_adamw" not in name}
ALL = CHAINS | CODED


def spec_of(chain: Any, **train: Any) -> RunSpec:
    """Padded texts, two micro-batches a step, no dropout: its masks are drawn on the device, which draws its own."""
    settings: dict[str, Any] = {
        "lr": 1e-3,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
        "schedule": "cosine",
        "warmup_steps": 1,
    }
    return run_spec(chain, dropout=0.0, steps=4, eval_every=2, micro_batch_size=8, **settings | train)


@pytest.mark.parametrize("name", EXACT)
def test_in_double_the_same_losses_and_weights(name: str) -> None:
    spec = spec_of(EXACT[name])
    with in_double():
        assert_like(spec, train(spec), train(spec, device=CPU, folder="cpu"), CUDA_DOUBLE, weigh=True)


@pytest.mark.parametrize("name", ALL)
def test_in_single_precision_the_same_losses(name: str) -> None:
    spec = spec_of(ALL[name])
    assert_like(spec, train(spec), train(spec, device=CPU, folder="cpu"), CUDA_SINGLE)


@pytest.mark.parametrize("name", ["+".join(parts) for parts in NAMED])
def test_under_autocast_about_the_same_losses(name: str) -> None:
    spec = spec_of(CHAINS[name], precision="bf16")
    assert_like(spec, train(spec), train(spec, device=CPU, folder="cpu"), CUDA_HALF)


@pytest.mark.parametrize("model", ["smoke_llama", "smoke_gpt"])
@pytest.mark.parametrize("chain", ["full", "lora"])
def test_language_models(model: str, chain: str) -> None:
    """The loss is taken from hidden states, and prompts are not learned."""
    spec = RunSpec.model_validate(
        {
            "task": "causal_lm",
            "model": {"card": model, "dropout": 0.0},
            "data": {"card": "smoke_instructions", "max_length": 32, "train_rows": 40, "train_on_inputs": False},
            "chain": chain,
            "train": {"lr": 1e-3, "batch_size": 8, "micro_batch_size": 4, "steps": 4, "eval_every": 2},
        }
    )
    with in_double():
        assert_like(spec, train(spec), train(spec, device=CPU, folder="cpu"), CUDA_DOUBLE, weigh=True)


def test_hidden_tokens() -> None:
    """A masked language model; which tokens are hidden is drawn on the CPU."""
    spec = RunSpec.model_validate(
        {
            "task": "masked_lm",
            "model": {"card": "smoke_bert", "dropout": 0.0},
            "data": {"card": "smoke_topics", "max_length": 16, "train_rows": 40, "validation_rows": 16},
            "chain": "full",
            "train": {"lr": 1e-3, "batch_size": 16, "steps": 4, "eval_every": 2},
        }
    )
    with in_double():
        assert_like(spec, train(spec), train(spec, device=CPU, folder="cpu"), CUDA_DOUBLE, weigh=True)


@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str) -> None:
    """Pixels are in single precision, and a convolution reads them."""
    spec = image_spec(IMAGES[name], lr=1e-3, eval_every=1)
    assert_like(spec, train(spec), train(spec, device=CPU, folder="cpu"), CUDA_SINGLE)


DROPOUTS: dict[str, Any] = {
    "lora's": ([{"part": "lora", "dropout": 0.3}], 0.0),
    "the base's": ("lora", 0.1),
    "both, and sub-tokens": ([{"part": "lora", "dropout": 0.3}, {"part": "velora", "num_groups": 4}], 0.1),
}


@pytest.mark.parametrize("name", DROPOUTS)
def test_dropout_is_drawn_on_the_device_and_learns_about_the_same(name: str) -> None:
    """Masks of the two devices differ, so only what they do on average is compared."""
    chain, dropout = DROPOUTS[name]
    spec = run_spec(chain, dropout=dropout, lr=1e-3, steps=6, eval_every=3)
    assert_like(spec, train(spec), train(spec, folder="again"), CUDA_DOUBLE, weigh=True)
    ours, theirs = train(spec), train(spec, device=CPU, folder="cpu")
    assert abs(last_val(spec, ours) - last_val(spec, theirs)) < 0.1 * last_val(spec, theirs)


def last_val(spec: RunSpec, runs: Any) -> float:
    return float(manifest(member(spec).run, runs)["metrics"]["last_val_loss"])


@cuda_alone
def test_single_precision_is_not_rounded_to_tf32() -> None:
    """TF32 keeps 10 bits, so a product of 512 terms in it is off by about 1e-3; a convolution too."""
    assert compute_device() == DEVICE
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(512, 512, generator=generator) for _ in range(2))
    image, kernel = torch.randn(4, 16, 32, 32, generator=generator), torch.randn(8, 16, 4, 4, generator=generator)
    for ours, exact in (
        (x.to(DEVICE) @ w.to(DEVICE), x.double() @ w.double()),
        (
            torch.nn.functional.conv2d(image.to(DEVICE), kernel.to(DEVICE), stride=4),
            torch.nn.functional.conv2d(image.double(), kernel.double(), stride=4),
        ),
    ):
        assert (ours.double().cpu() - exact).abs().max() < 1e-5 * exact.abs().max()
