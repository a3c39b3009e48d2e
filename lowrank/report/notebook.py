"""Runs a notebook's cells, one after another, in this process: what they show is a page.

A kernel would be a second interpreter, which imports everything again.
"""

from __future__ import annotations

import ast
import contextlib
import html
import io
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowrank.errors import LowrankError
from lowrank.files import read_json

PARAMETERS = "parameters"
"""The tag of the cell whose values are replaced."""


def execute(notebook: Path, parameters: Mapping[str, Any]) -> list[dict[str, str]]:
    """The cells of a notebook as HTML.

    Args:
        notebook: the file; one of its cells has the tag `parameters`.
        parameters: values that take the place of those that this cell sets.

    Returns:
        `kind` (prose or code), `html`, and of code its `source`, with that of the cells before it that show nothing.

    Raises:
        LowrankError: a cell failed; names it.
    """
    import mistune

    prose = mistune.create_markdown(escape=False)
    names: dict[str, Any] = {"__name__": "__main__"}
    cells: list[dict[str, str]] = []
    waiting: list[str] = []
    for number, cell in enumerate(read_json(notebook)["cells"], start=1):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            cells.append({"kind": "prose", "html": str(prose(source))})
        elif cell["cell_type"] == "code" and source.strip():
            try:
                shown = _run(source, names)
            except Exception as error:
                where = f"{notebook.name}: cell {number} failed: {type(error).__name__}: {error}"
                raise LowrankError(f"{where}\n{traceback.format_exc()}") from None
            if PARAMETERS in cell["metadata"].get("tags", []):
                names |= parameters
            waiting.append(source)
            if shown:
                cells.append({"kind": "code", "html": shown, "source": "\n\n".join(waiting)})
                waiting = []
    return cells


def _run(source: str, names: dict[str, Any]) -> str:
    """Runs a cell; what it prints, and the value of its last line, as HTML."""
    tree, value = ast.parse(source), None
    last = tree.body[-1]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        if isinstance(last, ast.Expr):
            exec(compile(ast.Module(tree.body[:-1], []), "<cell>", "exec"), names)
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
        else:
            exec(compile(tree, "<cell>", "exec"), names)
    text = f"<pre>{html.escape(printed.getvalue())}</pre>" if printed.getvalue() else ""
    if value is None:
        return text
    return text + (value._repr_html_() if hasattr(value, "_repr_html_") else f"<pre>{html.escape(repr(value))}</pre>")
