"""What computes, and what the numbers were taken on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

_CPUINFO = Path("/proc/cpuinfo")


def compute_device() -> torch.device:
    """Where this process trains and scores: its accelerator, or the CPU.

    There, single precision is single precision: torch would let convolutions round to TF32's 10 bits.
    """
    # Not torch's newer names for the same: after those, whoever asks by the old one gets an error.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_facts() -> dict[str, str | int | bool | None]:
    """The machine, for the manifest: times and memory are compared only where these agree.

    Returns:
        `platform`, `cpu_model`, `cores` (usable by this process), `torch_threads`, `torch_version`,
        `amx_bf16` (None where the CPU's flags cannot be read), `gpu` (None without CUDA).
    """
    cpu = _cpuinfo()
    flags = cpu.get("flags") or cpu.get("Features")
    return {
        "platform": platform.platform(),
        "cpu_model": cpu.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "torch_version": torch.__version__,
        "amx_bf16": None if flags is None else "amx_bf16" in flags.split(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cpuinfo() -> dict[str, str]:
    """The first processor's entry of /proc/cpuinfo; empty where there is none."""
    if not _CPUINFO.exists():
        return {}
    entry = _CPUINFO.read_text().split("\n\n")[0]
    pairs = (line.split(":", 1) for line in entry.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}
