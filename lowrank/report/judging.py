"""From estimates to verdicts: what an interval says of a statement, and what several say of one claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowrank.report.stats import CONFIDENCE, LEVEL, Estimate, holm
from lowrank.report.verdicts import Finding, Verdict


@dataclass(frozen=True)
class Chances:
    """How far a gain speaks for and against a statement: one-sided p values, small where it does."""

    held: float
    broken: float
    certain: bool = False
    """Nothing varies, so that there is no chance in it."""


def chances(gain: Estimate, equal_within: float | None = None, or_better: bool = False) -> Chances:
    """Whether one side is better, or with `equal_within` m whether the two are equal within m.

    Equality holds where the gain lies above -m and below m, each tested for itself (TOST: the whole interval lies
    within the margin). A wide interval shows nothing.

    Args:
        gain: how much better the side is that is said to be so.
        equal_within: the margin; None where the side is said to be better.
        or_better: with `equal_within`: a gain beyond m holds too.
    """
    margin = equal_within or 0.0
    if gain.certain:
        held = gain.mean > 0 if equal_within is None else gain.mean >= -margin and (or_better or gain.mean <= margin)
        return Chances(float(not held), float(held), certain=True)
    if equal_within is None:
        return Chances(gain.above(0.0), gain.below(0.0))
    if or_better:
        return Chances(gain.above(-margin), gain.below(-margin))
    return Chances(max(gain.above(-margin), gain.below(margin)), min(gain.below(-margin), gain.above(margin)))


def judge(found: Sequence[Chances], anywhere: bool = False, count: int | None = None) -> list[tuple[Verdict, bool]]:
    """The verdict on each comparison of a claim, and whether its interval alone would have decided it.

    Where all must hold, one that fails decides the claim, so what fails is corrected for having tried all (Holm);
    what must hold in all of them at once is not. With `anywhere` it is the other way round.

    Args:
        found: one for each comparison.
        anywhere: one that holds is enough.
        count: how many were tried, where that is more.
    """
    tried = [index for index, one in enumerate(found) if not one.certain]
    single = [found[index].held if anywhere else found[index].broken for index in tried]
    corrected = dict(zip(tried, holm(single, count), strict=True))
    verdicts: list[tuple[Verdict, bool]] = []
    for index, one in enumerate(found):
        held = corrected.get(index, one.held) if anywhere else one.held
        broken = one.broken if anywhere else corrected.get(index, one.broken)
        verdict: Verdict = "reproduced" if held <= LEVEL else "differs" if broken <= LEVEL else "not resolved"
        verdicts.append((verdict, verdict == "not resolved" and min(one.held, one.broken) <= LEVEL))
    return verdicts


def said_of_several(count: int) -> list[str]:
    """The line of evidence that says how several comparisons were judged; none for one."""
    if count < 2:
        return []
    return [f"{count} comparisons: each interval is its own; what decides by itself was corrected for all (Holm)"]


HOW = (
    "A difference is paired by seed, and by test item where an evaluation recorded items. Its 95 % interval is mean ± "
    "√((t(n−1) s/√n)² + (t(m−1) d/√m)²): s is the spread of the differences of n seeds, d that of the differences of m "
    "items, each averaged over the seeds. A token counts as an item, though tokens of one text hang together. What "
    "decides a claim as one of several comparisons is corrected for all of them (Holm); what ties with an optimum is "
    "found for its whole grid, and all optima of the claim, at once (Bonferroni). Two are equal only where the whole "
    "interval lies within the margin that stands beside it. Intervals in tables are over seeds alone, and end where "
    "the values of a metric do: a share at 0 and 1, a loss at 0."
)
"""The page's note on intervals and verdicts."""

ALONE = "by itself this would decide, as one of several comparisons it does not (Holm)"


def combine(parts: Sequence[Finding], evidence: Sequence[str]) -> Finding:
    """All must hold: one counter-example differs, one open question leaves the whole open."""
    if not parts:
        return Finding("not run", "no run of these configurations at this scale", tuple(evidence))
    order: tuple[Verdict, ...] = ("differs", "not run", "not resolved", "reproduced", "by construction")
    for verdict in order:
        hits = [part for part in parts if part.verdict == verdict]
        if hits:
            causes = list(dict.fromkeys(part.cause for part in hits))
            shown = "; ".join(causes[:3]) + (f"; and {len(causes) - 3} more" if len(causes) > 3 else "")
            if len(parts) > 1:
                shown = f"all {len(parts)} hold" if verdict == "reproduced" else f"{len(hits)} of {len(parts)}: {shown}"
            return Finding(verdict, shown, tuple(evidence))
    raise AssertionError(parts)


def shown_difference(found: Estimate | None) -> str:
    """A difference with its named interval."""
    if found is None:
        return "–"
    if found.low is None or found.high is None:
        return f"{_signed(found.mean)} (one seed)"
    if found.certain:
        shown = f"{found.mean:+,.0f}" if found.mean.is_integer() else f"{found.mean:+.6g}"
        return shown + (f" (each of {found.seeds} seeds)" if found.seeds else "")
    over = f"{found.seeds} seeds" + (f" and {found.items:,} items" if found.items_error else "")
    return (
        f"{_signed(found.mean)} ({CONFIDENCE:.0%} paired t over {over}: {_signed(found.low)} to {_signed(found.high)})"
    )


def _signed(value: float) -> str:
    return f"{round(value, 4) + 0.0:+.4f}"  # of nothing no minus
