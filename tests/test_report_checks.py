"""Each check of a claim, on runs whose truth makes it hold, fail, or stay open."""

import pytest

from lowrank.report.checks import combine
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
        ("C1b", always_ten, "differs"),
    ],
)
def test_what_moves_the_optimum(tmp_path, name, ratio, verdict):
    found = claim(tmp_path, make_runs(ratio=ratio, long=False), name)
    assert found.verdict == verdict, found
    assert found.evidence


def test_an_optimum_at_the_edge_proves_nothing(tmp_path):
    found = claim(tmp_path, make_runs(ratio=falls_with_rank, long=False), "C6b")
    assert found.verdict == "not resolved"
    assert "edge of its grid" in found.cause


@pytest.mark.parametrize(("shift", "verdict"), [(-0.02, "reproduced"), (0.02, "differs"), (0.0, "not resolved")])
def test_one_ratio_outperforms_the_other(tmp_path, shift, verdict):
    runs = make_runs(long=False)
    runs.loc[runs["alpha"] > runs["rank"], "best_val_loss"] += shift
    assert claim(tmp_path, runs, "C8").verdict == verdict


def test_outperforming_needs_both_ratios(tmp_path):
    found = claim(tmp_path, make_runs(ratio=always_ten, long=False), "C8")
    assert (found.verdict, found.evidence) == ("not resolved", ())


@pytest.mark.parametrize(("noise", "verdict"), [(0.0001, "differs"), (0.05, "reproduced")])
def test_ties_come_from_noise(tmp_path, noise, verdict):
    assert claim(tmp_path, make_runs(noise=noise, long=False), "C2b").verdict == verdict


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
