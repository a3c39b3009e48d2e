"""What is written is read as it was: tables that are counted beside training, and tables that a page shows."""

from __future__ import annotations

import pandas as pd

from lowrank.report.build import count_study
from lowrank.report.opened import open_study, read_table
from lowrank.report.views import parse_views
from tests.report_runs import make_runs, write_runs

ROW = {"label": "LoRA", "card": "llama_65b", "chain": [{"part": "lora", "rank": 64}], "task": "causal_lm"}
COUNTS = {"kind": "counts", "title": "t", "note": "n", "bytes": False, "rows": [ROW]}
SETTINGS = {"kind": "settings", "title": "t", "note": "n", "columns": ["lr"]}


def test_a_table_comes_back_as_it_was_written(tmp_path):
    frame = pd.DataFrame({"x": [0.1 + 0.2, 1 / 3, None], "word": ["NA", "", "None"], "n": [1, 2, 3]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    found = read_table(tmp_path / "t.csv")
    assert found["x"].to_list()[:2] == frame["x"].to_list()[:2]
    assert found["x"].isna().to_list() == [False, False, True]
    assert found["word"].to_list() == ["NA", "", "None"]
    assert found["n"].to_list() == [1, 2, 3]


def test_shapes_are_counted_without_runs_and_read_with_them(tmp_path):
    views = parse_views({"tables": {"sizes": COUNTS, "set": SETTINGS}}, "s")
    assert views.counted() == ["sizes"]
    count_study("s", views, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["sizes.csv"]
    # 80 layers of 8,192 by 8,192 and 22,016 by 8,192: the factors' values would fill gigabytes, and none is drawn.
    assert read_table(tmp_path / "sizes.csv")["base_parameters"].item() > 65e9
    (tmp_path / "sizes.csv").write_text("label,trainable_parameters\nLoRA,7\n")
    csv = write_runs(make_runs(), tmp_path)
    context = open_study("lr_ratio", views, csv, tmp_path, "laptop", written=views.counted())
    assert context.table("sizes")["trainable_parameters"].item() == 7
    assert len(context.table("set")) == 1
