"""Tables, figures and verdicts of lr_ratio, built from made-up runs whose truth is known."""

import hashlib
import json

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest

from lowrank.errors import ConfigError, IntegrityError
from lowrank.report.build import build_study, verdicts
from lowrank.report.figures import lines
from lowrank.report.kinds import Lines
from lowrank.report.opened import open_study
from lowrank.report.style import SERIES, looks, svg
from lowrank.report.views import parse_views
from lowrank.study import STUDIES
from lowrank.yaml_files import read_yaml
from tests.report_runs import make_runs, spoil, write_runs

LAPTOP_PAIRS = {8: (4, 8, 32), 32: (8, 32, 64), 128: (8, 32, 128, 256)}


def views():
    return parse_views(read_yaml(STUDIES / "lr_ratio.yaml"), "lr_ratio")


def opened(folder, runs, scale):
    return open_study("lr_ratio", views(), write_runs(runs, folder), folder, scale)


def entries(folder, runs, scale):
    return {entry["id"]: entry for entry in verdicts(opened(folder, runs, scale))["entries"]}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    runs = make_runs(pairs=LAPTOP_PAIRS, long=False, noise=1e-5)
    csv = write_runs(runs, folder, folder / "runs")
    record = build_study(open_study("lr_ratio", views(), csv, folder, "laptop", runs=folder / "runs"))
    return folder, record


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    return entries(tmp_path_factory.mktemp("paper"), make_runs(noise=1e-5), "paper")


def test_everything_that_is_promised_is_written(built):
    folder, _ = built
    for name in views().outputs():
        assert (folder / name).stat().st_size > 0, name


@pytest.mark.parametrize("name", sorted(views().figures))
def test_what_is_plotted_is_what_the_csv_says(built, name):
    folder, _ = built
    view = views().figures[name]
    table = pd.read_csv(folder / f"{view.table}.csv")
    drawn = lines(open_study("lr_ratio", views(), folder / "runs.csv", folder, "laptop"), name)
    plotted = {
        line.get_gid().removeprefix("line "): line
        for line in drawn.axes[0].lines
        if str(line.get_gid()).startswith("line")
    }
    wanted = table[table["arm"] != "full"] if view.reference or "arm" in view.where else table
    groups = dict(list(wanted.groupby("rank"))) | (
        {"Full fine-tuning": table[table["arm"] == "full"]} if len(wanted) == len(table) else {}
    )
    assert sorted(plotted) == sorted(key if isinstance(key, str) else f"rank {key:g}" for key in groups)
    for key, rows in groups.items():
        line = plotted[key if isinstance(key, str) else f"rank {key:g}"]
        rows = rows.sort_values(view.x)
        np.testing.assert_allclose(line.get_xdata(), rows[view.x])
        np.testing.assert_allclose(line.get_ydata(), rows[view.y])
        low, high = drawn.axes[0].get_ylim()
        assert low < rows[view.y].min()
        assert rows[view.y].max() < high


def test_a_rank_keeps_its_colour_where_others_are_left_out(built):
    folder, _ = built
    drawn = lines(open_study("lr_ratio", views(), folder / "runs.csv", folder, "laptop"), "fig1")
    colours = {line.get_gid(): matplotlib.colors.to_hex(line.get_color()) for line in drawn.axes[0].lines}
    assert colours["line rank 128"] == SERIES[4]
    assert len({look.colour for look in looks([{"rank": 4}, {"rank": 8}, {"rank": 2}])}) == 3


def test_figures_are_byte_stable(built):
    folder, _ = built
    context = open_study("lr_ratio", views(), folder / "runs.csv", folder, "laptop")
    digest = hashlib.sha256(svg(lines(context, "fig3_ratio")).encode()).hexdigest()
    assert digest == hashlib.sha256((folder / "fig3_ratio.svg").read_bytes()).hexdigest()


