"""One look for every figure: colours, markers and order of ranks and methods, fonts, and stable bytes."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

from matplotlib.figure import Figure

from lowrank.files import replacing
from lowrank.report.text import number

PAPER, INK, MUTED, GRID = "#ffffff", "#1c2126", "#5c6670", "#dfe3e7"
SERIES = ("#2a4fb0", "#0f82b5", "#1a8a68", "#b07410", "#b5383a", "#7d3f98")
"""In the order of ranks: blue to red, told apart by lightness and marker as well as by hue."""
MARKERS = ("o", "s", "^", "D", "v", "P")

VARIABLES = {PAPER: "--paper", INK: "--ink", MUTED: "--muted", GRID: "--rule"} | {
    colour: f"--series-{index}" for index, colour in enumerate(SERIES)
}
"""Colours that a page replaces by its own, so that a figure follows light and dark."""

ORDER: dict[str, tuple[Any, ...]] = {"rank": (8, 16, 32, 64, 128)}
"""Values that keep their colour even where a scale leaves some of them out."""

SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "path",  # letters as shapes: the file looks the same where the font is missing
    "svg.hashsalt": "lowrank",  # ids in the file follow from its content
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 12.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.minor.visible": False,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
}


@dataclass(frozen=True)
class Look:
    """How one series is drawn."""

    label: str
    colour: str
    marker: str
    dash: str


def looks(series: Sequence[Mapping[str, Any]]) -> list[Look]:
    """A look for each series; the same configuration looks the same in every figure.

    Args:
        series: what makes each one (`{arm: lora, rank: 8}`); full fine-tuning is the dashed one in ink.
    """
    fixed = [_fixed_place(keys) for keys in series]
    free = [index for index in range(len(SERIES)) if index not in fixed] or list(range(len(SERIES)))
    others = itertools.cycle(free)
    found = []
    for keys, place in zip(series, fixed, strict=True):
        if keys.get("arm") == "full":
            found.append(Look("full", INK, "X", "--"))
            continue
        index = next(others) if place is None else place
        words = [f"{key} {number(value)}" for key, value in keys.items() if key != "arm" and value is not None]
        found.append(Look(", ".join(words) or str(keys.get("arm")), SERIES[index], MARKERS[index], "-"))
    return found


def _fixed_place(keys: Mapping[str, Any]) -> int | None:
    for key, order in ORDER.items():
        if keys.get(key) in order:
            return order.index(keys[key])
    return None


def svg(figure: Figure) -> str:
    """The figure as SVG text; the same figure gives the same bytes."""
    text = io.StringIO()
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Writes `path` with the suffixes `.svg` and `.png`."""
    with replacing(path.with_suffix(".svg")) as temporary:
        temporary.write_text(svg(figure), encoding="utf-8")
    with replacing(path.with_suffix(".png")) as temporary, matplotlib.rc_context(SETTINGS):
        figure.savefig(temporary, format="png", dpi=160, metadata={"Software": None})
