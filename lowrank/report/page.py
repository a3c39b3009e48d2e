"""A study's page, which stands alone: its notebook executed and dressed, and a page for each of its runs."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from lowrank.errors import LowrankError
from lowrank.files import REPOSITORY, read_json, write_text
from lowrank.report.frame import read_runs
from lowrank.report.html import escape, template
from lowrank.report.ledger import REPORTED
from lowrank.report.run_page import render_runs
from lowrank.report.views import parse_views
from lowrank.yaml_files import read_yaml

NOTEBOOKS = REPOSITORY / "workflow" / "notebooks"
STUDY_FILES = REPOSITORY / "workflow" / "studies"


def render_study(
    study: str,
    folder: Path,
    out: Path,
    scale: str,
    *,
    notebook: Path | None = None,
    study_file: Path | None = None,
    reported: Path = REPORTED,
    runs: Path = Path("results/runs"),
) -> None:
    """Executes a study's notebook and writes its page.

    Args:
        study: its name.
        folder: where `lowrank tables` wrote.
        out: the page.
        scale: smoke, laptop or paper.
        notebook: `workflow/notebooks/<study>.ipynb` where None.
        study_file: `workflow/studies/<study>.yaml` where None.
        reported: where the published numbers lie.
        runs: where run folders lie.

    Raises:
        LowrankError: a cell failed; names it. No page is left, not even an older one.
    """
    out.unlink(missing_ok=True)
    study_file = study_file or STUDY_FILES / f"{study}.yaml"
    parameters = {
        "study": study,
        "scale": scale,
        "folder": str(folder),
        "study_file": str(study_file),
        "reported": str(reported),
        "runs": str(runs),
    }
    cells = _cells(_execute(notebook or NOTEBOOKS / f"{study}.ipynb", parameters))
    raw = read_yaml(study_file)
    cells += _tables_left_out(cells, parameters)
    page = template("page").render(
        title=raw["title"], document=raw.get("document", ""), source=raw.get("source", ""), study=study, scale=scale,
        cells=cells, index="index.html"
    )  # fmt: skip
    write_text(out, page)
    columns = parse_views(raw, study).columns()
    rows = read_runs(folder / "runs.csv").to_dict("records")
    render_runs(study, raw["title"], rows, runs, out.parent / "runs" / study, scale, columns)


def _tables_left_out(cells: list[dict[str, str]], parameters: dict[str, str]) -> list[dict[str, str]]:
    """The tables that verdicts rest on and the notebook does not show; a link to one must lead somewhere."""
    text = "".join(cell["html"] for cell in cells)
    record = read_json(Path(parameters["folder"]) / "claims.json")
    wanted = {entry["table"] for entry in record["entries"] if entry["table"] is not None}
    absent = [name for name in sorted(wanted) if f'id="t-{name}"' not in text]
    if not absent:
        return []
    from lowrank.report.show import Report

    shown = Report(**parameters).tables(*absent)
    return [{"kind": "prose", "html": f"<h2>Further tables</h2>{shown._repr_html_()}"}]


def _execute(notebook: Path, parameters: dict[str, str]) -> Any:
    import papermill
    from papermill.exceptions import PapermillExecutionError

    with tempfile.TemporaryDirectory() as folder:
        try:
            return papermill.execute_notebook(
                str(notebook),
                str(Path(folder) / notebook.name),
                parameters,
                kernel_name="python3",
                progress_bar=False,
                log_output=False,
            )
        except PapermillExecutionError as error:
            where = f"{notebook.name}: cell {error.exec_count}"
            raise LowrankError(f"{where} failed: {error.ename}: {error.evalue}\n{error.source}") from None


def _cells(executed: Any) -> list[dict[str, str]]:
    """The cells as HTML: prose, and what code showed with the code folded beside it."""
    import mistune

    prose = mistune.create_markdown(escape=False)
    cells: list[dict[str, str]] = []
    waiting: list[str] = []  # sources of cells that show nothing go with the next that does
    for cell in executed.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            continue  # absolute paths of one machine; the notebook's own defaults say as much
        if cell.cell_type == "markdown":
            cells.append({"kind": "prose", "html": str(prose(cell.source))})
        elif cell.cell_type == "code" and cell.source.strip():
            waiting.append(cell.source)
            if cell.outputs:
                shown = "".join(_output(output) for output in cell.outputs)
                cells.append({"kind": "code", "html": shown, "source": "\n\n".join(waiting)})
                waiting = []
    return cells


def _output(output: Any) -> str:
    if output.output_type == "stream" and output.name == "stderr":
        print(output.text, file=sys.stderr)  # warnings of libraries are for the log
        return ""
    if output.output_type == "stream":
        return f"<pre>{escape(output.text)}</pre>"
    data = output.get("data", {})
    return str(data["text/html"]) if "text/html" in data else f"<pre>{escape(data.get('text/plain', ''))}</pre>"
