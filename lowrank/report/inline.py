"""A figure's SVG inside a page: it scales, follows light and dark, and shares no id with another."""

from __future__ import annotations

import re

from lowrank.report.html import escape
from lowrank.report.style import VARIABLES


def inline_svg(text: str, name: str, label: str) -> str:
    """The SVG as an element of a page.

    Args:
        text: what `style.svg` wrote.
        name: unique on the page; starts every id.
        label: read aloud in place of the drawing.
    """
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Two figures on a page may define the same id differently.
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    opening, rest = text.split(">", 1)
    opening = re.sub(r'\s(width|height|version|xmlns|xmlns:xlink)="[^"]*"', "", opening)
    rest = rest.replace("xlink:href", "href")
    return f'{opening} role="img" aria-label="{escape(label)}">{rest}'