def test_results_files_have_the_documents_shape(built):
    folder, _ = built
    files = sorted(folder.glob("results_*.json"))
    assert len(files) == (10 + 1) * 3
    results = json.loads((folder / "results_lora-rank8-alpha4-main-seed42.json").read_text())
    assert set(results) == {"1e-05", "3e-05", "0.0001", "0.0003", "0.001"}
    assert set(results["0.0001"]) == {"best_val_loss", "test_acc", "train_losses", "val_losses"}
    assert results["0.0001"]["train_losses"] == pytest.approx([1.3, 0.7])
    assert results["0.0001"]["val_losses"] == pytest.approx([0.9, results["0.0001"]["best_val_loss"]])


def test_truth_that_follows_the_pattern_is_reproduced(paper):
    held = {name for name, entry in paper.items() if entry["claim"] and entry["verdict"] == "reproduced"}
    assert {"C1a", "C1b", "C3", "C4b", "C6a", "C7", "C9b", "caveat"} <= held
    assert paper["output-keys"]["verdict"] == "by construction"
    # The same truth contradicts what the document says of its exceptions.
    assert paper["C0"]["verdict"] == paper["C2a"]["verdict"] == "differs"
    # A ratio one step of the grid away is left open by it.
    assert {paper[name]["verdict"] for name in ("C4a", "C5a", "C5b", "C6b")} == {"not resolved"}


def test_the_document_contradicts_itself_where_it_does(paper):
    own = {name: entry["document"]["verdict"] for name, entry in paper.items() if entry["document"]}
    assert own == {
        "C1a": "differs",
        "C1b": "differs",
        "C2a": "differs",
        "C4a": "reproduced",
        "C4b": "reproduced",
        "C5a": "reproduced",
        "C5b": "differs",
        "C6a": "reproduced",
        "C6b": "reproduced",
        "C7": "reproduced",
    }
    assert "rank 32, alpha 16" in paper["C1a"]["document"]["cause"]
    assert "rank 64, alpha 64" in paper["C1a"]["document"]["cause"]
    assert "rank 128, alpha 256" in paper["C1b"]["document"]["cause"]


def test_numbers_are_compared_at_paper_scale(paper):
    assert paper["F1-full-3e-5"]["verdict"] == "reproduced"
    assert paper["F1-full-3e-4"]["verdict"] == "differs"
    assert paper["F3R-r8-a32"]["verdict"] == "reproduced"
    assert paper["F3R-r32-a16"]["verdict"] == "not resolved", "3.33 and 10 are neighbours on the grid"
    assert paper["F1-r128-1e-3"]["verdict"] == "impossible"
    assert (paper["default-rank"]["verdict"], paper["default-lr-5e-4"]["verdict"]) == ("by construction", "not run")


def test_numbers_are_not_compared_elsewhere(built):
    _, record = built
    for entry in record["entries"]:
        if entry["kind"] == "numeric" and entry["published"] is not None:
            assert entry["verdict"] == "not comparable"
            assert "laptop" in entry["cause"]
    assert {e["id"]: e for e in record["entries"]}["F1-r8-1e-4"]["ours"] == pytest.approx(0.25, abs=0.02)
    assert sum(record["counts"].values()) == len(record["entries"])


def test_directions_are_judged_at_laptop_scale_but_for_what_was_dropped(built):
    _, record = built
    found = {entry["id"]: entry["verdict"] for entry in record["entries"]}
    assert found["C1a"] == found["C7"] == "reproduced"
    assert found["C3"] == found["C4a"] == "not run"


def test_nothing_is_judged_at_smoke_scale(tmp_path):
    found = entries(tmp_path, make_runs(pairs={8: (8, 32)}, long=False), "smoke")
    kinds = {entry["kind"]: set() for entry in found.values()}
    for entry in found.values():
        kinds[entry["kind"]].add(entry["verdict"])
    assert kinds["directional"] == {"not comparable"}
    assert kinds["numeric"] == {"not comparable", "impossible"}


def test_one_seed_resolves_nothing(tmp_path):
    found = entries(tmp_path, make_runs(seeds=(0,)), "laptop")
    for entry in found.values():
        if entry["kind"] == "directional":
            assert entry["verdict"] == "not resolved", entry["id"]
            assert "one seed" in entry["cause"]


