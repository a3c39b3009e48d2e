"""Claims about a metric of any table: one side beats another, a ranking holds, a value lies within bounds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lowrank.report.context import Context, check
from lowrank.report.frame import need_columns, plain, select
from lowrank.report.judging import ALONE, Chances, chances, combine, judge, said_of_several, shown_difference
from lowrank.report.kinds import ByConstructionClaim, CompareClaim, Goal, OrderClaim, UnmeasurableClaim, WithinClaim
from lowrank.report.samples import Sample, in_order, need_all_rows, samples
from lowrank.report.stats import Estimate, paired
from lowrank.report.text import configuration, label, number
from lowrank.report.verdicts import Finding, Verdict

Pair = tuple[Sample, Sample]


@check(CompareClaim)
def compare(context: Context, view: CompareClaim, optima: None) -> Finding:
    """Whether each configuration of one side beats (or equals) each of the other, seed by seed."""
    found = samples(context, view.table, view.metric, f"{context.study}: claims")
    need_all_rows(found, view, f"{context.study}: claims: {view.table}")
    left, right = ([one for one in found if one.selected(where)] for where in (view.better, view.worse))
    pairs = [(a, b) for a in left for b in right if all(a.keys.get(key) == b.keys.get(key) for key in view.by)]
    parts, evidence = compared(pairs, view)
    evidence += [f"left out: {view.leaves_out}"] if view.leaves_out else []
    hits = [part for part in parts if part.verdict == "reproduced"]
    if view.anywhere and hits:
        return Finding("reproduced", f"{len(hits)} of {len(parts)}: {hits[0].cause}", tuple(evidence))
    if view.anywhere and any(part.verdict != "differs" for part in parts):
        parts = [part for part in parts if part.verdict != "differs"]  # what is open may still hold
    return combine(parts, evidence)


@check(OrderClaim)
def order(context: Context, view: OrderClaim, optima: None) -> Finding:
    """Whether every configuration of a ranking beats every later one."""
    found = samples(context, view.table, view.metric, f"{context.study}: claims")
    need_all_rows(found, view, f"{context.study}: claims: {view.table}")
    places = [[one for one in found if one.selected(where)] for where in view.ranking]
    if view.along is not None:
        places = in_order(found, view.along, view.best, f"{context.study}: claims: {view.table}")
    absent = [str(index + 1) for index, place in enumerate(places) if not place]
    pairs = [pair for a, b in itertools.combinations(places, 2) for pair in itertools.product(a, b)]
    parts, evidence = compared(pairs, beats(view.table, view.metric, view.goal))
    if absent:
        parts.append(Finding("not run", f"no run at place {', '.join(absent)} of the ranking"))
    return combine(parts, evidence)


def beats(table: str, metric: str, goal: Goal) -> CompareClaim:
    """The rule by which the first of each pair is better; who is compared with whom, the pairs say."""
    return CompareClaim(check="compare", table=table, metric=metric, goal=goal, better={}, worse={})


def compared(pairs: Sequence[Pair], view: CompareClaim) -> tuple[list[Finding], list[str]]:
    """What is found of each pair of a claim, one of several that it is, and the evidence."""
    blocked = [obstacle(*pair, view.metric) for pair in pairs]
    gains = [
        None if why else advantage(pair, view.goal, view.untrained) for why, pair in zip(blocked, pairs, strict=True)
    ]
    tried = [index for index, gain in enumerate(gains) if gain is not None and gain.seeds != 1]
    found: dict[int, Chances] = {i: chances(g, view.equal_within, view.or_better) for i in tried if (g := gains[i])}
    verdicts = dict(zip(tried, judge(list(found.values()), view.anywhere), strict=True))
    parts = []
    for index, (pair, why, gain) in enumerate(zip(pairs, blocked, gains, strict=True)):
        if why or gain is None or index not in verdicts:
            parts.append(why or Finding("not resolved", "one seed"))
        else:
            parts.append(_found(pair, gain, verdicts[index], view))
    several = said_of_several(sum(not one.certain for one in found.values()))
    return parts, [*(_evidence(pair, view) for pair in pairs), *several]


def _found(pair: Pair, gain: Estimate, judged: tuple[Verdict, bool], view: CompareClaim) -> Finding:
    """One pair: what its interval says, unless something stands in the way."""
    (ours, other), (verdict, alone) = pair, judged
    sides = f"{ours.name} {_relation(gain, view)} {other.name}: {label(view.metric)} {_shown(gain, view)}"
    limited = _limited(ours, other, verdict, view.equal_within is not None)
    if limited and not gain.certain:  # what is the same for every seed is a count, which no rate changes
        return Finding("not resolved", f"{sides}; but {limited}")
    caveats = [] if gain.certain else _caveats(ours, other)
    return Finding(verdict, "; ".join([sides, *([ALONE] if alone else []), *caveats]))


def _caveats(ours: Sample, other: Sample) -> list[str]:
    """How the sides were tuned, where that leaves something to be said."""
    told = [one for one in (ours, other) if one.tuning and one.tuning != "nothing to tune"]
    if len({one.tuning for one in told}) < len(told):
        return [f"both: {ours.tuning}"]
    return [f"{one.name}: {one.tuning}" for one in told]


def obstacle(ours: Sample, other: Sample, metric: str) -> Finding | None:
    """Why two configurations cannot be compared, or None."""
    for one, wins in ((ours, "differs"), (other, "reproduced")):
        if one.values or one.exact is not None:
            continue
        if one.status == "diverged" and (ours.values or other.values):
            return Finding("differs" if wins == "differs" else "reproduced", f"{one.name} diverged")
        verdict = "not run" if one.status in ("missing", "failed") else "not resolved"
        return Finding(verdict, f"{one.name}: {one.cause or f'no {label(metric)}'}")  # type: ignore[arg-type]
    for one in (ours, other):
        if one.exact is None and len(one.values) < one.seeds and one.status != "diverged":
            return Finding("not resolved", f"{one.name}: {one.cause}")
    if ours.exact is None and other.exact is None and not ours.values.keys() & other.values.keys():
        return Finding("not resolved", f"{ours.name} and {other.name} share no seed")
    return None


def advantage(pair: Pair, goal: str, untrained: bool = False) -> Estimate | None:
    """How much better the first side is, paired by seed and test item; a computed value stands beside every seed.

    Of models that were not trained, the largest difference of any seed, as a computed value.
    """
    ours, other = pair
    if ours.exact is not None and other.exact is not None:
        return Estimate(ours.exact - other.exact if goal == "max" else other.exact - ours.exact, seeds=0)
    seeds = ours.values or other.values
    sides = [{s: one.values[s] if one.exact is None else one.exact for s in one.values or seeds} for one in pair]
    if untrained:
        differences = [sides[0][seed] - sides[1][seed] for seed in sides[0].keys() & sides[1].keys()]
        found = Estimate(max(differences, key=abs), seeds=0) if differences else None
    else:
        found = paired(sides[0], sides[1], ours.items(), other.items())
    return found if found is None or goal == "max" else found.minus()


def _limited(ours: Sample, other: Sample, verdict: str, equal: bool) -> str:
    """Why a side could still do better than it did, where that would turn the verdict."""
    losers = [ours, other] if equal else [other] if verdict == "reproduced" else [ours] if verdict == "differs" else []
    edges = [one for one in losers if one.edge]
    return "; ".join(f"{one.name} was tuned to the {one.edge} edge of its grid and may do better" for one in edges)


def _relation(gain: Estimate, view: CompareClaim) -> str:
    """What the interval says of the two, and no more."""
    assert gain.low is not None
    assert gain.high is not None
    margin = view.equal_within
    if gain.certain and gain.mean == 0:
        return "equals"
    if margin and not view.or_better and -margin <= gain.low and gain.high <= margin:
        return f"is within ±{margin:g} of"
    if gain.low > 0:
        return "beats"
    if gain.high < 0:
        return "loses to"
    return f"is at most {margin:g} worse than" if margin and gain.low >= -margin else "is not told apart from"


def _shown(gain: Estimate, view: CompareClaim) -> str:
    shown = shown_difference(gain if view.goal == "max" else gain.minus())
    if view.equal_within is None:
        return shown
    sign = "±" if not view.or_better else "-" if view.goal == "max" else "+"
    return f"{shown}, allowed {sign}{view.equal_within:g}{' or better' if view.or_better else ''}"


def _evidence(pair: Pair, view: CompareClaim) -> str:
    ours, other = pair
    known = all(one.values or one.exact is not None for one in pair)
    gain = advantage(pair, view.goal, view.untrained) if known else None
    difference = "no difference" if gain is None else _shown(gain, view)
    return f"{ours.name} ({_mean(ours)}) against {other.name} ({_mean(other)}): {label(view.metric)} {difference}"


def _mean(one: Sample) -> str:
    if one.exact is not None:
        return number(one.exact)
    return number(sum(one.values.values()) / len(one.values)) if one.values else one.status


@check(WithinClaim)
def within(context: Context, view: WithinClaim, optima: None) -> Finding:
    """Whether a column of the selected rows lies within bounds."""
    place = f"{context.study}: claims"
    table = context.table(view.table)
    if view.column not in table and not (table.get("status", pd.Series(dtype=str)) == "ok").any():
        return Finding("not run", "no run of these configurations at this scale")  # records name their own columns
    need_columns(table, [view.column], place)
    rows = select(table, view.where, place).to_dict("records")
    measured = context.measured(view.table)
    names = [_row_name(row, view, context.views.titles) for row in rows]
    parts = [_within(row, name, view, measured) for row, name in zip(rows, names, strict=True)]
    said = [f"{label(view.column)} {_with_interval(row, view.column)}" for row in rows]
    evidence = [f"{name}: {what}" for name, what in zip(names, said, strict=True)]
    return combine(parts, [*evidence, f"allowed: {_bounds(view)}, since {view.reason}"])


def _within(row: dict[Any, Any], name: str, view: WithinClaim, measured: bool) -> Finding:
    value = plain(row[view.column])
    if value is None:
        status = row.get("status", "ok")
        return Finding("not run" if status != "ok" else "not resolved", f"{name}: {row.get('cause') or 'no value'}")
    low, high = (plain(row.get(f"{view.column}_{end}")) for end in ("low", "high"))
    if measured and (low is None or high is None):
        why = "one seed" if f"{view.column}_low" in row else "no interval over seeds"
        return Finding("not resolved", f"{name}: {label(view.column)} {number(value)}: {why}")
    low, high = (value, value) if low is None or high is None else (low, high)
    least, most = _limits(view)
    said = f"{name}: {label(view.column)} {_with_interval(row, view.column)}, allowed {_bounds(view)}"
    if low >= least and high <= most:
        return Finding("reproduced", said)
    return Finding("differs" if high < least or low > most else "not resolved", said)


def _limits(view: WithinClaim) -> tuple[float, float]:
    if view.equals is not None:
        wanted = float(view.equals)
        slack = view.tolerance + 1e-12 * abs(wanted)  # a sum of floats is not exact
        return wanted - slack, wanted + slack
    least = -math.inf if view.at_least is None else view.at_least
    return least, math.inf if view.at_most is None else view.at_most


def _bounds(view: WithinClaim) -> str:
    if view.equals is not None:
        return number(view.equals) + (f" ± {number(view.tolerance)}" if view.tolerance else " exactly")
    ends = (("at least", view.at_least), ("at most", view.at_most))
    return " and ".join(f"{word} {number(end)}" for word, end in ends if end is not None)


def _row_name(row: dict[Any, Any], view: WithinClaim, titles: Mapping[str, str]) -> str:
    return str(row["label"]) if "label" in row else configuration({key: row.get(key) for key in view.where}, titles)


def _with_interval(row: dict[Any, Any], column: str) -> str:
    low, high = (plain(row.get(f"{column}_{end}")) for end in ("low", "high"))
    shown = number(plain(row[column]))
    return shown if low is None or high is None else f"{shown} [{number(low)}, {number(high)}]"


@check(ByConstructionClaim)
def by_construction(context: Context, view: ByConstructionClaim, optima: None) -> Finding:
    """What holds because we made it so, with how."""
    return Finding("by construction", view.reason)


@check(UnmeasurableClaim)
def unmeasurable(context: Context, view: UnmeasurableClaim, optima: None) -> Finding:
    """What no run can decide, with the reason."""
    return Finding("impossible", view.reason)
