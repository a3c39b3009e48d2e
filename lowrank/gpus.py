"""What the accelerators of clusters can do, by their makers' data sheets, and what of it training reaches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from lowrank.errors import ConfigError

GIB = 2**30


@dataclass(frozen=True)
class GpuFacts:
    """One kind of GPU.

    Attributes:
        name: as people call it, memory included.
        memory_gb: GiB, of which `USABLE` is for a job's tensors.
        bf16_tflops: dense bfloat16 products, 10^12 operations a second; None where it has no such units.
        fp32_tflops: float32 without TF32, which torch does not use unless it is told to, and is not told to here.
        bandwidth_gb_s: of its memory, 10^9 bytes a second.
    """

    name: str
    memory_gb: int
    bf16_tflops: float | None
    fp32_tflops: float
    bandwidth_gb_s: float


GPUS = (
    GpuFacts("A100 40 GB", 40, 312, 19.5, 1555),
    GpuFacts("A100 80 GB", 80, 312, 19.5, 2039),
    GpuFacts("H100 80 GB", 80, 989, 67, 3350),
    GpuFacts("H200 141 GB", 141, 989, 67, 4800),
    GpuFacts("L40S 48 GB", 48, 362, 91.6, 864),
    GpuFacts("A40 48 GB", 48, 149.7, 37.4, 696),
    GpuFacts("V100 32 GB", 32, None, 15.7, 900),
)
"""Source: NVIDIA's data sheets, of the SXM form where there are several, without sparsity."""

EFFICIENCY = 0.5
"""Share of the peak that products are taken to reach. An assumption; docs/gpu.md says what of it was measured."""

BANDWIDTH_EFFICIENCY = 0.7
"""Share of the bandwidth that everything else is taken to reach. An assumption too."""

KERNEL_S = 1e-5
"""Seconds that Python and torch are taken to need to start a kernel."""

USABLE = 0.92
"""Share of the memory for tensors; the rest is for the CUDA context, the libraries' workspaces and fragmentation."""


def gpu_facts(model: str | None, memory_gb: int) -> GpuFacts:
    """The GPU that a site names; one that the table does not know is taken to be as fast as an A100.

    Args:
        model: as the site spells it, such as `a100` or `nvidia_h100_80gb_hbm3`; None is an A100.
        memory_gb: of one, in GiB.
    """
    spelled = (model or "a100").lower()
    alike = [gpu for gpu in GPUS if gpu.name.split()[0].lower() in spelled]
    for gpu in alike:
        if gpu.memory_gb == memory_gb:
            return gpu
    if alike:
        return replace(alike[0], name=f"{alike[0].name.split()[0]} {memory_gb} GB", memory_gb=memory_gb)
    return replace(GPUS[1], name=f"{model} {memory_gb} GB, as fast as an A100", memory_gb=memory_gb)


def speed(gpu: GpuFacts, precision: Literal["fp32", "bf16"]) -> tuple[float, float, float]:
    """Operations a second, bytes a second and seconds a kernel that a run is taken to reach.

    Raises:
        ConfigError: bf16 on a GPU without it.
    """
    peak = gpu.bf16_tflops if precision == "bf16" else gpu.fp32_tflops
    if peak is None:
        raise ConfigError(f"{gpu.name} has no bfloat16 units; allowed: precision fp32, or a GPU from the A100 on")
    return EFFICIENCY * peak * 1e12, BANDWIDTH_EFFICIENCY * gpu.bandwidth_gb_s * 1e9, KERNEL_S
