"""The plan held to a GPU: its page shows the committed result, and what no GPU has measured is not claimed."""

from __future__ import annotations

import pytest

from benchmarks.plan_gpu import RESULT, fit, kinds
from benchmarks.plan_gpu_page import Report, markdown, verdict
from lowrank.files import read_json
from lowrank.gpus import gpu_facts
from lowrank.measure.tally import Work, seconds
from lowrank.strict import parse


@pytest.fixture(scope="module")
def committed() -> Report:
    return parse(Report, read_json(RESULT), str(RESULT))


def test_the_page_is_that_of_the_committed_result(committed: Report) -> None:
    assert RESULT.with_suffix(".md").read_text() == markdown(committed), "run `python -m benchmarks.plan_gpu --again`"


def test_every_row_is_a_kind_that_the_studies_ask_for(committed: Report) -> None:
    asked = kinds()
    assert committed.asked == len(asked)
    assert {row.kind for row in committed.rows} <= set(asked)
    assert all(row.predicted_bytes and row.predicted_s for row in committed.rows)


def test_a_run_that_does_not_fit_is_told_from_one_that_is_far_off(committed: Report) -> None:
    def told(**values: object) -> str:
        rows = (*committed.rows[:-1], committed.rows[-1].model_copy(update=values))
        return verdict(committed.model_copy(update={"rows": rows}))

    count = len(committed.rows)
    assert f"{count} of the {committed.asked} kinds of run were measured, and {count} fitted" in told()
    assert f"and {count - 1} fitted" in told(allocated_bytes=None, step_s=None)
    far = told(allocated_bytes=2 * committed.rows[-1].predicted_bytes)
    assert f"{count - 1} of {count}, 1 took more" in far


def test_the_speeds_of_a_gpu_are_found() -> None:
    """From what steps take that are bound by products, in either precision, by memory, and by the start of kernels."""
    gpu = gpu_facts("h100", 80)
    works: list[Work] = [((10**13, 10**8, 10),), ((10**8, 10**11, 10),), ((1, 1, 1000),)]

    def took(work: Work, precision: str) -> float:
        peak = 0.4 * 989e12 if precision == "bf16" else 0.75 * 67e12
        return seconds(work, peak, 0.8 * gpu.bandwidth_gb_s * 1e9, 8e-6)

    rows = [(work, precision, took(work, precision)) for work in works for precision in ("fp32", "bf16")]
    assert fit(rows, gpu) == pytest.approx((0.75, 0.4, 0.8, 8e-6))
