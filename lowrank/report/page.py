"""Pages that stand alone: a notebook executed and dressed, and the index of all studies."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from lowrank.errors import LowrankError
from lowrank.files import REPOSITORY, read_json, read_yaml, write_text
from lowrank.report.html import badge
from lowrank.report.inline import inline_svg
from lowrank.report.ledger import REPORTED
from lowrank.report.verdicts import VERDICTS

NOTEBOOKS = REPOSITORY / "workflow" / "notebooks"
STUDY_FILES = REPOSITORY / "workflow" / "studies"
HERE = Path(__file__).parent


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
    executed = _execute(notebook or NOTEBOOKS / f"{study}.ipynb", parameters)
    raw = read_yaml(study_file)
    page = _template("page").render(
        title=raw["title"], document=raw.get("document", ""), source=raw.get("source", ""), study=study, scale=scale,
        css=_css(), cells=_cells(executed), index="index.html"
    )  # fmt: skip
    write_text(out, page)


def render_index(studies: list[str], folder: Path, out: Path, scale: str, *, study_files: Path = STUDY_FILES) -> None:
    """Writes the front page: each study's question, first figure and verdicts.

    Args:
        studies: names, in order.
        folder: holds one folder of results per study.
        out: the page.
        scale: smoke, laptop or paper.
        study_files: where the studies' YAML lies.
    """
    cards = []
    for study in studies:
        raw = read_yaml(study_files / f"{study}.yaml")
        record = read_json(folder / study / "claims.json")
        figures = list((raw.get("figures") or {}).items())
        drawing = ""
        if figures:
            name, view = figures[0]
            text = (folder / study / f"{name}.svg").read_text(encoding="utf-8")
            drawing = inline_svg(text, f"{study}-{name}", view["title"])
        counts = [(badge(verdict), record["counts"][verdict]) for verdict in VERDICTS if record["counts"][verdict]]
        cards.append({"study": study, "raw": raw, "drawing": drawing, "counts": counts, "runs": record["runs"]})
    write_text(out, _template("index").render(cards=cards, scale=scale, css=_css()))


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
    from nbconvert.filters.markdown_mistune import markdown2html_mistune

    cells: list[dict[str, str]] = []
    waiting: list[str] = []  # sources of cells that show nothing go with the next that does
    for cell in executed.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            continue  # absolute paths of one machine; the notebook's own defaults say as much
        if cell.cell_type == "markdown":
            cells.append({"kind": "prose", "html": markdown2html_mistune(cell.source)})
        elif cell.cell_type == "code" and cell.source.strip():
            waiting.append(cell.source)
            if cell.outputs:
                shown = "".join(_output(output) for output in cell.outputs)
                cells.append({"kind": "code", "html": shown, "source": "\n\n".join(waiting)})
                waiting = []
    return cells


def _output(output: Any) -> str:
    from lowrank.report.html import escape

    if output.output_type == "stream":
        return f"<pre>{escape(output.text)}</pre>"
    data = output.get("data", {})
    return str(data["text/html"]) if "text/html" in data else f"<pre>{escape(data.get('text/plain', ''))}</pre>"


@functools.cache
def _template(name: str) -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(f"{name}.html")


def _css() -> str:
    return (HERE / "page.css").read_text(encoding="utf-8")
