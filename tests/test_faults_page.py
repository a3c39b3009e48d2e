"""The page on faults: every row names tests, and every test that it names exists."""

from __future__ import annotations

import ast
import functools
import re

from tests.doc_pages import ROOT

PAGE = (ROOT / "docs" / "faults.md").read_text()
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


@functools.cache
def functions(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_every_row_names_tests_that_exist() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and not line.startswith(("| fault", "|--"))]
    assert len(rows) > 40
    for row in rows:
        named = NAMED.findall(row)
        assert named, f"no test shows {row}"
        for file, name in named:
            assert name in functions(file), f"docs/faults.md names {file}::{name}, which is not there"


def test_what_is_injected_says_so() -> None:
    """Where the matrix cannot be had for real on one machine."""
    for fault in ("a node fails", "more memory than", "out of memory always"):
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| {fault}")]
        assert "*injected*" in row
