"""Tables that no run enters: counts against published and closed-form numbers, arithmetic against Python."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank.errors import ConfigError
from lowrank.report.analytic import evaluate, rounds_to
from tests.report_lab import SUMMARY, runs_of, study

LORA = {"part": "lora", "rank": 8, "alpha": 16, "targets": ["q_lin", "v_lin"], "head": "trained"}


def counts(*rows):
    tables = {"t": {"kind": "counts", "title": "t", "note": "n", "rows": list(rows)}}
    return study(runs_of(), tables=tables).table("t").set_index("label")


def test_counts_of_a_published_model_that_is_not_fetched():
    table = counts(
        {"label": "full", "card": "distilbert", "chain": "full"},
        {"label": "lora", "card": "distilbert", "chain": [LORA], "batch_size": 2, "tokens": 16},
    )
    # 6 layers x 2 targets x rank 8 x (768 in + 768 out), and the head.
    trained = 6 * 2 * 8 * 2 * 768 + (768 * 768 + 768) + (768 * 2 + 2)
    assert table.loc["lora", "trainable_parameters"] == trained == 739_586
    assert table.loc["lora", "gradient_bytes"] == 4 * trained
    assert table.loc["lora", "parameters"] - table.loc["lora", "base_parameters"] == 6 * 2 * 8 * 2 * 768
    assert table.loc["full", "trainable_share"] == 1
    assert table.loc["full", "total_bytes"] is None or math.isnan(table.loc["full", "total_bytes"])
    categories = ["parameter_bytes", "gradient_bytes", "optimizer_bytes", "saved_activation_bytes"]
    assert table.loc["lora", "total_bytes"] == sum(table.loc["lora", categories])


def test_parameters_alone_are_the_same_and_rows_may_say_what_they_are():
    rows = [{"label": "lora", "card": "distilbert", "chain": [LORA], "columns": {"rank": 8}}]
    tables = {"t": {"kind": "counts", "title": "t", "note": "n", "rows": rows, "bytes": False}}
    alone, whole = study(runs_of(), tables=tables).table("t"), counts(*rows).reset_index()
    assert alone.loc[0, "rank"] == 8
    assert list(alone) == [column for column in whole if "bytes" not in column]
    assert alone.iloc[0].to_dict() == whole.loc[0, list(alone)].to_dict()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"card": "distilbert", "chain": "lorra"}, "tables.t: x: chain"),
        ({"card": "distilbert", "chain": "full", "batch_size": 2}, "batch_size needs tokens"),
        ({"card": "distilbrt", "chain": "full"}, "did you mean 'distilbert'"),
    ],
)
def test_rows_that_cannot_be_counted_are_refused(row, message):
    with pytest.raises(ConfigError, match=message):
        counts({"label": "x", **row})


def arithmetic(*rows, runs=None):
    tables = {"s": SUMMARY, "t": {"kind": "arithmetic", "title": "t", "note": "n", "rows": list(rows)}}
    runs = runs_of(lora=[0.5, 0.7]) if runs is None else runs
    return study(runs, tables=tables).table("t").set_index("label")


def test_formulas_take_numbers_and_cells():
    cell = {"table": "s", "row": {"arm": "lora"}, "column": "accuracy"}
    table = arithmetic(
        {
            "label": "share",
            "formula": "100 * r * (768 + 768) / n",
            "values": {"r": 8, "n": 66955010},
            "printed": 0.0184,
        },
        {"label": "cell", "formula": "2 * a", "values": {"a": cell}, "printed": "1.20"},
        {"label": "gone", "formula": "2 * a", "values": {"a": {**cell, "row": {"arm": "full"}}}},
        {"label": "wrong", "formula": "0.91", "printed": 0.92},
    )
    assert table.loc["share", "value"] == 100 * 8 * 2 * 768 / 66955010
    assert table.loc["cell", "value"] == pytest.approx(1.2)
    assert list(table["agrees"]) == ["yes", "yes", "", "no"]
    assert table.loc["gone", "cause"] == "no value for a"


@pytest.mark.parametrize(
    ("value", "printed", "agrees"),
    [(1.0925, 1.09, True), (1.0951, 1.09, False), (1.0951, "1.1", True), (1.0951, "1.10", True),
     (1.0949, "1.10", False),
     (739_586, "739586", True), (2_951_426, "2.9e6", False), (2_951_426, "3.0e6", True), (2_951_426, 2_951_426, True),
     (0.05, 0.1, True), (-3.349, -3.35, True)],
)  # fmt: skip
def test_a_printed_number_is_its_value_rounded(value, printed, agrees):
    assert rounds_to(value, printed) == agrees


@given(st.integers(-1000, 1000), st.integers(1, 1000), st.floats(0.1, 10))
def test_formulas_mean_what_python_means(a, b, c):
    values = {"a": a, "b": b, "c": c}
    assert evaluate("-a + 3 * (b - 2) ** 2 // 7 % 5", values, "p") == -a + 3 * (b - 2) ** 2 // 7 % 5
    assert evaluate("exp(log(c)) / sqrt(b) + min(a, b)", values, "p") == math.exp(math.log(c)) / math.sqrt(b) + min(
        a, b
    )


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("__import__('os')", "is not allowed"),
        ("a.real", "is not allowed"),
        ("rank * 2", "unknown name 'rank'"),
        ("1 / 0", "division by zero"),
        ("1 +", "formula '1 \\+'"),
        ("log(0)", "math domain|expected a positive"),
    ],
)
def test_formulas_that_are_none_are_refused(formula, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(formula, {"a": 1}, "p")
