"""The report is built from whatever exists; here, from nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowrank import jobs
from lowrank.files import read_json
from lowrank.planning import make_plan
from lowrank.study import studies


@pytest.mark.slow
@pytest.mark.parametrize("study", studies())
def test_a_study_without_a_single_run_has_its_tables(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = make_plan("smoke", [study])
    jobs.tables(plan, study)
    claims = read_json(tmp_path / "results" / "studies" / study / "claims.json")
    asked = [point for point in plan["studies"][study]["runs"] if not plan["runs"][point["run"]]["extended"]]
    assert claims["runs"]["planned"] == claims["runs"]["missing"] == len(asked)
    assert "reproduced" not in {entry["verdict"] for entry in claims["entries"] if entry["kind"] == "directional"}
