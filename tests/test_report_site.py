"""The front page and the pages of runs: links lead somewhere, tables sort and filter, nothing is cramped."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from lowrank import registry
from lowrank.catalogue import entries as catalogue
from lowrank.errors import ConfigError
from lowrank.files import REPOSITORY
from lowrank.report.bibliography import PAPERS, bibtex, keywords
from lowrank.report.columns import Columns, protocol_definition
from lowrank.report.site import chain_parts
from lowrank.report.spark import curves_svg, ticks
from lowrank.report.text import duration, number, size
from lowrank.report.views import parse_views
from lowrank.study import load_study, studies
from tests.report_site import ask


def record(site):
    return json.loads((site / "results" / "claims.json").read_text())["studies"]["lr_ratio"]


def test_every_link_between_pages_leads_somewhere(site):
    pages = {path: path.read_text() for path in (site / "reports").rglob("*.html")}
    ids = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in pages.items()}
    followed = 0
    for path, text in pages.items():
        for href in re.findall(r'href="([^"]+)"', text):
            if re.match(r"data:|https:", href):
                continue
            file, _, anchor = href.partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target in pages, (path.name, href)
            assert not anchor or anchor in ids[target], (path.name, href)
            followed += 1
    assert followed > 300


def test_the_front_page_has_every_entry_and_counts_verdicts(site):
    text, found = (site / "reports" / "index.html").read_text(), record(site)
    assert len(re.findall(r"<tr data-study", text)) == len(found["entries"])
    for verdict, count in found["counts"].items():
        assert (f">{verdict}</span> {count}</a>" in text) == (count > 0)
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert "test device" in text
    assert duration(found["cost"]["train_time_s"]) in text
    assert (site / "reports" / "index.html").stat().st_size < 2e6


def test_all_runs_of_all_studies_are_one_tidy_table(site):
    own = pd.read_csv(site / "results" / "studies" / "lr_ratio" / "runs.csv")
    everything = pd.read_csv(site / "results" / "runs.csv")
    assert list(everything.columns) == ["study", *own.columns]
    assert everything.drop(columns="study").equals(own)


def test_a_run_has_a_page_with_its_spec_curves_manifest_and_command(site):
    runs = pd.read_csv(site / "results" / "runs.csv")["run"]
    folder = site / "reports" / "runs" / "lr_ratio"
    assert sorted(path.stem for path in folder.glob("*.html")) == sorted(runs)
    text = (folder / f"{runs[0]}.html").read_text()
    for wanted in (f"lowrank rerun {runs[0]}", "part: full", "c0de", "ab" * 32, "<polyline", "Full fine-tuning"):
        assert wanted in text, wanted
    assert "lowrank export" not in text  # no weights were kept
    links = re.findall(r'href="(runs/lr_ratio/[^"]+)"', (site / "reports" / "lr_ratio.html").read_text())
    assert {Path(link).stem for link in links} == set(runs)


def test_every_published_part_has_its_paper():
    papers = [keywords(entry) for entry in re.findall(r"^@.*?^\}\n", PAPERS.read_text(), re.M | re.S)]
    named = set().union(*papers)
    assert named <= set(registry.parts())
    assert {entry.name for entry in catalogue() if re.search(r"\b20\d\d\b", entry.source)} <= named
    assert re.findall(r"@\w+\{(\w+),", bibtex({"nf4", "full"})) == ["dettmers2023qlora"]
    assert chain_parts([{"arms": {"a": {"chain": "nf4+lora"}, "b": {"chain": [{"part": "hira"}, "velora"]}}}]) == {
        "nf4", "lora", "hira", "velora",
    }  # fmt: skip


def test_columns_are_defined_by_their_protocol():
    columns = Columns({"lora": "LoRA"}, {"test": "score", "speed": "cost"})
    assert columns.definition("test_accuracy") == "Evaluation “test”: accuracy (share)"
    assert (
        columns.definition("speed_step_time_s") == "Evaluation “speed”: step_time_s: median seconds of a training step"
    )
    assert "storages that a training step" in columns.definition("speed_gradient_bytes")
    assert columns.definition("unheard_of") == ""
    assert columns.heading("lora") == "LoRA"
    for path in (REPOSITORY / "lowrank" / "evaluate" / "protocols").glob("[a-z]*.py"):
        for metric in registry.protocol(path.stem).metrics:
            assert protocol_definition(path.stem, metric), (path.stem, metric)


def test_pages_begin_with_what_became_of_the_key_claims(site):
    study, entries = load_study("lr_ratio"), {entry["claim"]: entry for entry in record(site)["entries"]}
    assert study.key_claims
    for page in ("index.html", "lr_ratio.html"):
        (short,) = re.findall(r'<ul class="answers".*?</ul>', (site / "reports" / page).read_text(), re.DOTALL)[:1]
        found = re.findall(r'<span class="verdict [^>]*>([^<]*)</span> <q>', short)
        assert found == [entries[name]["verdict"] for name in study.key_claims]
    with pytest.raises(ConfigError, match="key_claims: unknown claim 'C1x'"):
        parse_views({**study.model_dump(), "key_claims": ["C1x"]}, "lr_ratio")


@pytest.mark.parametrize("name", studies())
def test_the_key_figure_is_a_figure(name):
    record = load_study(name)
    assert record.key_figure is None or record.key_figure in record.figures
    with pytest.raises(ConfigError, match="key_figure: unknown figure 'fig0'"):
        parse_views({**record.model_dump(), "key_figure": "fig0"}, name)


def test_numbers_for_a_reader():
    assert [number(value) for value in (9999, 739_586, 2e7, 1.5e-5)] == ["9999", "739,586", "20,000,000", "1.5e-5"]
    assert [size(value) for value in (0, 1023, 267_824_136, 3 * 2**40, None)] == [
        "0 B", "1023 B", "255.4 MiB", "3072.0 GiB", "–",
    ]  # fmt: skip
    assert [duration(value) for value in (41.6, 200, 18_720)] == ["42 s", "3 min 20 s", "5 h 12 min"]


def test_small_curves_are_drawn_to_scale():
    text = curves_svg({"a": [(0, 0.0), (10, 1.0), (20, float("nan"))], "b": []}, "step", "label")
    (points,) = re.findall(r'<polyline points="([^"]+)"', text)
    (x0, y0), (x1, y1) = (tuple(map(float, point.split(","))) for point in points.split())
    assert x0 < x1
    assert y0 > y1  # up is more
    assert curves_svg({"a": [(0, float("nan"))]}, "step", "label") == ""
    assert ticks(0.1, 1.07) == pytest.approx([0.5, 1.0])


def luminance(colour):
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_from_its_ground(theme):
    css = (REPOSITORY / "lowrank" / "report" / "page.css").read_text()
    block = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[theme]
    colours = {
        name: value if len(value) == 7 else value + value[1:]
        for name, value in re.findall(r"--([\w-]+): (#\w+)", block)
    }
    for name in ("ink", "muted", "link"):
        assert contrast(colours[name], colours["paper"]) >= 4.5
        assert contrast(colours[name], colours["ground"]) >= 4.5
    for name in ("good", "bad", "open", "quiet"):
        assert contrast(colours[name], colours[f"{name}-ground"]) >= 4.5, name
    for index in range(10):  # names of series are small text
        assert contrast(colours[f"series-{index}"], colours["paper"]) >= 3, index


@pytest.mark.browser
@pytest.mark.parametrize("width", [375, 1280])
def test_no_page_scrolls_sideways(site, tmp_path, width):
    run = sorted((site / "reports" / "runs" / "lr_ratio").glob("*.html"))[0]
    for path in (site / "reports" / "lr_ratio.html", site / "reports" / "index.html", run):
        assert ask(path, "return d.documentElement.scrollWidth", tmp_path, width) <= width, path.name


@pytest.mark.browser
def test_tables_sort_by_number_and_tell_what_a_column_means(site, tmp_path):
    script = """
      const table = d.querySelector('#t-fig1 table'), heads = [...table.tHead.rows[0].cells];
      const column = heads.findIndex((head) => head.textContent === 'best validation loss');
      const read = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[column].dataset.value));
      const button = heads[column].querySelector('button');
      button.click(); const up = read(); button.click(); const down = read();
      return [up, down, heads[column].getAttribute('aria-sort'), d.querySelector('#t-fig1 .definition').textContent];
    """
    up, down, state, told = ask(site / "reports" / "lr_ratio.html", script, tmp_path)
    assert up == sorted(up)
    assert down == sorted(down, reverse=True)
    assert len(set(up)) > 5
    assert state == "descending"
    assert told.startswith("best validation loss: Lowest over training")


@pytest.mark.browser
def test_the_ledger_is_filtered_and_a_link_opens_its_row(site, tmp_path):
    script = """
      const form = d.querySelector('form.filters');
      form.elements.verdict.value = 'not comparable'; form.elements.words.value = 'LAPTOP F1';
      form.dispatchEvent(new w.Event('input'));
      const left = [...d.querySelectorAll('#ledger tbody tr:not([hidden])')];
      const told = form.querySelector('output').textContent;
      return [left.map((row) => row.dataset.verdict), left.map((row) => row.textContent), told];
    """
    verdicts, texts, told = ask(site / "reports" / "index.html", script, tmp_path)
    total = len(record(site)["entries"])
    assert told == f"{len(verdicts)} of {total} shown"
    assert set(verdicts) == {"not comparable"}
    assert all("laptop" in text and "F1" in text for text in texts)
    script = "const fold = d.querySelector('#t-fig1'); return [fold.open, d.querySelector('#t-fig2').open]"
    assert ask(site / "reports" / "lr_ratio.html", script, tmp_path, anchor="#t-fig1-2") == [True, False]
