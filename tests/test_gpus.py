"""GPUs by name and memory, and the speeds that training is taken to reach on them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lowrank.errors import ConfigError
from lowrank.gpus import GPUS, gpu_facts, speed
from lowrank.site import EXAMPLE, Gpu, read_site


@pytest.mark.parametrize(
    ("model", "memory", "name"),
    [
        (None, 80, "A100 80 GB"),
        ("a100", 40, "A100 40 GB"),
        ("nvidia_a100-sxm4-80gb", 80, "A100 80 GB"),
        ("h100", 80, "H100 80 GB"),
        ("NVIDIA_H200", 141, "H200 141 GB"),
        ("v100", 32, "V100 32 GB"),
    ],
)
def test_a_site_names_a_gpu(model: str | None, memory: int, name: str) -> None:
    assert gpu_facts(model, memory).name == name


def test_memory_is_what_the_site_says() -> None:
    assert gpu_facts("a100", 24) == replace(GPUS[0], name="A100 24 GB", memory_gb=24)


def test_a_gpu_that_is_not_known_is_taken_for_an_a100() -> None:
    found = gpu_facts("mi300x", 192)
    assert found == replace(GPUS[1], name="mi300x 192 GB, as fast as an A100", memory_gb=192)


def test_a_site_that_says_nothing_and_the_example_have_figures() -> None:
    for gpu in (Gpu(), read_site({"LOWRANK_SITE": str(EXAMPLE)}).gpu):
        assert gpu_facts(gpu.model, gpu.memory_gb).memory_gb == 80


def test_bf16_is_faster_and_not_everywhere() -> None:
    for gpu in GPUS:
        if gpu.bf16_tflops is None:
            with pytest.raises(ConfigError, match=f"{gpu.name} has no bfloat16 units; allowed: precision fp32"):
                speed(gpu, "bf16")
        else:
            assert speed(gpu, "bf16")[0] > 2 * speed(gpu, "fp32")[0]
        assert speed(gpu, "fp32")[0] < gpu.fp32_tflops * 1e12
