"""LoRA on a base in bfloat16, beside PEFT in its two usual settings; only where the CPU multiplies bfloat16."""

from __future__ import annotations

import torch

from benchmarks.models import Arm, Build, Shape, Size, peer_arm
from benchmarks.paired import alternate
from benchmarks.products import six_products
from benchmarks.records import Goal, Section
from benchmarks.sections.lora import measure, own, peft_lora


def run(size: Size) -> Section:
    shape, half = size.distilbert, torch.bfloat16
    builds: dict[str, Build] = {
        "full fine-tuning": lambda: own(shape, "full", dtype=half),
        "PEFT LoRA": lambda: peft_lora(shape, dtype=half),
        "lora": lambda: own(shape, "lora", dtype=half),
        "PEFT LoRA under autocast": lambda: peft_lora(shape, dtype=half, autocast=True),
        "lora under autocast": lambda: own(shape, "lora", dtype=half, autocast=True),
        "no adapters, under autocast": lambda: frozen(shape),
    }
    times, _, arms = measure(builds, size.rounds)
    floor = times.ratio("no adapters, under autocast", "PEFT LoRA under autocast").median
    layers = shape.layers * [
        *4 * [(shape.width, shape.width)],
        (shape.width, shape.hidden),
        (shape.hidden, shape.width),
    ]
    products = alternate({"": six_products(layers, shape.examples * shape.tokens, 8, half)}, 5).step_ms("")
    share = products.median / times.step_ms("PEFT LoRA under autocast").median
    goals = (
        Goal(
            id="G2", what="LoRA, step, of PEFT's (D, bfloat16)", measured=times.ratio("lora", "PEFT LoRA"), at_most=0.72
        ),
        Goal(
            id="G2",
            what="LoRA, step, of PEFT's (D, bfloat16 under autocast)",
            measured=times.ratio("lora under autocast", "PEFT LoRA under autocast"),
            at_most=0.82,
            note=(
                f"The frozen model alone, with a backward pass and no adapters, takes {floor:.3f} of PEFT's step, and "
                f"the products of the adapters' factors by themselves {share:.3f}: {floor + share:.3f} together."
            ),
        ),
        Goal(
            id="G2",
            what="LoRA, step, of full fine-tuning's (D, bfloat16)",
            measured=times.ratio("lora", "full fine-tuning"),
            at_most=0.85,
        ),
    )
    setting = f"{shape}; base in bfloat16, adapters in float32, rank 8, AdamW"
    return Section(title="LoRA in bfloat16", setting=setting, arms=arms, goals=goals)


def frozen(shape: Shape) -> Arm:
    """What every adapter pays: both passes through the frozen trunk, in which nothing trains but the first norm."""
    model = shape.model(torch.bfloat16).requires_grad_(False)
    model.get_submodule("distilbert.embeddings.LayerNorm").requires_grad_(True)
    return peer_arm(model, shape.batch(), autocast=True)
