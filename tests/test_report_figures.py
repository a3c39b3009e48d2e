"""Figures of the generic kinds: what is drawn is what their table holds, and a method looks the same everywhere."""

import math

import pandas as pd
import pytest

from lowrank.errors import ConfigError
from lowrank.files import write_json
from lowrank.report.style import INK, METHODS, SERIES, in_order, looks, method, place, svg
from lowrank.train.events import write_events
from tests.report_lab import SUMMARY, TUNED, runs_of, study

TEXT = {"title": "t", "caption": "c"}
COURSE = {"kind": "course", "title": "t", "note": "n", "by": ["arm"], "tag": "train_loss"}
BARS = {"kind": "bars", "table": "t", "rows": ["arm"], "x": "accuracy", "x_label": "accuracy", **TEXT}
POINTS = {"kind": "scatter", "table": "t", "x": "steps", "y": "accuracy", "series": ["arm"], "label": ["arm"], **TEXT}
POINTS |= {"x_label": "x", "y_label": "y"}
RUNS = runs_of(full=[0.9, 0.92], lora=[0.8, 0.85])


def drawn(context, name):
    """gid -> artists of a figure's axes."""
    axes = context.draw(name).axes[0]
    found: dict[str, list] = {}
    for artist in [*axes.lines, *axes.patches, *axes.collections]:
        found.setdefault(str(artist.get_gid()), []).append(artist)
    return axes, found


def texts(axes):
    named = axes.get_legend().get_texts() if axes.get_legend() else []
    return [text.get_text() for text in [*axes.texts, *named]]


def with_events(folder, runs, length=8):
    for index, run in enumerate(runs["run"]):
        history = [{"step": step, "train_loss": index + 1 / step, "lr": 0.1} for step in range(1, length + 1)]
        write_events(folder / "runs" / run / "tensorboard", history)
    return runs


