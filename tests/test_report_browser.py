"""The pages in a browser, as a reader has them: both themes, a phone, a keyboard, paper."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report_site import ask

pytestmark = pytest.mark.browser

CONTRAST = """
  const linear = (part) => (part /= 255) <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  const read = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = read(colour).map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = w.getComputedStyle(node).backgroundColor, parts = read(colour);
      if (parts.length < 4 || parts[3] > 0) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const faint = [];
  let seen = 0;
  d.querySelectorAll('details').forEach((fold) => { fold.open = true; });
  for (const node of d.querySelectorAll('main *')) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.getClientRects().length) continue;
    const style = w.getComputedStyle(node);
    const pair = [light(node.closest('svg') ? style.fill : style.color), light(ground(node))].sort((a, b) => a - b);
    const ratio = (pair[1] + 0.05) / (pair[0] + 0.05);
    seen += 1;
    if (ratio < 4.5) faint.push(node.tagName + ' ' + node.textContent.trim().slice(0, 30) + ' ' + ratio.toFixed(2));
  }
  return [seen, w.matchMedia('(prefers-color-scheme: dark)').matches, faint];
"""


def pages(site: Path) -> list[Path]:
    reports = site / "reports"
    return [reports / "index.html", reports / "lr_ratio.html", min((reports / "runs" / "lr_ratio").glob("*.html"))]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_stands_out_from_what_lies_behind_it(site: Path, tmp_path: Path, dark: bool) -> None:
    for page in pages(site):
        seen, is_dark, faint = ask(page, CONTRAST, tmp_path, dark=dark)
        assert seen > 20, page.name
        assert is_dark == dark
        assert faint == [], page.name


def test_what_is_pressed_can_be_reached_by_keyboard_and_is_named(site: Path, tmp_path: Path) -> None:
    script = """
      const named = (node) => (node.textContent || node.getAttribute('aria-label') || '').trim() || node.labels?.length;
      const pressed = [...d.querySelectorAll('a[href], button, summary, select, input')];
      const scrolled = [...d.querySelectorAll('.scroll')];
      const heads = [...d.querySelectorAll('main h1, main h2, main h3')].map((node) => Number(node.tagName[1]));
      return [
        pressed.filter((node) => node.tabIndex < 0 || !named(node)).map((node) => node.outerHTML.slice(0, 80)),
        scrolled.filter((node) => node.tabIndex !== 0 || !node.getAttribute('aria-label')).length,
        [...d.querySelectorAll('svg')].filter((node) => !node.closest('svg[role=img][aria-label]')).length,
        [...d.querySelectorAll('th')].filter((node) => !node.scope).length,
        heads.filter((level, index) => level > (heads[index - 1] ?? 0) + 1).length,
        [d.documentElement.lang, d.querySelectorAll('main').length, d.querySelectorAll('h1').length],
      ];
    """
    for page in pages(site):
        assert ask(page, script, tmp_path) == [[], 0, 0, 0, 0, ["en", 1, 1]], page.name


def test_a_tap_on_a_heading_tells_what_it_means_on_a_phone(site: Path, tmp_path: Path) -> None:
    script = """
      const fold = d.querySelector('#t-fig1'); fold.open = true;
      const button = [...fold.querySelectorAll('th button')].find((one) => one.textContent === 'learning rate');
      button.click();
      const told = fold.querySelector('.definition');
      return [told.textContent, told.getAttribute('role'), told.getClientRects().length > 0];
    """
    told, role, visible = ask(site / "reports" / "lr_ratio.html", script, tmp_path, 375)
    assert told.startswith("learning rate: Step size of the optimizer")
    assert (role, visible) == ("status", True)


def test_a_count_on_the_front_page_filters_the_ledger_and_every_row_leads_on(site: Path, tmp_path: Path) -> None:
    script = """
      const link = d.querySelector('.holds a[data-verdict="not resolved"]');
      link.click();
      const left = [...d.querySelectorAll('#ledger tbody tr:not([hidden])')];
      const behind = left.map((row) => [...row.querySelectorAll('a')].map((one) => one.getAttribute('href')));
      d.querySelector('form.filters').reset();
      return [Number(link.textContent), left.length, behind];
    """
    count, left, behind = ask(site / "reports" / "index.html", script, tmp_path)
    assert count == left > 0
    for entry, *runs in behind:
        assert entry.startswith("lr_ratio.html#")
        assert runs, "no run behind an entry that runs left open"
        assert all((site / "reports" / run).is_file() for run in runs)


def test_on_paper_folds_are_open_and_controls_are_gone(site: Path, tmp_path: Path) -> None:
    script = """
      w.dispatchEvent(new w.Event('beforeprint'));
      const rules = [...d.styleSheets[0].cssRules].filter((rule) => rule.media?.mediaText === 'print');
      const inside = [...rules[0].cssRules].map((rule) => rule.cssText);
      for (const rule of inside) d.styleSheets[0].insertRule(rule, d.styleSheets[0].cssRules.length);
      const shown = (query) => [...d.querySelectorAll(query)].filter((node) => node.getClientRects().length).length;
      const gone = ['details:not(.code, .again):not([open])', 'nav', '.definition', '.again'].map(shown);
      return [...gone, shown('table') > 5];
    """
    assert ask(site / "reports" / "lr_ratio.html", script, tmp_path) == [0, 0, 0, 0, True]
