"""The pages of the documentation: their blocks, commands and links, and a checkout with their worked examples."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from tests.workflow_lab import ROOT, Lab

PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "config" / "README.md", *(ROOT / "docs").glob("*.md")],
    key=lambda path: path.name,
)
OTHERS = [
    ROOT / "CHANGELOG.md",
    *(ROOT / folder / "README.md" for folder in ("benchmarks", "envs", "resources/smoke")),
]
"""Pages whose links are followed too."""

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return [text for name, text in FENCE.findall(page.read_text()) if name == language]


def inline(page: Path) -> list[str]:
    """What stands between single backticks, outside blocks."""
    return INLINE.findall(FENCE.sub("", page.read_text()))


def commands(page: Path) -> list[list[str]]:
    """Every command of the page's `bash` blocks, as words, without comments."""
    return commands_in(page.read_text())


def commands_in(text: str, language: str = "bash") -> list[list[str]]:
    """The same for a piece of a page, or for blocks in another language."""
    blocks = [block for name, block in FENCE.findall(text) if name == language]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def submitted() -> list[str]:
    """The calls of Snakemake in plain blocks, made on a cluster; those that name a placeholder are left out."""
    told = [words for page in PAGES for words in commands_in(page.read_text(), "") if words[0] == "snakemake"]
    return [call for call in dict.fromkeys(map(shlex.join, told)) if "<" not in call]


def in_passing(page: Path) -> list[str]:
    """What stands between single backticks, in indented lines and in plain blocks."""
    plain = [line.split(" #")[0].strip() for text in blocks(page, "") for line in text.splitlines()]
    indented = re.findall(r"^ {4}(\S.*?)(?: #.*)?$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return [*inline(page), *plain, *indented]


def all_commands(tool: str) -> list[str]:
    """The different commands of all pages that call a tool, in blocks, settings of the environment left out."""
    found = {}
    for page in [*PAGES, *OTHERS]:
        for words in commands(page):
            rest = words[sum(1 for _ in _settings(words)) :]
            if rest[0] == tool:
                found[shlex.join(rest)] = None
    return list(found)


def _settings(words: list[str]) -> list[str]:
    """Leading `NAME=value` words."""
    count = next((i for i, word in enumerate(words) if not re.fullmatch(r"[A-Z_]+=\S*", word)), len(words))
    return words[:count]


def settings(page: Path) -> list[str]:
    """Names of the environment's variables that the page's commands set."""
    return [word.split("=")[0] for words in commands(page) for word in _settings(words)]


def links(page: Path) -> list[str]:
    """Relative links and images, with their anchors."""
    text = FENCE.sub("", page.read_text())
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def script(name: str) -> ModuleType:
    """A script of `docs/`, imported."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


METHOD_PAGE, STUDY_PAGE = ROOT / "docs" / "add-a-method.md", ROOT / "docs" / "add-a-study.md"


def worked_examples(folder: Path) -> Lab:
    """A checkout of its own in which both worked examples were followed."""
    lab = Lab.new(folder)
    method, _ = blocks(METHOD_PAGE, "python")
    (folder / "lowrank" / "methods" / "vera.py").write_text(method)
    (arm,) = blocks(METHOD_PAGE, "yaml")
    path = folder / "workflow" / "studies" / "lr_ratio.yaml"
    path.write_text(yaml.safe_dump(_merged(yaml.safe_load(path.read_text()), yaml.safe_load(arm)), sort_keys=False))
    study, reported = blocks(STUDY_PAGE, "yaml")
    (folder / "workflow" / "studies" / "probe.yaml").write_text(study)
    (folder / "resources" / "reported" / "probe.yaml").write_text(reported)
    _write_notebook(folder / "workflow" / "notebooks")
    return lab


def _merged(whole: Any, more: Any) -> Any:
    if not isinstance(whole, dict) or not isinstance(more, dict):
        return more
    return {**whole, **{key: _merged(whole.get(key), value) for key, value in more.items()}}


def _write_notebook(folder: Path) -> None:
    """As the page says: the first two cells of lr_ratio's notebook, then the page's calls."""
    notebook = json.loads((folder / "lr_ratio.ipynb").read_text())
    cells = notebook["cells"][:2]
    (calls,) = blocks(STUDY_PAGE, "python")
    for number, call in enumerate(calls.splitlines()):
        cells.append({**cells[1], "id": f"call-{number}", "source": call, "outputs": []})
    (folder / "probe.ipynb").write_text(json.dumps({**notebook, "cells": cells}))
