"""QLoRA beside PEFT on bitsandbytes."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.models import Arm, Build, Shape, Size, peer_arm
from benchmarks.peers import peft_model, quantise
from benchmarks.records import Goal, Section, Spread
from benchmarks.sections.lora import measure, own
from lowrank.methods.nf4_linear import Nf4Linear


def run(size: Size) -> Section:
    shape = size.distilbert
    builds: dict[str, Build] = {
        "PEFT LoRA on bitsandbytes NF4": lambda: peft_qlora(shape),
        "nf4+lora": lambda: own(shape, "nf4", "lora"),
        "lora": lambda: own(shape, "lora"),
    }
    times, _, arms = measure(builds, size.rounds)
    bits, apart = stored(shape)
    goals = (
        Goal(id="G8", what="NF4, bits a weight (D)", measured=Spread.exact(bits), at_most=4.13),
        Goal(
            id="G8",
            what="NF4, largest difference of a weight from bitsandbytes' (D)",
            measured=Spread.exact(apart),
            at_most=1e-6,
        ),
        Goal(
            id="G8",
            what="QLoRA, step, of PEFT's on bitsandbytes (D)",
            measured=times.ratio("nf4+lora", "PEFT LoRA on bitsandbytes NF4"),
            at_most=1.0,
        ),
        Goal(id="G8", what="QLoRA, step, of LoRA's (D)", measured=times.ratio("nf4+lora", "lora"), at_most=1.15),
    )
    setting = f"{shape}; float32, NF4 with double quantisation, rank 8, AdamW"
    return Section(title="QLoRA", setting=setting, arms=arms, goals=goals)


def peft_qlora(shape: Shape) -> Arm:
    import peft

    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=shape.linear)
    return peer_arm(peft_model(quantise(shape.model(), shape.linear), config), shape.batch())


def stored(shape: Shape) -> tuple[float, float]:
    """Bits that a weight takes, and the largest difference of a dequantised weight from bitsandbytes'."""
    from bitsandbytes.functional import dequantize_4bit

    ours, peers = own(shape, "nf4", "lora").model, quantise(shape.model(), shape.linear)
    layers = [(name, layer) for name, layer in ours.named_modules() if isinstance(layer, Nf4Linear)]
    numel = sum(layer.in_features * layer.out_features for _, layer in layers)
    held = sum(buffer.nbytes for _, layer in layers for buffer in layer.buffers())
    apart = 0.0
    for name, layer in layers:
        packed: Any = peers.get_submodule(name.removesuffix(".base")).weight
        theirs: torch.Tensor = dequantize_4bit(packed.data, packed.quant_state)
        apart = max(apart, (layer.dense_weight() - theirs).abs().max().item())
    return 8 * held / numel, apart
