"""Resident memory over the built model, each arm in a process of its own."""

from __future__ import annotations

import torch

from benchmarks.isolated import isolated
from benchmarks.models import Size
from benchmarks.records import ArmResult, Goal, Section, Spread
from benchmarks.sections.lora import own, peft_lora
from lowrank.measure.memory import PeakMemory

ARMS = ("full fine-tuning", "PEFT LoRA", "lora", "lora+lean")


def run(size: Size) -> Section:
    # A process that has freed memory does not give all of it back, so each arm starts afresh.
    peaks = {name: isolated(growth, name, size)[0] for name in ARMS}
    goals = tuple(
        Goal(
            id="G3",
            what=f"{name}, peak resident memory over the model, of PEFT's LoRA (D)",
            measured=Spread.exact(peaks[name] / peaks["PEFT LoRA"]),
            at_most=0.60,
        )
        for name in ("lora+lean",)
    )
    arms = tuple(ArmResult(name=name, peak_bytes=peak) for name, peak in peaks.items())
    setting = f"{size.distilbert}; float32, two steps, growth of the resident set over the built model"
    return Section(title="Peak memory", setting=setting, arms=arms, goals=goals)


def growth(name: str, size: Size) -> int:
    """Bytes that two steps of an arm add to the resident memory of this process."""
    shape = size.distilbert
    arm = (
        peft_lora(shape)
        if name == "PEFT LoRA"
        else own(shape, *{"full fine-tuning": ["full"]}.get(name, name.split("+")))
    )
    with PeakMemory(torch.device("cpu")) as peak:
        arm()
        arm()
    assert peak.rss_growth_bytes is not None
    return peak.rss_growth_bytes
