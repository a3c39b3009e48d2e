"""Memory over the built model: resident, each arm in a process of its own; on a GPU what its allocator holds."""

from __future__ import annotations

import torch

from benchmarks.device import device, on_gpu
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
            what=f"{name}, peak memory over the model, of PEFT's LoRA (D)",
            measured=Spread.exact(peaks[name] / peaks["PEFT LoRA"]),
            at_most=0.60,
        )
        for name in ("lora+lean",)
    )
    arms = tuple(ArmResult(name=name, peak_bytes=peak) for name, peak in peaks.items())
    of = "what the GPU's allocator holds" if on_gpu() else "the resident set"
    setting = f"{size.distilbert}; float32, two steps, growth of {of} over the built model"
    return Section(title="Peak memory", setting=setting, arms=arms, goals=goals)


def growth(name: str, size: Size) -> int:
    """Bytes that two steps of an arm add to the memory of this process, or of its GPU."""
    shape = size.distilbert
    arm = (
        peft_lora(shape)
        if name == "PEFT LoRA"
        else own(shape, *{"full fine-tuning": ["full"]}.get(name, name.split("+")))
    )
    built = torch.cuda.memory_allocated() if on_gpu() else 0
    with PeakMemory(device()) as peak:
        arm()
        arm()
    found = peak.rss_growth_bytes if peak.cuda_bytes is None else peak.cuda_bytes - built
    assert found is not None
    return found
