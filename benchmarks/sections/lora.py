"""LoRA beside PEFT and full fine-tuning: time, saved bytes, dropout, merging."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.models import Arm, Build, ChainArm, Shape, Size, peer_arm
from benchmarks.paired import Times, alternate
from benchmarks.peers import peft_model
from benchmarks.records import ArmResult, Goal, Section, Spread

FLOAT = 4


def peft_lora(shape: Shape, targets: list[str] | None = None, **told: Any) -> Arm:
    import peft

    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets or shape.linear)
    model: nn.Module = shape.model(told.pop("dtype", torch.float32))
    return peer_arm(peft_model(model, config), shape.batch(), **told)


def own(shape: Shape, *parts: Any, **told: Any) -> ChainArm:
    model = shape.model(told.pop("dtype", torch.float32))
    return ChainArm(model, shape.batch(), *parts, **told)


def measure(builds: dict[str, Build], rounds: int) -> tuple[Times, dict[str, Any], tuple[ArmResult, ...]]:
    """Bytes first, then time; what was built is dropped again."""
    arms = {name: build() for name, build in builds.items()}
    for arm in arms.values():
        arm()  # the first step makes what later ones keep: moments, vectors
    saved = {name: arm.saved_bytes() for name, arm in arms.items()}
    times = alternate(arms, rounds, warm=True)
    results = tuple(
        ArmResult(name=name, step_ms=times.step_ms(name), saved_bytes=saved[name], state_bytes=arm.state_bytes())
        for name, arm in arms.items()
    )
    return times, saved, results


def peft_hira(shape: Shape) -> Arm:
    import peft

    return peer_arm(peft_model(shape.model(), peft.HiraConfig(r=8, target_modules=shape.linear)), shape.batch())


def distilbert(size: Size) -> Section:
    shape = size.distilbert
    lora, attention = {"part": "lora"}, {"part": "lora", "targets": ["q_lin", "v_lin"]}
    builds: dict[str, Build] = {
        "full fine-tuning": lambda: own(shape, "full"),
        "PEFT LoRA": lambda: peft_lora(shape),
        "lora": lambda: own(shape, lora),
        "lora+lean": lambda: own(shape, lora, "lean"),
        "lora, dropout 0.1": lambda: own(shape, {**lora, "dropout": 0.1}),
        "PEFT LoRA on q and v": lambda: peft_lora(shape, ["q_lin", "v_lin"]),
        "lora on q and v": lambda: own(shape, attention),
    }
    times, saved, arms = measure(builds, size.rounds)
    tokens = shape.examples * shape.tokens
    merge = _merge_share(shape, times)
    floor = (shape.layers * (6 * shape.width + shape.hidden)) * tokens * FLOAT
    goals = (
        Goal(
            id="G1",
            what="LoRA on all linears, step, of PEFT's (D)",
            measured=times.ratio("lora", "PEFT LoRA"),
            at_most=0.92,
        ),
        Goal(
            id="G1",
            what="LoRA on all linears, step, of full fine-tuning's (D)",
            measured=times.ratio("lora", "full fine-tuning"),
            at_most=0.75,
        ),
        Goal(
            id="G1",
            what="LoRA on q and v, step, of PEFT's (D)",
            measured=times.ratio("lora on q and v", "PEFT LoRA on q and v"),
            at_most=1.0,
        ),
        Goal(
            id="G3",
            what="lora+lean, saved activations, of PEFT's (D)",
            measured=Spread.exact(saved["lora+lean"] / saved["PEFT LoRA"]),
            at_most=0.65,
        ),
        Goal(
            id="G3",
            what="lora+lean, saved activations, of the lossless floor of 10 T d a layer (D)",
            measured=Spread.exact(saved["lora+lean"] / floor),
            at_most=1.05,
        ),
        Goal(
            id="G3",
            what="lora+lean, step, of lora's (D)",
            measured=times.ratio("lora+lean", "lora"),
            at_most=1.03,
        ),
        Goal(
            id="G4",
            what="LoRA with dropout, step, of LoRA's without (D)",
            measured=times.ratio("lora, dropout 0.1", "lora"),
            at_most=1.15,
        ),
        Goal(
            id="G4",
            what="LoRA with dropout, saved activations, of LoRA's without (D)",
            measured=Spread.exact(saved["lora, dropout 0.1"] / saved["lora"]),
            at_most=1.10,
        ),
        Goal(
            id="G12",
            what="SuperReLoRA's merge every 500 steps, of a step (D)",
            measured=merge,
            at_most=0.01,
        ),
    )
    return Section(title="LoRA", setting=f"{shape}; float32, rank 8, AdamW", arms=arms, goals=goals)


def _merge_share(shape: Shape, times: Times) -> Spread:
    """Time of one merge of all layers, over that of 500 steps."""
    arm = own(shape, {"part": "lora"}, {"part": "alpha_merge", "merge_every": 1})
    arm()
    merges = alternate({"merge": lambda: arm.chain.after_step(arm.optimizer, 1)}, 5)
    return merges.step_ms("merge").scaled(1 / (500 * times.step_ms("lora").median))


def small(size: Size) -> Section:
    shape = size.small
    builds: dict[str, Build] = {
        "full fine-tuning": lambda: own(shape, "full"),
        "PEFT LoRA": lambda: peft_lora(shape),
        "lora": lambda: own(shape, "lora"),
    }
    times, _, arms = measure(builds, 3 * size.rounds)
    goal = Goal(
        id="G1",
        what="LoRA on all linears, step, of PEFT's (S)",
        measured=times.ratio("lora", "PEFT LoRA"),
        at_most=0.92,
    )
    return Section(title="LoRA on a small model", setting=f"{shape}; float32, rank 8", arms=arms, goals=(goal,))


def llama(size: Size) -> Section:
    shape = size.llama
    builds: dict[str, Build] = {
        "PEFT LoRA": lambda: peft_lora(shape),
        "lora+lean": lambda: own(shape, "lora", "lean", task="causal_lm"),
    }
    times, saved, arms = measure(builds, size.rounds)
    goals = (
        Goal(
            id="G1",
            what="lora+lean, step, of PEFT's LoRA (L)",
            measured=times.ratio("lora+lean", "PEFT LoRA"),
            at_most=0.92,
        ),
        Goal(
            id="G3",
            what="lora+lean, saved activations, of PEFT's LoRA (L)",
            measured=Spread.exact(saved["lora+lean"] / saved["PEFT LoRA"]),
            at_most=0.50,
        ),
    )
    return Section(title="LLaMA-60M", setting=f"{shape}; float32, rank 8, AdamW", arms=arms, goals=goals)
