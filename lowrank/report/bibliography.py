"""The papers behind the parts that studies use, as BibTeX."""

from __future__ import annotations

import re
from collections.abc import Set
from pathlib import Path

from lowrank.files import REPOSITORY

PAPERS = REPOSITORY / "resources" / "references.bib"
"""Each entry's field `keywords` names the parts that stand on it."""


def bibtex(parts: Set[str], path: Path = PAPERS) -> str:
    """The entries whose keywords name one of `parts`, as they stand in the file.

    Args:
        parts: names of parts.
        path: a BibTeX file whose entries end with a line `}`.
    """
    entries = re.findall(r"^@\w+\{.*?^\}\n", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return "\n".join(entry for entry in entries if keywords(entry) & parts)


def keywords(entry: str) -> set[str]:
    """The parts that an entry names."""
    found = re.search(r"^\s*keywords\s*=\s*\{(.*?)\}", entry, re.MULTILINE)
    return {word.strip() for word in found[1].split(",")} if found else set()
