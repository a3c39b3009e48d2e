"""What flows through a layer, read from the modules that the code builds, and drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from lowrank.report.context import Context, figure, table
from lowrank.report.frame import need_columns
from lowrank.report.kinds import CountRow, Dataflow, DataflowFigure
from lowrank.report.style import INK, MUTED, PAPER, SERIES, SETTINGS

if TYPE_CHECKING:
    from torch import Tensor, nn

INPUT, BASE, ADAPTER, KEPT, OUTPUT = "input", "base", "adapter", "kept", "output"
ADDED, INSIDE = "added to the product", "multiplied into the weight"


@table(Dataflow)
def dataflow(context: Context, name: str) -> pd.DataFrame:
    """The tensors of the first adapted layer, with shapes, types and bytes; N is the number of tokens.

    role: input, base (stored weight, and what decodes it), adapter (trained factors), kept (what stands in for x until
    the backward pass, where that is not x itself), output. way: how the factors enter, by whether they compute the base
    product themselves.
    """
    view, place = context.table_view(Dataflow, name)
    return pd.DataFrame([row for asked in view.rows for row in _layer(asked, place)])


def _layer(asked: CountRow, place: str) -> list[dict[str, Any]]:
    # Here, since only such a table needs torch.
    import torch

    from lowrank.methods.adapted import AdaptedLinear, features
    from lowrank.methods.chain import Chain
    from lowrank.models.load import skeleton
    from lowrank.report.analytic import parse_chain
    from lowrank.spec import ModelSpec
    from lowrank.targets import is_linear

    spec = ModelSpec(card=asked.card, layers=asked.layers, dtype=asked.dtype)
    model = skeleton(spec, asked.task, asked.labels)
    Chain.build(parse_chain(asked.chain, f"{place}: {asked.label}")).attach(model.train())
    modules = list(model.named_modules())
    wrapped = [(path, layer) for path, layer in modules if isinstance(layer, AdaptedLinear)]
    path, layer = wrapped[0] if wrapped else next((path, layer) for path, layer in modules if is_linear(layer))
    base = layer.base if isinstance(layer, AdaptedLinear) else layer
    inside = isinstance(layer, AdaptedLinear) and layer.base_product is not None
    into, out = features(layer)
    rows = [{"tensor": "x", "role": INPUT, "shape": f"N × {into}"}]
    rows += [_row(name, BASE, tensor) for name, tensor in _tensors(base)]
    if isinstance(layer, AdaptedLinear):
        rows += [_row(name, ADAPTER, p) for one in layer.adapters.values() for name, p in one.named_parameters()]
        if layer.keep is not None:
            kept = layer.keep.compress(torch.empty(1, into))
            rows.append({"tensor": "z", "role": KEPT, "shape": f"N × {kept.shape[-1]}"})
            rows += [_row(name, KEPT, t) for name, t in vars(layer.keep).items() if isinstance(t, torch.Tensor)]
    rows.append({"tensor": "y", "role": OUTPUT, "shape": f"N × {out}"})
    way = "" if not isinstance(layer, AdaptedLinear) or not layer.adapters else INSIDE if inside else ADDED
    return [{"label": asked.label, "layer": path, **row, "way": way} for row in rows]


def _tensors(base: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers of a base layer, and the state of quantised ones."""
    from lowrank.measure.storages import tensors_in

    found = [*base.named_parameters(), *base.named_buffers()]
    states = [(name, p.quant_state) for name, p in found if hasattr(p, "quant_state")]
    return [*found, *((f"{name} state", tensor) for name, state in states for tensor in tensors_in(state))]


def _row(name: str, role: str, tensor: Tensor) -> dict[str, Any]:
    return {
        "tensor": name,
        "role": role,
        "shape": " × ".join(map(str, tensor.shape)) or "1",
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "bytes": tensor.numel() * tensor.element_size(),
        "trains": "yes" if tensor.requires_grad else "no",
    }


@figure(DataflowFigure)
def draw(context: Context, name: str) -> Figure:
    """A panel per layer: x on the left, its weight above, adapters or what is kept of x below, y on the right."""
    view, place = context.figure_view(DataflowFigure, name)
    found = context.table(view.table)
    need_columns(found, ["label", "tensor", "role", "shape", "way"], place)
    panels = [(str(label), rows.to_dict("records")) for label, rows in found.groupby("label", sort=False)]
    with matplotlib.rc_context(SETTINGS):
        # One below the other: beside each other their text is too small to read where a page is narrow.
        drawing = Figure(figsize=(5.0, 2.5 * len(panels)), layout="constrained")
        for index, (label, rows) in enumerate(panels, 1):
            axes = drawing.add_subplot(len(panels), 1, index)
            axes.set_axis_off()
            axes.set_xlim(0, 10)
            axes.set_ylim(1, 10)
            axes.set_title(label, loc="left", fontsize=11)
            _panel(axes, rows)
    return drawing


def _panel(axes: Axes, rows: list[dict[Any, Any]]) -> None:
    role = {kind: [row for row in rows if row["role"] == kind] for kind in (INPUT, BASE, ADAPTER, KEPT, OUTPUT)}
    added = bool(role[ADAPTER]) and rows[0]["way"] != INSIDE
    _box(axes, 1.0, 5.0, 1.8, role[INPUT], MUTED)
    _box(axes, 4.5, 7.4, 4.1, role[BASE], INK)
    _box(axes, 9.0, 5.0, 1.8, role[OUTPUT], MUTED)
    _arrow(axes, (1.6, 5.6), (2.4, 7.0))
    if not added:
        _arrow(axes, (6.6, 7.0), (8.4, 5.7))
    if role[ADAPTER]:
        _box(axes, 4.5, 2.4, 4.1, role[ADAPTER], SERIES[0])
    if added:
        _arrow(axes, (1.6, 4.4), (2.4, 2.8))
        _arrow(axes, (6.6, 2.8), (7.1, 4.5))
        _arrow(axes, (6.6, 7.0), (7.1, 5.5))
        axes.text(7.3, 5.0, "+", fontsize=16, ha="center", va="center", color=INK)
        _arrow(axes, (7.55, 5.0), (8.05, 5.0))
    elif role[ADAPTER]:
        _arrow(axes, (4.5, 3.5), (4.5, 6.2))
        axes.text(4.75, 4.85, "⊙", fontsize=16, va="center", color=INK)
    elif role[KEPT]:
        _box(axes, 4.5, 2.8, 4.1, role[KEPT], SERIES[1])
        axes.text(4.5, 1.2, "kept for the backward pass", fontsize=8, ha="center", color=MUTED)
        _arrow(axes, (1.6, 4.4), (2.4, 3.2))


def _box(axes: Axes, x: float, y: float, width: float, rows: list[dict[Any, Any]], colour: str) -> None:
    """One box for the tensors of a role: name, shape and type of each."""
    lines = [_line(row) for row in rows]
    height = 0.55 + 0.76 * len(lines)
    corner = (x - width / 2, y - height / 2)
    axes.add_patch(
        FancyBboxPatch(corner, width, height, boxstyle="round,pad=0.05,rounding_size=0.2", fc=PAPER, ec=colour, lw=1.2)
    )
    axes.text(x, y, "\n".join(lines), fontsize=9, ha="center", va="center", color=INK, linespacing=1.3)


def _line(row: dict[Any, Any]) -> str:
    kind = row.get("dtype")
    return f"{row['tensor']} {row['shape']}" + (f" {kind}" if isinstance(kind, str) else "")


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": MUTED, "lw": 1.0})
