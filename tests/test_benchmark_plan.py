"""The benchmark of the plan: its page and the docs show the committed result, and what is missed is shown so."""

from __future__ import annotations

from itertools import pairwise

import pytest

from benchmarks.plan import RESULT, Report, calibrate, markdown, verdict
from lowrank.files import REPOSITORY, read_json
from lowrank.measure.tally import Work, seconds
from lowrank.strict import parse

CLUSTER = REPOSITORY / "docs" / "cluster.md"


@pytest.fixture(scope="module")
def committed() -> Report:
    return parse(Report, read_json(RESULT), str(RESULT))


def test_page_and_docs_are_those_of_the_committed_result(committed: Report) -> None:
    assert RESULT.with_suffix(".md").read_text() == markdown(committed), "run `python -m benchmarks.plan`"
    assert verdict(committed) in " ".join(CLUSTER.read_text().split())


def test_a_missed_prediction_is_shown_as_missed(committed: Report) -> None:
    def changed(**values: float) -> str:
        rows = (*committed.rows[:-1], committed.rows[-1].model_copy(update=values))
        return markdown(committed.model_copy(update={"rows": rows})).splitlines()[-1]

    last = committed.rows[-1]
    exact = {"predicted_bytes": last.allocator_bytes, "predicted_s": last.measured_s.median}
    assert "missed" not in changed(**exact)
    assert "missed" in changed(**exact | {"predicted_bytes": int(1.06 * last.allocator_bytes)})
    assert "missed" in changed(**exact | {"predicted_s": 1.21 * last.measured_s.median})


def test_the_speeds_of_a_machine_are_found() -> None:
    """From what three steps take on a made-up machine: one bound by products, one by memory, one by kernels' starts."""
    machine = 1e11, 1e10, 1e-5
    works: list[Work] = [((10**9, 10**6, 10),), ((10**6, 10**9, 10),), ((1, 1, 1000),)]
    found = calibrate([(work, seconds(work, *machine)) for work in works])
    assert found == pytest.approx(machine, rel=0.2)
    assert all(a > b for a, b in pairwise(found))
