"""HiRA beside PEFT's, VeLoRA beside its published computation, both beside full fine-tuning."""

from __future__ import annotations

from typing import Any

from torch import nn

from benchmarks.models import Arm, Build, Shape, Size, peer_arm
from benchmarks.peers import PublishedVeloraLinear
from benchmarks.records import Goal, Section, Spread
from benchmarks.sections.lora import FLOAT, measure, own, peft_hira


def run(size: Size) -> Section:
    shape, (first, second) = size.distilbert, size.groups
    velora = {"part": "velora", "layers": ["v", "down"], "num_groups": [first, second]}
    builds: dict[str, Build] = {
        "full fine-tuning": lambda: own(shape, "full"),
        "PEFT HiRA": lambda: peft_hira(shape),
        "hira": lambda: own(shape, {"part": "hira", "rank": 8}),
        "published VeLoRA": lambda: published(shape, first, second),
        "full+velora": lambda: own(shape, "full", velora),
    }
    times, saved, arms = measure(builds, size.rounds)
    tokens = shape.examples * shape.tokens
    # v's input is saved for q and k anyway, so v only adds its numbers.
    formula = saved["full fine-tuning"] + shape.layers * tokens * FLOAT * (first + second - shape.hidden)
    full = times.ratio("full fine-tuning", "published VeLoRA").median
    operations = _operations(shape, "full", velora) / _operations(shape, "full")
    goals = (
        Goal(id="G5", what="HiRA, step, of PEFT's (D)", measured=times.ratio("hira", "PEFT HiRA"), at_most=0.65),
        Goal(
            id="G5",
            what="HiRA, step, of full fine-tuning's (D)",
            measured=times.ratio("hira", "full fine-tuning"),
            at_most=1.03,
        ),
        Goal(
            id="G5",
            what="HiRA, saved activations, of PEFT's (D)",
            measured=Spread.exact(saved["hira"] / saved["PEFT HiRA"]),
            at_most=0.68,
        ),
        Goal(
            id="G6",
            what="VeLoRA on v and down, step, of full fine-tuning's (D)",
            measured=times.ratio("full+velora", "full fine-tuning"),
            at_most=0.95,
        ),
        Goal(
            id="G6",
            what="VeLoRA on v and down, step, of the published computation's (D)",
            measured=times.ratio("full+velora", "published VeLoRA"),
            at_most=0.65,
            note=(
                f"Full fine-tuning takes {full:.3f} of the published computation's step, and VeLoRA has "
                f"{operations:.3f} of its operations: {full * operations:.3f} at its speed."
            ),
        ),
        Goal(
            id="G6",
            what="VeLoRA on v and down, saved activations, of the formula T G a layer (D)",
            measured=Spread.exact(saved["full+velora"] / formula),
            at_most=1.02,
        ),
    )
    setting = f"{shape}; float32, HiRA of rank 8, VeLoRA with {first} and {second} groups, AdamW"
    return Section(title="HiRA and VeLoRA", setting=setting, arms=arms, goals=goals)


def _operations(shape: Shape, *parts: Any) -> int:
    facts = own(shape, *parts).one
    facts.take()  # the first step takes the vectors
    found: dict[str, int] = facts.account()
    return found["flops_forward"] + found["flops_backward"]


def published(shape: Shape, v: int, down: int) -> Arm:
    """Full fine-tuning with VeLoRA's gradient in v and down."""
    model = shape.model()
    for name, module in list(model.named_modules()):
        parent, _, leaf = name.rpartition(".")
        if leaf in ("v_lin", "lin2") and isinstance(module, nn.Linear):
            setattr(model.get_submodule(parent), leaf, PublishedVeloraLinear(module, v if leaf == "v_lin" else down))
    return peer_arm(model, shape.batch())
