"""The kinds of claims: each decides one sentence from a table of optima."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from lowrank.report.context import Context, check
from lowrank.report.judging import chances, combine, judge, said_of_several, shown_difference
from lowrank.report.kinds import (
    Case,
    DependsClaim,
    GridResolutionClaim,
    Optima,
    OutperformsClaim,
    RatioClaim,
    TiedClaim,
)
from lowrank.report.optimum import Optimum, same_ratio, selects, together
from lowrank.report.stats import paired
from lowrank.report.text import label, number, numbers, rate
from lowrank.report.verdicts import Finding


def describe(optimum: Optimum) -> str:
    """`rank 8, alpha 32`."""
    words = [f"{key} {number(optimum.keys[key])}" for key in ("rank", "alpha") if optimum.keys.get(key) is not None]
    if optimum.keys.get("budget") == "long":
        words.append("long training")
    return ", ".join(words) or str(optimum.keys.get("arm", "all"))


def _blocked(optimum: Optimum) -> Finding | None:
    """Why nothing can be said about an optimum, or None."""
    base = optimum.base
    if optimum.best is None or (base is not None and base.best is None):
        return Finding("not run", f"{describe(optimum)}: {optimum.cause or (base.cause if base else '')}")
    if optimum.incomplete or (base is not None and base.incomplete):
        return Finding("not resolved", f"{describe(optimum)}: {optimum.cause or (base.cause if base else '')}")
    lacks = optimum.lacks or (base.lacks if base is not None else "")
    if lacks:
        return Finding("not resolved", f"{describe(optimum)}: {lacks}")
    if len(optimum.metric) < 2 or (base is not None and len(base.metric) < 2):
        return Finding("not resolved", "one seed")
    return None


@check(RatioClaim)
def ratio(context: Context, view: RatioClaim, optima: list[Optimum]) -> Finding:
    """Each optimum that a case selects has (or has not) the ratio it states."""
    chosen = [(case, found) for case in view.cases for found in optima if selects(case.where, found)]
    wide = together([found for _, found in chosen])
    parts = [_ratio(case, found) for (case, _), found in zip(chosen, wide, strict=True)]
    evidence = [_ratio_evidence(case, found) for (case, _), found in zip(chosen, wide, strict=True)]
    return combine(parts, [*evidence, *_said_of_ties(wide)])


def _said_of_ties(optima: Sequence[Optimum]) -> list[str]:
    """How ties were found where several optima are looked at together."""
    if not optima or optima[0].family < 2:
        return []
    return [f"ties hold for all {optima[0].family} optima together (Bonferroni)"]


def _ratio(case: Case, optimum: Optimum) -> Finding:
    blocked = _blocked(optimum)
    if blocked:
        return blocked
    assert optimum.ratio is not None
    assert optimum.base is not None
    which = describe(optimum)
    edges = [f"{who} {edge}" for who, edge in ((which, optimum.edge), ("the baseline", optimum.base.edge)) if edge]
    has = all(same_ratio(found, case.ratio) for found in optimum.ratios)
    if not edges and (has or not optimum.may_have(case.ratio)):
        return Finding("reproduced" if has == case.holds else "differs", f"{which} has {number(optimum.ratio)}×")
    if not has and len(optimum.ratios) > 1:
        ends = " to ".join(rate(end) for end in (optimum.ratios[0], optimum.ratios[-1]))
        return Finding("not resolved", f"{which}: tied learning rates allow ratios from {ends}")
    if edges:
        return Finding("not resolved", f"the optimum lies at the edge of its grid ({', '.join(edges)})")
    low, high = optimum.ratio_between
    between = f"between {number(low)} and {number(high)} on this grid"
    return Finding(
        "not resolved", f"{which}: {number(optimum.ratio)}×, {between}, which leaves {number(case.ratio)}× open"
    )


def _ratio_evidence(case: Case, optimum: Optimum) -> str:
    wanted = f"{'' if case.holds else 'not '}{number(case.ratio)}×"
    if optimum.best is None or optimum.base is None or optimum.base.best is None:
        return f"{describe(optimum)}: stated {wanted}; no optimum"
    low, high = optimum.ratio_between
    quotient = f"{number(optimum.ratio)}× = {rate(optimum.best)} / {rate(optimum.base.best)}"
    parts = [f"{describe(optimum)}: stated {wanted}; ours {quotient}"]
    if low is not None or high is not None:
        parts.append(f"between {number(low)} and {number(high)} on this grid")
    if optimum.tied[1:]:
        parts.append(f"tied learning rates {numbers(optimum.tied)}")
    if optimum.edge:
        parts.append(f"at the {optimum.edge} edge of its grid")
    return ", ".join(parts)


@check(TiedClaim)
def tied(context: Context, view: TiedClaim, optima: list[Optimum]) -> Finding:
    """At least one optimum of those selected equals its runner-up within the margin; a wide interval shows nothing."""
    chosen = [optimum for optimum in optima if selects(view.where, optimum)]
    found = [(optimum, optimum.gap) for optimum in chosen if optimum.gap is not None and not _blocked(optimum)]
    allowed = f"allowed ±{view.margin:g}"
    evidence = [
        f"{describe(o)}: runner-up {rate(o.runner_up)}, worse by {shown_difference(gap)}, {allowed}" for o, gap in found
    ]
    evidence += [*said_of_several(len(found)), *([f"untested: {view.untested}"] if view.untested else [])]
    verdicts = [verdict for verdict, _ in judge([chances(gap, view.margin) for _, gap in found], anywhere=True)]
    ties = [describe(one) for (one, _), verdict in zip(found, verdicts, strict=True) if verdict == "reproduced"]
    margin = f"{view.margin:g} of {label(_table(context, view.table).metric)}"
    if ties:
        cause = f"the runner-up is as good within {margin}: {'; '.join(ties)}"
        return Finding("reproduced", cause + (f"; untested: {view.untested}" if view.untested else ""), tuple(evidence))
    blocked = [finding for optimum in chosen if (finding := _blocked(optimum))]
    if blocked or not chosen:
        return combine(blocked, evidence)
    if all(verdict == "differs" for verdict in verdicts):
        return Finding("differs", f"none of {len(chosen)} runners-up is as good within {margin}", tuple(evidence))
    return Finding(
        "not resolved", f"the intervals are wider than {margin}: they show no tie, and exclude none", tuple(evidence)
    )


@check(DependsClaim)
def depends(context: Context, view: DependsClaim, optima: list[Optimum]) -> Finding:
    """Whether the best value moves when one factor changes and the others stay."""
    chosen = together([optimum for optimum in optima if selects(view.where, optimum)])
    grouped: dict[tuple[Any, ...], list[Optimum]] = {}
    for optimum in chosen:
        grouped.setdefault(tuple(optimum.keys.get(key) for key in view.fixed), []).append(optimum)
    groups = {key: group for key, group in grouped.items() if len({o.keys[view.factor] for o in group}) > 1}
    evidence = [_depends_evidence(view, key, group) for key, group in groups.items()] + _said_of_ties(chosen)
    usable = {key: [o for o in group if not _blocked(o)] for key, group in groups.items()}
    moved = [pair for group in usable.values() for pair in itertools.combinations(group, 2) if _apart(*pair)]
    if moved:
        one, other = moved[0]
        cause = f"it moves: {describe(one)} has {numbers(one.tied)}, {describe(other)} has {numbers(other.tied)}"
        return Finding("reproduced" if view.expected else "differs", cause, tuple(evidence))
    blocked = [found for group in groups.values() for optimum in group if (found := _blocked(optimum))]
    if blocked or not groups:
        return combine(blocked, evidence)
    if all(
        len({o.tied for o in group}) == 1 and not group[0].tied[1:] and not group[0].edge for group in usable.values()
    ):
        cause = f"the same optimum in each of {len(groups)} comparisons"
        return Finding("differs" if view.expected else "reproduced", cause, tuple(evidence))
    return Finding("not resolved", "ties or an edge of the grid leave open whether the optimum moves", tuple(evidence))


def _apart(one: Optimum, other: Optimum) -> bool:
    """Whether two optima differ beyond ties; two that both run off the same end of the grid are not told apart."""
    return not set(one.tied) & set(other.tied)


def _depends_evidence(view: DependsClaim, key: tuple[Any, ...], group: list[Optimum]) -> str:
    fixed = [
        f"{label(column)} {rate(value)}" for column, value in zip(view.fixed, key, strict=True) if value is not None
    ]
    found = [f"{label(view.factor)} {rate(o.keys[view.factor])}: {numbers(o.tied)}" for o in group]
    return f"{', '.join(fixed)}: best learning rate, ties included, at {'; '.join(found)}"


@check(OutperformsClaim)
def outperforms(context: Context, view: OutperformsClaim, optima: list[Optimum]) -> Finding:
    """Within some group, a configuration with one ratio beats the best configuration with the other."""
    chosen = [optimum for optimum in optima if selects(view.where, optimum) and optimum.base is not None]
    blocked = [found for optimum in chosen if (found := _blocked(optimum))]
    sign = 1.0 if _table(context, view.table).goal == "min" else -1.0
    evidence: list[str] = []
    gains, tried = [], 0
    usable = [optimum for optimum in chosen if not _blocked(optimum)]
    for key in dict.fromkeys(tuple(o.keys[name] for name in view.within) for o in usable):
        group = [o for o in usable if tuple(o.keys[name] for name in view.within) == key]
        ours = [o for o in group if o.ratio and same_ratio(o.ratio, view.ratio)]
        others = [o for o in group if o.ratio and same_ratio(o.ratio, view.other)]
        if not ours or not others:
            continue
        one, other = (min(side, key=lambda o: sign * sum(o.metric.values()) / len(o.metric)) for side in (ours, others))
        gain = paired({k: -sign * v for k, v in one.metric.items()}, {k: -sign * v for k, v in other.metric.items()})
        if gain is not None:
            gains.append(gain)
            tried += len(ours) * len(others)  # each side's best was chosen on the same runs
            sides = f"{describe(one)} ({number(view.ratio)}×) against {describe(other)} ({number(view.other)}×)"
            evidence.append(f"{sides}: {shown_difference(gain.minus() if sign > 0 else gain)}")
    verdicts = [verdict for verdict, _ in judge([chances(gain) for gain in gains], anywhere=True, count=tried)]
    evidence += said_of_several(tried)
    better = verdicts.count("reproduced")
    if better:
        return Finding("reproduced", f"better in {better} of {len(gains)} groups", tuple(evidence))
    if blocked and not gains:
        return combine(blocked, evidence)
    if not gains:
        return Finding("not resolved", f"no group has both a {number(view.ratio)}× and a {number(view.other)}× optimum")
    if all(verdict == "differs" for verdict in verdicts):
        return Finding("differs", f"worse in all {len(gains)} groups", tuple(evidence))
    return Finding("not resolved", "the differences lie within seed noise", tuple(evidence))


def _table(context: Context, name: str) -> Optima:
    view = context.views.tables[name]
    assert isinstance(view, Optima)
    return view


@check(GridResolutionClaim)
def grid_resolution(context: Context, view: GridResolutionClaim, optima: None) -> Finding:
    """Whether the ranges that the document's grid leaves open around the stated ratios overlap.

    Each side's optimum is known to half a step either way, so a ratio is known to one whole step:
    [ratio / step, ratio * step], step = (highest / lowest) ** (1 / (values - 1)).
    """
    rows = [e.cell.row for name in view.curves for e in context.ledger.artefact(name).entries if e.cell is not None]
    grid = sorted({float(str(row[view.axis])) for row in rows})
    step = (grid[-1] / grid[0]) ** (1 / (len(grid) - 1))
    ranges = [(ratio / step, ratio * step) for ratio in sorted(view.ratios)]
    evidence = [
        f"{number(ratio)}×: between {number(low)} and {number(high)}"
        for ratio, (low, high) in zip(sorted(view.ratios), ranges, strict=True)
    ]
    overlap = all(left[1] > right[0] or math.isclose(left[1], right[0]) for left, right in itertools.pairwise(ranges))
    told = "cannot be told apart" if overlap else "are apart"
    cause = f"with a factor of {number(step)} between learning rates, neighbouring ratios {told}"
    return Finding("reproduced" if overlap else "differs", cause, tuple(evidence))
