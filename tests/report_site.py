"""The site of one made-up study, and Chromium to look at it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from lowrank.files import write_json
from lowrank.report.build import build_study
from lowrank.report.opened import open_study
from lowrank.report.page import render_study
from lowrank.report.site import render_index
from lowrank.report.views import parse_views
from lowrank.study import STUDIES
from lowrank.yaml_files import read_yaml
from tests.report_runs import make_runs, write_runs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--allow-file-access-from-files", "--enable-logging=stderr",
         "--window-size=1600,900", "--virtual-time-budget=3000", "--dump-dom")  # fmt: skip


def build_site(root: Path) -> Path:
    """Pages of lr_ratio from made-up runs; one run has the files that training writes."""
    folder, runs = root / "results" / "studies" / "lr_ratio", root / "runs"
    frame = make_runs(pairs={8: (8, 32), 128: (128,)}, long=False)
    csv = write_runs(frame, folder, runs)
    first = runs / frame["run"][0]
    write_json(first / "spec.json", {"run": first.name, "spec": {"chain": [{"part": "full"}], "seed": 42}})
    write_json(
        first / "eval" / "test-0.json", {"evaluation": "test-0", "spec": {"split": "test"}, "metrics": {"loss": 1}}
    )
    write_json(
        first / "manifest.json", {"files": {"spec.json": "ab" * 32}, "provenance": {"threads": 1}, "code": "c0de"}
    )
    views = parse_views(read_yaml(STUDIES / "lr_ratio.yaml"), "lr_ratio")
    build_study(open_study("lr_ratio", views, csv, folder, "laptop", runs=runs))
    render_study("lr_ratio", folder, root / "reports" / "lr_ratio.html", "laptop", runs=runs)
    render_index(["lr_ratio"], folder.parent, root / "reports" / "index.html", "laptop", results=root / "results")
    return root


def ask(page: Path, script: str, folder: Path, width: int = 1280, anchor: str = "", *, dark: bool = False) -> Any:
    """What a script finds out about a page in Chromium; `d` is its document, `w` its window.

    Raises:
        AssertionError: the page wrote to the console, or asked for something beside itself.
    """
    assert CHROMIUM, "no Chromium here: install chromium, or leave out the tests marked browser"
    frame = folder / "frame.html"
    frame.write_text(
        f'<iframe id="f" src="{page.as_uri()}{anchor}" style="width:{width}px;height:800px;border:0"></iframe>'
        "<script>onload = () => { const w = f.contentWindow, d = f.contentDocument;"
        "document.title = 'found ' + JSON.stringify((() => {" + script + "})()); }</script>"
    )
    theme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [CHROMIUM, *FLAGS, theme, f"--user-data-dir={folder / 'profile'}", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr
    found = re.search(r"<title>found (.*?)</title>", done.stdout, re.DOTALL)
    assert found, done.stdout[-500:]
    return json.loads(found[1])