def test_noise_is_not_mistaken_for_a_result(tmp_path):
    flat = make_runs(noise=0.05)
    found = entries(tmp_path, flat, "paper")
    assert found["C7"]["verdict"] == "not resolved"
    assert found["C2b"]["verdict"] == "not resolved"


def test_a_missing_run_stays_visible(tmp_path):
    runs = make_runs(pairs={8: (8, 32)}, long=False)
    hole = (runs["rank"] == 8) & (runs["alpha"] == 8) & (runs["lr"] == 3e-4) & (runs["seed"] == 43)
    context = opened(tmp_path, spoil(runs, hole, "missing", "not trained"), "paper")
    table = context.table("fig2")
    row = table[(table["rank"] == 8) & (table["lr"] == 3e-4)].iloc[0]
    assert (row["seeds"], row["seeds_planned"], row["status"]) == (2, 3, "partial")
    assert row["cause"] == "1 of 3 missing: not trained"
    found = {entry["id"]: entry for entry in verdicts(context)["entries"]}
    assert found["C7"]["verdict"] == "not resolved"
    assert "not trained" in found["C7"]["cause"]
    assert found["F2-r8-3e-4"]["verdict"] == "not resolved"


def test_a_report_without_a_single_run_is_still_a_report(tmp_path):
    runs = make_runs(long=False)
    runs = spoil(runs, runs["seed"] >= 0, "missing", "not trained").drop(columns=["best_val_loss", "test_accuracy"])
    context = opened(tmp_path, runs, "laptop")
    found = {entry["id"]: entry["verdict"] for entry in verdicts(context)["entries"]}
    assert found["C1a"] == "not run"
    texts = [text.get_text() for text in lines(context, "fig1").axes[0].texts]
    assert "no run has finished" in texts


def test_a_diverged_cell_is_a_cross_on_the_axis(tmp_path):
    runs = make_runs(pairs={8: (8, 32)}, long=False)
    runs = spoil(runs, (runs["rank"] == 8) & (runs["lr"] == 1e-3), "diverged", "the loss was not finite at step 3")
    context = opened(tmp_path, runs, "laptop")
    crosses = [line for line in lines(context, "fig2").axes[0].lines if line.get_gid() == "missing"]
    assert [list(line.get_xdata()) for line in crosses] == [[1e-3]]
    table = context.table("fig3")
    assert set(table[table["rank"] == 8]["edge"]) == {""}


def test_an_unknown_column_is_named(tmp_path):
    study = views()
    study.figures["fig1"] = Lines.model_validate({**study.figures["fig1"].model_dump(), "y": "best_val_los"})
    context = open_study("lr_ratio", study, write_runs(make_runs(long=False), tmp_path), tmp_path, "laptop")
    with pytest.raises(ConfigError, match=r"figures.fig1: unknown column 'best_val_los'; did you mean 'best_val_loss'"):
        lines(context, "fig1")


def test_a_run_without_its_history_is_found_out(tmp_path):
    csv = write_runs(make_runs(seeds=(0,), pairs={}, long=False), tmp_path)
    with pytest.raises(IntegrityError, match=r"history\.parquet: no such file"):
        build_study(open_study("lr_ratio", views(), csv, tmp_path, "laptop", runs=tmp_path / "runs"))


def test_coverage_says_what_was_dropped(built):
    folder, _ = built
    table = pd.read_csv(folder / "coverage.csv").set_index(["rank", "alpha", "budget"])
    assert table.loc[(16, 8, "main"), "runs"] == 0
    assert table.loc[(16, 8, "main"), "dropped"] == "1e-5 3e-5 1e-4 3e-4 1e-3"
    assert table.loc[(8, 4, "main"), "runs_ok"] == 15
    assert pd.isna(table.loc[(8, 4, "main"), "dropped"])


def test_document_curves_show_ties_within_reading(built):
    folder, _ = built
    table = pd.read_csv(folder / "document_curves.csv").set_index(["artefact", "rank"])
    assert table.loc[("004-F2", 128), "tied_lr"] == "1e-4 3e-4 1e-3"
    assert table.loc[("004-F1", 32), "best_lr"] == 3e-4
    assert table.loc[("004-F2", 8), "agrees"] == "yes"
