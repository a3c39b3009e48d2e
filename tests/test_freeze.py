"""What `make freeze` keeps of a laptop-scale run, and what it writes of it into the README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lowrank.errors import ConfigError, IntegrityError
from lowrank.report.overview import overview
from lowrank.report.style import svg
from tests.doc_pages import ROOT, script

TOOK = {"jobs": 3, "planned": 4, "wall_s": 120.0, "cpu_s": 90.0, "peak_bytes": 2**30}


class TestFreeze:
    freeze = script("freeze")

    def test_the_readme_shows_what_is_frozen(self) -> None:
        text = (ROOT / "README.md").read_text()
        assert self.freeze.MARKED.search(text), "the README has no markers"
        assert self.freeze.show(text) == text, "run `make freeze`: the README's results are not those of docs/frozen"

    def test_the_picture_is_of_what_is_frozen(self) -> None:
        drawn = svg(overview(self.freeze.counts(self.freeze.FROZEN)))
        assert (self.freeze.FROZEN / "verdicts.svg").read_text() == drawn, "run `make freeze`"

    @pytest.fixture
    def results(self, tmp_path: Path) -> Path:
        folder = tmp_path / "results" / "lr_ratio"
        folder.mkdir(parents=True)
        for name in self.freeze.outputs("lr_ratio"):
            (folder / name).write_text(name)
        head = "arm,run,data_title,model_title,device,commit\n"
        (folder / "runs.csv").write_text(f"{head}full,a,Topics,MiniLM,cpu,abc\nlora,b,Topics,MiniLM,cpu,abc\n")
        self.write_claims(folder, scale="laptop", runs={"planned": 2, "ok": 2})
        return folder.parent

    def write_claims(self, folder: Path, **record: Any) -> None:
        numbers = {
            "id": "n",
            "claim": None,
            "published": 1.0,
            "verdict": "not comparable",
            "cause": "",
            "table": "fig1",
        }
        sentence = {"id": "C1", "claim": "C1", "published": "A | B", "verdict": "reproduced", "cause": "long " * 60}
        sentence["table"] = "fig3"
        caveat = {**sentence, "id": "caveat", "claim": "caveat", "table": None}
        counts = {"reproduced": 2, "differs": 0, "not comparable": 1}
        split = {"measured": 1, "computed": 1}  # of the two that are reproduced, as the study's tables were built
        entries = {"counts": counts, "reproduced": split, "entries": [numbers, sentence, caveat]}
        (folder / "claims.json").write_text(
            json.dumps({"study": "lr_ratio", "cost": {"disk_bytes": 2**20}, **entries, **record})
        )

    def test_laptop_results_are_copied_and_shown(self, results: Path, tmp_path: Path) -> None:
        frozen = tmp_path / "frozen"
        (frozen / "lr_ratio").mkdir(parents=True)
        (frozen / "lr_ratio" / "gone.csv").write_text("of an older study")
        self.freeze.freeze("lr_ratio", results, frozen, TOOK)
        copied = {path.name for path in (frozen / "lr_ratio").iterdir()}
        assert {"fig1.csv", "fig1.svg", "fig1.png", "fig3_ratio.png", "claims.json", "facts.json"} <= copied
        assert not copied & {"gone.csv", "fig1.html"}
        facts = json.loads((frozen / "lr_ratio" / "facts.json").read_text())
        assert {key: facts[key] for key in ("scale", "runs", "commit")} == {
            "scale": "laptop",
            "runs": 2,
            "commit": ["abc"],
        }
        page = "before\n<!-- frozen:lr_ratio fig1 -->\nold\n<!-- /frozen -->\nafter\n"
        picture, cost = (f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in ("picture", "cost"))
        said = "2 reproduced (1 measured, 1 computed), 1 not comparable."
        assert f"3 published numbers and sentences at laptop scale: {said}" in self.freeze.show(picture, frozen)
        rows = self.freeze.show(cost, frozen).splitlines()
        assert "| `lr_ratio` | laptop | 2 | 3 of 4 | 2 min 0 s | 1 min 30 s | 1.0 GiB | 1.0 MiB |" in rows
        assert "| `velora` | laptop | – | – | – | – | – | – |" in rows
        assert "| `velora` | paper, predicted | – | – | – | – | – | – |" in rows
        sizes = {"runs": 9, "packs": 2, "gpu_hours": 1.5, "peak_bytes": 2**30, "disk_bytes": 2**20}
        known = {"smoke": {"lr_ratio": {"runs": 7, "took": {**TOOK, "disk_bytes": 2**20}}}, "gpu": "A100 80 GB"}
        (frozen / self.freeze.COSTS).write_text(json.dumps({**known, "paper": {"lr_ratio": sizes}}))
        rows = self.freeze.show(cost, frozen).splitlines()
        assert "| `lr_ratio` | smoke | 7 | 3 of 4 | 2 min 0 s | 1 min 30 s | 1.0 GiB | 1.0 MiB |" in rows
        assert "| `lr_ratio` | paper, predicted | 9 | 2 | 1.5 GPU hours | – | 1.0 GiB | 1.0 MiB |" in rows
        written = self.freeze.show(page, frozen)
        assert written.startswith("before\n")
        assert written.endswith("<!-- /frozen -->\nafter\n")
        assert "old" not in written
        assert 'src="docs/frozen/lr_ratio/fig1.png"' in written
        assert f"Of 3 published numbers and sentences: {said}" in written
        (row,) = [line for line in written.splitlines() if line.startswith("| C1 ")]
        assert row.startswith("| C1 | A \\| B | **reproduced** | long ")
        assert row.endswith("… |")
        assert self.freeze.show(written, frozen) == written

    @pytest.mark.parametrize(
        ("record", "message"),
        [
            ({"scale": "smoke", "runs": {"planned": 2, "ok": 2}}, "results of scale 'smoke'; allowed: laptop"),
            ({"scale": "laptop", "runs": {"planned": 3, "ok": 2, "missing": 1}}, "1 of 3 runs are missing"),
        ],
    )
    def test_other_results_are_refused(self, results: Path, tmp_path: Path, record: Any, message: str) -> None:
        self.write_claims(results / "lr_ratio", **record)
        with pytest.raises(ConfigError, match=message):
            self.freeze.freeze("lr_ratio", results, tmp_path / "frozen", TOOK)
        assert not (tmp_path / "frozen").exists()

    def test_a_study_without_results_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(IntegrityError, match="no such file"):
            self.freeze.freeze("lr_ratio", tmp_path, tmp_path / "frozen", TOOK)
