"""What a run will hold and compute: the forecast held to what torch's allocator and counters say of the real step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.measured import MeasuredRun
from lowrank.measure.flops import FlopCounter
from lowrank.measure.forecast import Forecast, forecast
from lowrank.measure.tally import Tally, flops, seconds
from lowrank.spec import RunSpec
from lowrank.train.schedules import schedule
from tests.training_lab import run_spec

PEAK = 0.05
"""What the issue allows between a predicted and a measured peak."""


def spec_of(chain: Any, card: str = "smoke_bert", task: str = "classification", **train: Any) -> RunSpec:
    data = {"classification": "smoke_topics", "causal_lm": "smoke_text", "masked_lm": "smoke_text"}[task]
    raw = {**run_spec(chain).dump(), "task": task, "model": {"card": card}, "data": {"card": data, "max_length": 24}}
    raw["train"] |= {"batch_size": 16, **train}
    return RunSpec.model_validate(raw)


CASES = {
    "full": spec_of("full"),
    "lora": spec_of("lora"),
    "qlora": spec_of("nf4+lora"),
    "llama": spec_of("full", "smoke_llama", "causal_lm"),
    "llama in halves": spec_of("lora", "smoke_llama", "causal_lm", micro_batch_size=8),
    "galore": spec_of(["full", {"part": "galore", "rank": 4}], "smoke_llama", "causal_lm"),
    "bf16": spec_of("lora", "smoke_llama", "causal_lm", precision="bf16"),
    "masked": spec_of("lora", task="masked_lm"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_peak_is_what_the_allocator_counts(name: str) -> None:
    spec = CASES[name]
    found = forecast(spec, 10, 1)
    run = MeasuredRun(spec)
    run.step.take()
    assert found.peak_bytes - found.kept_bytes == pytest.approx(run.peak_bytes(), rel=PEAK)
    assert found.parameters == run.step.account()["parameters"]


def test_work_is_what_the_counter_counts() -> None:
    spec = CASES["lora"]
    found, run = forecast(spec, 10, 16), MeasuredRun(spec)
    facts = run.step.account()
    assert flops(found.micro_batch) == facts["flops_forward"] + facts["flops_backward"]
    with FlopCounter() as counter, torch.no_grad():
        run.model.eval()(**{k: v for k, v in run.batch.items() if k != "labels"})
    assert flops(found.eval_batch) == counter.get_total_flops()


def test_a_step_is_its_micro_batches_and_one_update() -> None:
    """The optimizer's kernels are apart, since they run once however a batch is cut."""
    whole, halves = forecast(CASES["llama"], 10, 16), forecast(CASES["llama in halves"], 10, 16)
    assert whole.trainable_parameters > halves.trainable_parameters
    again = spec_of("full", "smoke_llama", "causal_lm", micro_batch_size=8)
    cut = forecast(again, 10, 16)
    assert cut.update == whole.update
    assert flops(cut.micro_batch) == pytest.approx(flops(whole.micro_batch) / 2, rel=0.01)
    assert cut.activation_bytes < whole.activation_bytes


def test_copies_of_weights_are_held() -> None:
    last, best = forecast(spec_of("lora"), 10, 16), forecast(spec_of("lora", select="best"), 10, 16)
    assert best.kept_bytes - last.kept_bytes == best.changed_bytes > 0
    assert best.peak_bytes - last.peak_bytes == best.changed_bytes


def test_an_untouched_base_takes_no_step() -> None:
    found = forecast(spec_of("full"), 0, 16)
    assert found.peak_bytes == found.eval_peak_bytes
    assert found.gradient_bytes == found.optimizer_bytes == 0
    assert not found.micro_batch + found.update


def test_a_forecast_is_written_and_read() -> None:
    found = forecast(CASES["lora"], 10, 16)
    assert Forecast.model_validate_json(found.model_dump_json()) == found


def test_a_part_sees_the_middle_of_a_run() -> None:
    """The dense start of contextual sparsity takes most memory, the rest of the run least time."""
    sparse = {"part": "contextual_sparsity", "channel_sparsity": 0.5}
    spec = spec_of([{"part": "lora", "rank": 2}, sparse])
    assert schedule(spec.train, 100) is not None
    whole, cut = forecast(spec_of([{"part": "lora", "rank": 2}]), 100, 16), forecast(spec, 100, 16)
    assert cut.peak_bytes >= 0.9 * whole.peak_bytes


class TestTally:
    def test_bytes_live_as_long_as_the_storage(self) -> None:
        with Tally() as tally:
            a = torch.ones(250)
            b = a.view(25, 10)
            assert tally.peak_bytes == 1000
            del a
            c = b.t()
            assert tally.peak_bytes == 1000
            del b, c
            kept: Tensor = torch.ones(500)
        assert tally.peak_bytes == 2000
        assert kept.numel() == 500

    def test_views_are_no_work(self) -> None:
        a = torch.ones(4, 4)
        with Tally([a]) as tally:
            a.view(2, 8).t().unsqueeze(0)
        assert not tally.work
        assert tally.peak_bytes == 64

    def test_a_kernel_is_bounded_by_one_of_three(self) -> None:
        work = ((1000, 10, 2), (0, 4000, 1), (1, 1, 5))
        assert flops(work) == 2005
        assert seconds(work, flops_per_s=100, bytes_per_s=1000, kernel_s=0.5) == 2 * 10 + 4 + 5 * 0.5
