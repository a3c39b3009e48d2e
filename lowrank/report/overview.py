"""What holds, at a glance: one bar for each study, its published numbers and sentences by verdict."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lowrank.report.style import INK, PAPER, SETTINGS, VERDICTS

WIDTH, MARGIN, ROW = 9.0, 0.9, 0.42
"""Inches: the figure, its axis and legend, and a bar with its gap."""

LEAST = 0.03
"""A share below this has no room for its number."""


def overview(counts: Mapping[str, Mapping[str, int]]) -> Figure:
    """Stacked bars of shares, with the number of entries in each piece.

    Args:
        counts: name of a study or document -> verdict -> number of entries.
    """
    with matplotlib.rc_context(SETTINGS):
        drawing = Figure(figsize=(WIDTH, MARGIN + ROW * len(counts)), layout="constrained")
        axes = drawing.add_subplot()
        for row, found in enumerate(counts.values()):
            whole, left = sum(found.values()) or 1, 0.0
            for verdict, (ground, text, hatch) in VERDICTS.items():
                share = found.get(verdict, 0) / whole
                if not share:
                    continue
                axes.barh(row, share, left=left, height=0.8, color=ground, edgecolor=PAPER, linewidth=0.8, hatch=hatch,
                          gid=f"{verdict} {row}")  # fmt: skip
                if share >= LEAST:
                    axes.text(left + share / 2, row, str(found[verdict]), ha="center", va="center", color=text,
                              fontsize="small")  # fmt: skip
                left += share
        labels = [f"{name}  {sum(found.values())}" for name, found in counts.items()]
        axes.set_yticks(range(len(counts)), labels)
        axes.set_ylim(len(counts) - 0.45, -0.55)
        axes.set_xlim(0, 1)
        axes.tick_params(axis="y", length=0)
        axes.set_xticks([])
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        known = [verdict for verdict in VERDICTS if any(found.get(verdict) for found in counts.values())]
        patches = [
            Patch(facecolor=VERDICTS[verdict][0], edgecolor=PAPER, hatch=VERDICTS[verdict][2]) for verdict in known
        ]
        drawing.legend(patches, known, loc="outside upper left", ncols=len(known), fontsize="small", labelcolor=INK,
                       handlelength=1.2, columnspacing=1.0)  # fmt: skip
    return drawing