def test_curves_draw_the_mean_over_seeds_of_the_event_files(tmp_path):
    runs = with_events(tmp_path, RUNS)
    figures = {"f": {"kind": "curves", "table": "c", "series": ["arm"], "y_label": "loss", **TEXT}}
    context = study(runs, tmp_path, tables={"c": COURSE}, figures=figures, arms={"lora": {"title": "LoRA"}})
    table = context.table("c")
    lora = table[table["arm"] == "lora"]
    assert list(lora["step"]) == list(range(1, 9))
    assert lora["train_loss"].to_list() == pytest.approx([2.5 + 1 / step for step in range(1, 9)])  # runs 2 and 3
    axes, found = drawn(context, "f")
    (line,) = found["line LoRA"]
    assert list(line.get_xdata()) == lora["step"].to_list()
    assert list(line.get_ydata()) == lora["train_loss"].to_list()
    band = found["band LoRA"][0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(lora["train_loss_high"].max())
    assert texts(axes) == ["full", "LoRA"]


def test_a_course_in_windows_smoothed_and_at_the_tuned_value(tmp_path):
    runs = with_events(tmp_path, runs_of(lora={1e-3: [0.9, 0.9], 1e-2: [0.1, 0.1]}))
    tables = {"t": TUNED, "c": {**COURSE, "at": "t", "window": 4, "smoothing": 0.5}}
    table = study(runs, tmp_path, tables=tables).table("c")
    means = [0.5 + sum(1 / step for step in steps) / 4 for steps in (range(1, 5), range(5, 9))]  # runs 0 and 1
    assert list(table["step"]) == [4, 8]
    assert table["train_loss"].to_list() == pytest.approx(means)
    assert table["smoothed"].to_list() == pytest.approx([means[0], (0.25 * means[0] + 0.5 * means[1]) / 0.75])


def test_a_course_names_missing_seeds_and_stops_where_one_diverged(tmp_path):
    runs = with_events(tmp_path, RUNS)
    short = runs["run"][0]
    write_events(tmp_path / "runs" / short / "tensorboard", [{"step": 1, "train_loss": 3.0}])
    runs = runs.assign(status=["diverged", "ok", "ok", "missing"])
    figures = {"f": {"kind": "curves", "table": "c", "series": ["arm"], "y_label": "loss", **TEXT}}
    context = study(runs, tmp_path, tables={"c": COURSE}, figures=figures)
    assert context.table("c").groupby("arm")["step"].max().to_dict() == {"full": 1, "lora": 8}
    axes, _ = drawn(context, "f")
    assert "lora (1 of 2 seeds)" in texts(axes)
    gone = study(runs.assign(status="missing", cause="not trained"), tmp_path, tables={"c": COURSE}, figures=figures)
    assert gone.table("c")["cause"].to_list() == ["2 of 2 missing: not trained"] * 2
    assert texts(gone.draw("f").axes[0]) == ["no run has finished"]


def test_a_tag_that_is_not_there_and_a_swept_axis_are_refused(tmp_path):
    runs = with_events(tmp_path, RUNS)
    with pytest.raises(ConfigError, match="no scalar 'train_los'; did you mean 'train_loss'"):
        study(runs, tmp_path, tables={"c": {**COURSE, "tag": "train_los"}}).table("c")
    with pytest.raises(ConfigError, match="leaves out a swept axis"):
        study(pd.concat([runs, runs], ignore_index=True), tmp_path, tables={"c": COURSE}).table("c")
    figures = {"f": {"kind": "curves", "table": "t", "series": ["arm"], "y_label": "loss", **TEXT}}
    with pytest.raises(ConfigError, match="'t' is no table of kind course"):
        study(runs, tmp_path, tables={"t": SUMMARY}, figures=figures)


def test_bars_are_as_long_as_their_values():
    runs = pd.concat([RUNS, runs_of(hira=[0.5]).assign(status="failed", cause="x", accuracy=None)], ignore_index=True)
    context = study(runs, tables={"t": SUMMARY}, figures={"f": {**BARS, "unit": 0.5}})
    axes, found = drawn(context, "f")
    wanted = context.table("t").set_index("arm")["accuracy"]
    assert found["bar full"][0].get_width() == wanted["full"] / 0.5
    assert found["bar lora"][0].get_width() == wanted["lora"] / 0.5
    assert sorted(found) == ["None", "bar full", "bar lora"]
    assert "failed" in texts(axes)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["full", "lora", "hira"]


def test_grouped_bars_and_stacks():
    both = pd.concat([RUNS.assign(data="a"), RUNS.assign(data="b", accuracy=0.1)], ignore_index=True)
    table = {**SUMMARY, "by": ["arm", "data"]}
    context = study(both, tables={"t": table}, figures={"f": {**BARS, "rows": ["data"], "series": ["arm"]}})
    _, found = drawn(context, "f")
    assert [bar.get_width() for bar in found["bar lora"]] == pytest.approx([0.825, 0.1])
    stack = {**BARS, "x": None, "stack": ["accuracy", "seeds"]}
    axes, found = drawn(study(RUNS, tables={"t": SUMMARY}, figures={"f": stack}), "f")
    first, second = found["part accuracy"][1], found["part seeds"][1]
    assert (first.get_width(), second.get_x(), second.get_width()) == pytest.approx((0.825, 0.825, 2))
    assert "2.83" in texts(axes)  # 0.825 + 2
    with pytest.raises(ConfigError, match="give x, one column, or stack"):
        study(RUNS, tables={"t": SUMMARY}, figures={"f": {**BARS, "stack": ["seeds"]}})


def test_points_lie_where_the_table_says_and_are_named():
    table = {**SUMMARY, "metrics": ["accuracy", "steps"]}
    context = study(RUNS, tables={"t": table}, figures={"f": POINTS}, arms={"lora": {"title": "LoRA"}})
    axes, found = drawn(context, "f")
    assert list(found["points LoRA"][0].get_ydata()) == [0.825]
    assert sorted(texts(axes)) == ["LoRA", "full"]


def test_labels_of_points_do_not_overlap():
    runs = runs_of(**{f"lora_{index}": [0.5 + 0.001 * index] * 2 for index in range(4)})
    table = {**SUMMARY, "metrics": ["accuracy", "steps"]}
    figure = study(runs, tables={"t": table}, figures={"f": POINTS}).draw("f")
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_pivot_turns_a_column_and_keeps_intervals_and_causes():
    both = pd.concat([RUNS.assign(data="a"), RUNS.assign(data="b")], ignore_index=True)
    gone = (both["data"] == "b") & (both["arm"] == "lora")
    both.loc[gone, ["status", "cause", "accuracy"]] = ["failed", "out of memory", None]
    pivot = {"kind": "pivot", "table": "t", "rows": ["data"], "columns": "arm", "metric": "accuracy", "title": "t"}
    tables = {"t": {**SUMMARY, "by": ["arm", "data"]}, "p": {**pivot, "note": "n"}}
    table = study(both, tables=tables).table("p").set_index("data")
    assert (table.loc["a", "full"], table.loc["a", "lora"]) == pytest.approx((0.91, 0.825))
    assert table.loc["a", "full_low"] < 0.91 < table.loc["a", "full_high"]
    assert math.isnan(table.loc["b", "lora"])
    assert "lora: 2 of 2 failed: out of memory" in table.loc["b", "cause"]
    with pytest.raises(ConfigError, match="names 2 rows of 't'"):
        study(both, tables={**tables, "p": {**pivot, "rows": ["status"], "note": "n"}}).table("p")
    compare = {"check": "compare", "table": "p", "metric": "lora", "goal": "max", "better": {}, "worse": {}}
    with pytest.raises(ConfigError, match="'p' holds means"):
        study(both, tables=tables, claims={"c": compare}).check("c")


def test_a_method_has_one_colour_and_one_place():
    one = looks([{"arm": "lora"}, {"arm": "galore"}, {"arm": "full"}])
    other = looks([{"arm": "full"}, {"arm": "galore_r8"}, {"arm": "hira"}, {"arm": "lora"}])
    assert one[0].colour == other[3].colour == METHODS["lora"]
    assert one[1].colour == other[1].colour
    assert one[2].colour == other[0].colour == INK
    assert one[2].dash != one[0].dash == one[1].dash  # a control is told apart without colour too
    arms = in_order([({"arm": arm}, 0) for arm in ("galore", "full", "lora")])
    assert [keys["arm"] for keys, _ in arms] == ["full", "lora", "galore"]
    assert place("lora_large") < place("galore") < place("unheard_of")
    assert [method(arm) for arm in ("ranks_full", "lora_full_batch", "ft_velora_nf4", "as_published")] == [
        "full", "lora", "velora", None,
    ]  # fmt: skip


def test_a_label_says_only_what_tells_series_apart():
    pair = looks([{"arm": arm, "data": "topics", "lr": lr} for arm, lr in (("lora", 0.003), ("hira", 0.012))])
    assert [look.label for look in pair] == ["lora, learning rate 3e-3", "hira, learning rate 0.012"]
    assert [look.label for look in looks([{"arm": "lora", "data": "topics"}])] == ["topics"]


def test_variants_of_one_method_differ_in_dash_and_marker_and_ranks_in_colour():
    lte = looks([{"arm": "lte_h1"}, {"arm": "lte_h4"}, {"arm": "full"}])
    assert lte[0].colour == lte[1].colour
    assert lte[0].dash != lte[1].dash
    assert lte[0].marker != lte[1].marker
    ranks = looks([{"arm": "lora", "rank": 8}, {"arm": "lora", "rank": 128}, {"arm": "full"}])
    assert [look.colour for look in ranks] == [SERIES[0], SERIES[4], INK]
    assert [look.label for look in ranks] == ["rank 8", "rank 128", "full"]


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    context = study(RUNS, tables={"t": {**SUMMARY, "metrics": ["accuracy", "steps"]}}, figures={"f": POINTS, "b": BARS})
    for name in ("f", "b"):
        assert svg(context.draw(name)) == svg(context.draw(name))


def test_records_stand_beside_their_runs(tmp_path):
    asked = {"samples": {"protocol": "generate", "options": {"samples": 2}, "arms": ["lora"]}}
    other = {"records": [{"text": "of another question"}]}
    own = {"records": [{"text": "a"}, {"text": "b"}]}
    folder = tmp_path / "runs" / str(RUNS["run"][2])
    write_json(folder / "eval" / "generate-0.json", other)
    write_json(folder / "eval" / "generate-1.json", own)
    write_json(folder / "observed" / "ranks.json", [{"step": 1, "rank": 8}])
    table = {"kind": "records", "by": ["arm"], "where": {"arm": ["lora"]}, "title": "t", "note": "n"}
    tables = {"t": {**table, "evaluation": "samples"}, "o": {**table, "observer": "ranks"}}
    context = study(RUNS, tmp_path, tables=tables, evaluations=asked)
    context.asked = {"samples": "generate-1"}
    assert context.table("t")["text"].to_list()[:2] == ["a", "b"]
    assert context.table("t")["cause"].to_list() == ["", "", "nothing recorded"]
    assert context.table("o").loc[0, ["arm", "seed", "step", "rank"]].to_list() == ["lora", 0, 1, 8]
    with pytest.raises(ConfigError, match="unknown evaluation 'sampels'"):
        study(RUNS, tables={"t": {**table, "evaluation": "sampels"}}, evaluations=asked)
