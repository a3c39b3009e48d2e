"""Memory and operations of a step on the GPU, beside what was predicted for it; `pytest -s` prints both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank.cards import data_card
from lowrank.measure import Accounting, PeakMemory, let_go, measure_step
from lowrank.measure.forecast import Forecast, forecast
from lowrank.measure.tally import flops
from lowrank.methods.chain import Chain
from lowrank.models.load import skeleton
from lowrank.spec import RunSpec
from lowrank.tasks import Batch, task
from tests.gpu.lab import DEVICE, cuda_alone
from tests.training_lab import run_spec

pytestmark = cuda_alone

MIB = 1 << 20
PEAK = (0.7, 1.4)
"""Measured over predicted: a forecast counts kernels that a CPU chooses, and libraries keep memory to work in."""
WORKSPACE = 64 * MIB
"""What cuBLAS and its like hold at most, which no forecast counts."""


def spec_of(chain: Any, card: str, kind: str, rows: int, length: int, **train: Any) -> RunSpec:
    data = {"classification": "smoke_topics", "causal_lm": "smoke_text"}[kind]
    raw = {
        **run_spec(chain).dump(),
        "task": kind,
        "model": {"card": card},
        "data": {"card": data, "max_length": length},
    }
    raw["train"] |= {"batch_size": rows, **train}
    return RunSpec.model_validate(raw)


GALORE = {"part": "galore", "rank": 128, "update_gap": 200}
CASES = {
    "full": spec_of("full", "llama_60m", "causal_lm", 16, 256),
    "full, bf16": spec_of("full", "llama_60m", "causal_lm", 16, 256, precision="bf16"),
    "galore": spec_of(["full", GALORE], "llama_60m", "causal_lm", 16, 256),
    "velora": spec_of(["full", {"part": "velora", "num_groups": 32}], "llama_60m", "causal_lm", 16, 256),
    "lora": spec_of("lora", "distilbert", "classification", 32, 128),
    "hira": spec_of("hira", "distilbert", "classification", 32, 128),
    "qlora": spec_of("nf4+lora", "distilbert", "classification", 32, 128),
    "lean": spec_of(["lora", "lean"], "distilbert", "classification", 32, 128),
}


def measured(spec: RunSpec) -> Accounting:
    """Steps on the device, of a model with random weights, beside nothing else."""
    let_go()
    labels = len(data_card(spec.data.card).labels)
    shapes: Any = skeleton(spec.model, spec.task, labels)
    torch.manual_seed(0)
    model: nn.Module = type(shapes)(shapes.config).to(DEVICE).train()
    chain, asked = Chain.build(spec.chain).attach(model), task(spec.task)
    optimizer = chain.optimizer(spec.train)
    chain.schedule(spec.train, 10)
    ids = torch.randint(5, 50, (spec.train.batch_size, spec.data.max_length))
    labelled = ids if spec.task == "causal_lm" else torch.randint(labels, (len(ids),))
    units = asked.units({"labels": labelled})
    batch = {"input_ids": ids.to(DEVICE), "labels": labelled.to(DEVICE)}

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return asked.loss(model, batch) / units

    return measure_step(model, chain, optimizer, batch, loss=loss, precision=spec.train.precision)


@pytest.mark.parametrize("name", CASES)
def test_a_step_takes_what_was_forecast(name: str) -> None:
    before = torch.cuda.memory_allocated()
    found, expected = measured(CASES[name]), forecast(CASES[name], 10, 1)
    assert found.device == "cuda"
    assert found.cuda_peak_bytes is not None
    peak, forecast_peak = found.cuda_peak_bytes - before, expected.peak_bytes - expected.kept_bytes
    show(name, found, expected, peak)
    assert found.parameter_bytes == pytest.approx(expected.parameter_bytes, rel=1e-5)  # a buffer that was shared is not
    assert found.gradient_bytes == expected.gradient_bytes
    assert found.optimizer_bytes == pytest.approx(expected.optimizer_bytes, rel=0.01)
    assert found.flops_forward + found.flops_backward == pytest.approx(flops(expected.micro_batch), rel=0.01)
    assert peak >= found.parameter_bytes + found.gradient_bytes + found.optimizer_bytes
    assert PEAK[0] * forecast_peak < peak < PEAK[1] * forecast_peak + WORKSPACE


def show(name: str, found: Accounting, expected: Forecast, peak: int) -> None:
    planned = expected.peak_bytes - expected.kept_bytes
    print(
        f"\n{name}: peak {peak / MIB:.1f} MiB, forecast {planned / MIB:.1f} MiB, ratio {peak / planned:.3f}; "
        f"saved {found.saved_activation_bytes / MIB:.1f} MiB; optimizer {found.optimizer_bytes / MIB:.1f} MiB, "
        f"forecast {expected.optimizer_bytes / MIB:.1f}; step {1000 * (found.step_time_s or 0):.2f} ms"
    )


def test_the_peak_is_what_was_allocated() -> None:
    """Within the block alone, and counted from what lay there before."""
    let_go()
    kept = torch.empty(8 * MIB, dtype=torch.uint8, device=DEVICE)
    before = torch.cuda.memory_allocated()
    torch.empty(64 * MIB, dtype=torch.uint8, device=DEVICE)
    with PeakMemory(DEVICE) as peak:
        torch.empty(32 * MIB, dtype=torch.uint8, device=DEVICE)
        torch.empty(16 * MIB, dtype=torch.uint8, device=DEVICE)
    assert peak.cuda_bytes == before + 32 * MIB
    assert PeakMemory().cuda_bytes is None
    assert kept.numel() == 8 * MIB
