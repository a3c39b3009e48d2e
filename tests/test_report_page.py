"""Pages: whole, self-contained, honest about failures; and the rules that notebooks keep."""

import ast
import re
from html.parser import HTMLParser

import nbformat
import pytest

from lowrank.errors import LowrankError
from lowrank.files import REPOSITORY
from lowrank.report.html import rows_fragment
from lowrank.report.inline import inline_svg
from lowrank.report.page import NOTEBOOKS, render_study
from lowrank.study import STUDIES
from lowrank.yaml_files import read_yaml

NOTEBOOK_FILES = sorted(NOTEBOOKS.glob("*.ipynb"))


def pages(site):
    runs = sorted((site / "reports" / "runs" / "lr_ratio").glob("*.html"))
    return [site / "reports" / "lr_ratio.html", site / "reports" / "index.html", runs[0], runs[-1]]


class Page(HTMLParser):
    """Collects ids, references and unclosed elements."""

    VOID = {"meta", "link", "br", "img", "input", "hr", "use", "path", "rect", "stop"}

    def __init__(self, text):
        super().__init__()
        self.ids, self.references, self.open, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, found))
        if "id" in found:
            self.ids.append(found["id"])
        self.references += [found[name] for name in ("src", "href") if name in found]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag in self.VOID:
            return
        assert self.open
        assert self.open.pop() == tag


def test_pages_are_well_formed_and_ids_unique(site):
    for path in pages(site):
        page = Page(path.read_text())
        assert page.open == []
        assert len(page.ids) == len(set(page.ids))
        inside = {reference[1:] for reference in page.references if reference.startswith("#")}
        assert inside <= set(page.ids)


def test_pages_ask_the_network_for_nothing(site):
    for path in pages(site):
        text = path.read_text()
        page = Page(text)
        assert re.findall(r"<script[^>]*>", text) == ["<script>"]  # the page's own, and nothing that it fetches
        assert "fetch(" not in text
        assert "default-src 'none'" in text
        assert "@import" not in text
        assert not re.search(r"url\((?!#)", text)
        loading = [found for tag, found in page.tags if tag in ("img", "link", "iframe", "object", "source")]
        assert loading == []


def test_page_shows_question_verdicts_figures_and_commands(site):
    text = (site / "reports" / "lr_ratio.html").read_text()
    study = read_yaml(STUDIES / "lr_ratio.yaml")
    for name in study["figures"]:
        assert f'<figure id="{name}">' in text, name
    for name in study["claims"]:
        assert f'<span class="id">{"output-keys" if name == "output" else name}</span>' in text, name
    assert "snakemake --cores all --config scale=laptop -- lr_ratio" in text
    assert "not comparable" in text
    assert str(REPOSITORY) not in text
    assert text.count('<details class="code">') <= 10


def test_a_failed_cell_leaves_no_page(tmp_path):
    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "p", "language": "python"}}
    )
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.cells = [nbformat.v4.new_code_cell("raise ValueError('broken on purpose')")]
    nbformat.write(notebook, tmp_path / "bad.ipynb")
    out = tmp_path / "page.html"
    out.write_text("an older page")
    with pytest.raises(LowrankError, match=r"bad\.ipynb: cell .* failed: ValueError: broken on purpose"):
        render_study("lr_ratio", tmp_path, out, "laptop", notebook=tmp_path / "bad.ipynb")
    assert not out.exists()


@pytest.mark.parametrize("path", NOTEBOOK_FILES, ids=lambda path: path.stem)
def test_notebooks_import_call_and_show(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) <= 10
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1
    for cell in cells:
        assert cell.outputs == []
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.FunctionDef | ast.Lambda | ast.For | ast.While | ast.comprehension | ast.If)


def test_values_are_escaped():
    text = rows_fragment([{"cause": "<script>alert(1)</script>"}], ["cause"], caption='a "b" <c>')
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_inline_figures_share_no_id_and_follow_the_theme():
    text = '<?xml version="1.0"?><svg width="1pt" height="2pt" viewBox="0 0 1 2"><defs><path id="a"/></defs>'
    text += '<use xlink:href="#a" style="fill: #1c2126; clip-path: url(#a)"/></svg>'
    found = inline_svg(text, "fig1", 'x "y"')
    assert 'id="fig1-a"' in found
    assert 'href="#fig1-a"' in found
    assert "url(#fig1-a)" in found
    assert "var(--ink)" in found
    assert 'aria-label="x &quot;y&quot;"' in found
    assert "<svg viewBox" in found
