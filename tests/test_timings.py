"""Where the time went, from Snakemake's benchmark files."""

from __future__ import annotations

from pathlib import Path

from lowrank.report.timings import of_study, timings

HEAD = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
PLAN = {
    "studies": {"one": {}, "two": {}},
    "packs": {
        "lora-1-0": {"name": "lora-1-0", "owners": ["one"], "data": "topics-1", "evaluations": {"test-1": "other-1"}},
        "full-2-0": {"name": "full-2-0", "owners": ["two", "one"], "data": "topics-1", "evaluations": {}},
    },
}


def write(folder: Path, name: str, wall: float, cpu: str, rss: str) -> None:
    file = folder / f"{name}.tsv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{HEAD}{wall}\t0:00:01\t{rss}\t0\t0\t0\t0\t0\t0\t{cpu}\n")


def test_each_rule_and_study_and_the_sum(tmp_path: Path) -> None:
    write(tmp_path, "train/lora-1-0", 10.0, "8.0", "100")
    write(tmp_path, "train/full-2-0", 30.0, "20.0", "50")
    write(tmp_path, "evaluate/lora-1-0-test-1", 5.0, "4.0", "10")
    write(tmp_path, "prepare/topics-1", 2.0, "1.5", "20")
    write(tmp_path, "prepare/other-1", 1.0, "NA", "NA")
    write(tmp_path, "train/old-3-0", 0.5, "0.5", "1")
    rows = timings(PLAN, tmp_path)
    assert [(row["rule"], row["studies"], row["jobs"], row["wall_s"], row["cpu_s"]) for row in rows] == [
        ("train", "one, two", 1, 30.0, 20.0),
        ("train", "one", 1, 10.0, 8.0),
        ("evaluate", "one", 1, 5.0, 4.0),
        ("prepare", "one, two", 1, 2.0, 1.5),
        ("prepare", "one", 1, 1.0, None),
        ("train", "none of this plan", 1, 0.5, 0.5),
        ("all", "", 6, 48.5, 34.0),
    ]
    assert rows[-1]["peak_bytes"] == 100 * 2**20
    assert rows[4]["peak_bytes"] is None


def test_a_studys_jobs_are_summed_and_counted(tmp_path: Path) -> None:
    write(tmp_path, "train/lora-1-0", 10.0, "8.0", "100")
    write(tmp_path, "train/full-2-0", 30.0, "20.0", "50")
    write(tmp_path, "tables/one", 1.0, "1.0", "70")
    write(tmp_path, "train/old-3-0", 0.5, "0.5", "1")
    plan = {**PLAN, "packs": {name: {**pack, "keep_weights": True} for name, pack in PLAN["packs"].items()}}
    assert of_study(plan, tmp_path, "one") == {
        "jobs": 3, "wall_s": 41.0, "cpu_s": 29.0, "peak_bytes": 100 * 2**20,
        "planned": 2 + 1 + 2 + 2,  # packs, an evaluation, prepared data, tables and page
    }  # fmt: skip
    assert of_study(plan, tmp_path, "two")["jobs"] == 1


def test_nothing_where_nothing_was_run(tmp_path: Path) -> None:
    assert timings(PLAN, tmp_path / "none") == []
