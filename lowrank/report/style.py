"""One look for every figure: colours, markers and order of ranks and methods, fonts, and stable bytes."""

from __future__ import annotations

import io
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lowrank.files import replacing
from lowrank.report.text import NAMES, number, rate

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # pages need colours, and nothing drawn

PAPER, INK, MUTED, GRID = "#ffffff", "#1c2126", "#5c6670", "#dfe3e7"
SERIES = (
    "#2a4fb0", "#0f82b5", "#1a8a68", "#b07410", "#b5383a", "#7d3f98", "#c2528b", "#6f7116", "#80543a", "#3d6670",
)  # fmt: skip
"""Told apart by lightness and marker as well as by hue. Ranks take the first six in order: blue to red."""
MARKERS = ("o", "s", "^", "D", "v", "P", "<", ">", "p", "h")
DASHES = ("-", (0, (4, 1.5)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)))
"""For series that share a colour: variants of one method."""

CONTROLS = {"full": 1, "linear_probe": 2, "base": 3}
"""Where in `DASHES` the lines of controls begin, so that they are told from methods without colour."""

VERDICTS: dict[str, tuple[str, str, str | None]] = {
    "reproduced": ("#1b6e45", PAPER, None),
    "differs": ("#a32d2f", PAPER, None),
    "not resolved": ("#f0d79a", INK, None),
    "by construction": ("#c9d6f0", INK, "\\\\\\"),
    "not comparable": ("#ccd3da", INK, None),
    "not run": ("#dbe0e5", INK, "///"),
    "impossible": ("#aab3bd", INK, "..."),
}
"""Ground, text and hatch of a verdict in a figure: told apart by lightness and pattern as well as by hue."""

VARIABLES = {PAPER: "--paper", INK: "--ink", MUTED: "--muted", GRID: "--rule"} | {
    colour: f"--series-{index}" for index, colour in enumerate(SERIES)
}
"""Colours that a page replaces by its own, so that a figure follows light and dark."""

METHODS = {
    "base": MUTED,
    "full": INK,
    "linear_probe": SERIES[9],
    "lora": SERIES[0],
    "relora": SERIES[1],
    "superrelora": SERIES[4],
    "hira": SERIES[2],
    "qlora": SERIES[3],
    "nf4": SERIES[3],
    "sparselora": SERIES[5],
    "sparse": SERIES[5],
    "contextual": SERIES[5],
    "prune": SERIES[6],
    "magnitude": SERIES[6],
    "galore": SERIES[7],
    "lte": SERIES[8],
    "mhlora": SERIES[6],
    "velora": SERIES[4],
}
"""An arm has the colour of the word that `method` finds in its name, in every figure of every study, and stands in
this order. Methods that share one are in no study together."""

ORDER: dict[str, tuple[Any, ...]] = {"rank": (8, 16, 32, 64, 128)}
"""Values that keep their colour where one method is drawn, even where a scale leaves some of them out."""

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
    dash: Any


def method(arm: str) -> str | None:
    """The method that an arm is a variant of: the longest of `METHODS` that a word of its name begins with.

    The earliest such word counts: `lora_full_batch` is LoRA's, `ranks_full` full fine-tuning's.
    """
    pieces = arm.lower().replace("-", "_").split("_")
    for start in range(len(pieces)):
        rest = "_".join(pieces[start:])
        words = [word for word in METHODS if rest.startswith(word)]
        if words:
            return max(words, key=len)
    return None


def place(arm: Any) -> tuple[int, str]:
    """Where an arm stands among others: in the order of `METHODS`, then by name."""
    found = method(str(arm))
    return (len(METHODS) if found is None else list(METHODS).index(found)), str(arm)


Series = TypeVar("Series", bound=tuple[Mapping[str, Any], Any])


def in_order(series: Sequence[Series]) -> list[Series]:
    """Series by the place of their arm; what has the same place keeps its order."""
    return sorted(series, key=lambda one: place(one[0]["arm"]) if one[0].get("arm") is not None else (-1, ""))


def looks(series: Sequence[Mapping[str, Any]], titles: Mapping[str, str] | None = None) -> list[Look]:
    """A look for each series; the same configuration looks the same in every figure.

    Args:
        series: what makes each one (`{arm: lora, rank: 8}`); full fine-tuning is the dashed one in ink. Where
            several methods are drawn, a colour is a method's; where one is, it is that of another key, such as rank.
        titles: arm -> its name for a reader.
    """
    arms = {str(keys["arm"]) for keys in series if keys.get("arm") is not None}
    compared = len(arms - {"full", "base"}) > 1
    colours = [_colour(keys, compared) for keys in series]
    free = itertools.cycle([colour for colour in SERIES if colour not in colours] or SERIES)
    used: Counter[str] = Counter()
    found = []
    told = _telling(series)
    for keys, colour in zip(series, colours, strict=True):
        chosen = colour or next(free)
        variant = used[chosen]
        used[chosen] += 1
        dash = DASHES[(variant + CONTROLS.get(method(str(keys.get("arm"))) or "", 0)) % len(DASHES)]
        marker = _marker(chosen, variant)
        if chosen == INK and variant == 0:
            marker = "X"
        found.append(Look(_words(keys, compared, titles or {}, told), chosen, marker, dash))
    return found


def _colour(keys: Mapping[str, Any], compared: bool) -> str | None:
    arm = keys.get("arm")
    if arm in ("full", "base"):
        return METHODS[str(arm)]
    if arm is not None and (compared or len(keys) == 1):
        found = method(str(arm))
        return None if found is None else METHODS[found]
    for key, order in ORDER.items():
        if keys.get(key) in order:
            return SERIES[order.index(keys[key])]
    return None


def _marker(colour: str, variant: int) -> str:
    first = SERIES.index(colour) if colour in SERIES else len(MARKERS) - 1
    return MARKERS[(first + 3 * variant) % len(MARKERS)]


def _telling(series: Sequence[Mapping[str, Any]]) -> set[str]:
    """The keys in which series differ; all of them where there is one."""
    keys = {key for one in series for key in one}
    return {key for key in keys if len(series) == 1 or len({one.get(key) for one in series}) > 1}


def _words(keys: Mapping[str, Any], compared: bool, titles: Mapping[str, str], told: set[str]) -> str:
    """The label of a series: its method where several are drawn, then what else tells it apart."""
    arm = keys.get("arm")
    words = [
        value if isinstance(value, str) else f"{NAMES.get(key, key)} {(rate if key == 'lr' else number)(value)}"
        for key, value in keys.items()
        if key in told - {"arm"} and value is not None
    ]
    if arm is not None and (compared or not words or arm in ("full", "base")):
        words.insert(0, titles.get(str(arm), str(arm)))
    return ", ".join(words)


def svg(figure: Figure) -> str:
    """The figure as SVG text; the same figure gives the same bytes."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Writes `path` with the suffixes `.svg` and `.png`."""
    import matplotlib

    with replacing(path.with_suffix(".svg")) as temporary:
        temporary.write_text(svg(figure), encoding="utf-8")
    with replacing(path.with_suffix(".png")) as temporary, matplotlib.rc_context(SETTINGS):
        figure.savefig(temporary, format="png", dpi=160, metadata={"Software": None})
