"""Each check of a claim, on runs whose truth makes it hold, fail, or stay open."""

import pytest

from lowrank.report.judging import combine
from lowrank.report.opened import open_study
from lowrank.report.verdicts import Finding
from lowrank.report.views import parse_views
from lowrank.study import STUDIES
from lowrank.yaml_files import read_yaml
from tests.report_runs import make_runs, write_runs


def claim(folder, runs, name, scale="paper"):
    views = parse_views(read_yaml(STUDIES / "lr_ratio.yaml"), "lr_ratio")
    return open_study("lr_ratio", views, write_runs(runs, folder), folder, scale).check(name)


def always_ten(rank, alpha):
    return 10.0


def always_one(rank, alpha):
    return 1.0


def between_two(rank, alpha):
    return 10 / 3**0.5


def falls_with_rank(rank, alpha):
    return 100 / 3 if rank < 32 else 10.0


@pytest.mark.parametrize(
    ("name", "ratio", "verdict"),
    [
        ("C0", always_ten, "reproduced"),
        ("C0", falls_with_rank, "differs"),
        ("C9a", always_ten, "differs"),
        ("C9a", falls_with_rank, "reproduced"),
        ("C9b", always_ten, "differs"),
        ("C5a", always_ten, "reproduced"),
        ("C1b", always_ten, "not resolved"),  # on a grid of steps of three, 10 leaves 3.33 open
        ("C1a", always_one, "differs"),
        ("C2a", always_one, "differs"),
        ("C6b", always_ten, "differs"),
        ("C6b", always_one, "reproduced"),
    ],
)
def test_what_moves_the_optimum(tmp_path, name, ratio, verdict):
    found = claim(tmp_path, make_runs(ratio=ratio, long=False, noise=1e-5), name)
    assert found.verdict == verdict, found
    assert found.evidence


def test_a_ratio_that_the_grid_leaves_open_is_not_refuted(tmp_path):
    found = claim(tmp_path, make_runs(ratio=lambda rank, alpha: 10 / 3, long=False, noise=1e-5), "C1a")
    assert found.verdict == "not resolved"
    assert "3.33×, between 1 and 10 on this grid, which leaves 10× open" in found.cause


def test_ties_are_wider_where_many_optima_are_looked_at(tmp_path):
    runs = make_runs(ratio=falls_with_rank, long=False, noise=0.004)
    found = claim(tmp_path, runs, "C9a")
    assert found.verdict == "not resolved"
    assert found.evidence[-1] == "ties hold for all 19 optima together (Bonferroni)"
    few = runs[runs["rank"].isna() | runs["alpha"].eq(runs["rank"]) & runs["rank"].isin([8, 32])]
    few = few[few["arm"] == "lora"]
    assert claim(tmp_path, few, "C9a").evidence[-1] == "ties hold for all 2 optima together (Bonferroni)"


def test_an_optimum_at_the_edge_proves_nothing(tmp_path):
    found = claim(tmp_path, make_runs(ratio=falls_with_rank, long=False, noise=1e-5), "C6b")
    assert found.verdict == "not resolved"
    assert "edge of its grid" in found.cause


@pytest.mark.parametrize(("shift", "verdict"), [(-0.02, "reproduced"), (0.02, "differs"), (0.0, "not resolved")])
def test_one_ratio_outperforms_the_other(tmp_path, shift, verdict):
    runs = make_runs(long=False, noise=1e-4)
    runs.loc[runs["alpha"] > runs["rank"], "best_val_loss"] += shift
    assert claim(tmp_path, runs, "C8").verdict == verdict


def test_outperforming_needs_both_ratios(tmp_path):
    found = claim(tmp_path, make_runs(ratio=always_ten, long=False), "C8")
    assert (found.verdict, found.evidence) == ("not resolved", ())


@pytest.mark.parametrize(
    ("noise", "ratio", "verdict"),
    [(1e-4, always_ten, "differs"), (1e-4, between_two, "reproduced"), (0.05, between_two, "not resolved")],
)
def test_a_tie_is_shown_by_a_narrow_interval_and_not_by_noise(tmp_path, noise, ratio, verdict):
    found = claim(tmp_path, make_runs(noise=noise, ratio=ratio, long=False), "C2b")
    assert found.verdict == verdict, found
    assert found.evidence[-1] == "untested: that short training is the reason"


def test_a_finer_grid_would_tell_the_ratios_apart(tmp_path):
    views = parse_views(read_yaml(STUDIES / "lr_ratio.yaml"), "lr_ratio")
    context = open_study("lr_ratio", views, write_runs(make_runs(), tmp_path), tmp_path, "smoke")
    assert context.check("caveat").verdict == "reproduced"
    assert "factor of 3.2" in context.check("caveat").cause, "3e-6 to 1e-3 in five steps, as in the document's figures"
    between = {1e-5: 1.0e-4, 3e-5: 1.5e-4, 3e-4: 2.2e-4, 1e-3: 3.3e-4, 3e-6: 4.8e-4}
    for artefact, entry in context.ledger.entries():
        if artefact.id in ("004-F1", "004-F2") and entry.cell is not None:
            entry.cell.row["lr"] = between.get(float(str(entry.cell.row["lr"])), 1.0e-4)
    assert context.check("caveat").verdict == "differs"


def test_one_counter_example_outweighs_any_number_of_open_questions():
    held, open_, broken = Finding("reproduced", "a"), Finding("not resolved", "b"), Finding("differs", "c")
    assert combine([held, open_, broken], ()).verdict == "differs"
    assert combine([held, open_], ()).cause == "1 of 2: b"
    assert combine([held, held], ()).cause == "all 2 hold"
    assert combine([], ()).verdict == "not run"
