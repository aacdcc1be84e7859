"""Turns matplotlib's SVG files into parts of a page that follow the page's colors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

_BEFORE = re.compile(r"^.*?(?=<svg\b)", re.DOTALL)
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_SVG = re.compile(r"<svg\b[^>]*>")
_VIEW = re.compile(r'viewBox="([^"]*)"')
_IDS = re.compile(r'(\bid="|\bxlink:href="#|\bhref="#|url\(#)')
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_FONT = re.compile(r"(font(?:-family)?: [^;\"']*)'[^;\"]*")
_WIDE = 600  # points; a picture of several panels
# What matplotlib calls them, and what the page does.
_INKS = {"#000000": "var(--ink)", "#ffffff": "var(--paper)", "#b0b0b0": "var(--rule)", "#cccccc": "var(--rule)"}


def inline_svg(svg: str, prefix: str, palette: Sequence[str], order: Sequence[str], alt: str, kind: str) -> str:
    """An SVG element for the inside of an HTML page: without a size or links of its own, readable in light and dark.

    Args:
        svg: as matplotlib writes it.
        prefix: for the ids inside, which must be unique on a page.
        palette: the page's colors: the first is `var(--s0)`, and so on.
        order: the colors that the SVG uses, all from the palette.
        alt: what is to be seen.
        kind: a class of the element.
    """
    svg = _COMMENT.sub("", _METADATA.sub("", _BEFORE.sub("", svg))).strip()
    view = _VIEW.search(svg)
    assert view is not None
    wide = " wide" if float(view.group(1).split()[2]) > _WIDE else ""
    svg = _SVG.sub(
        f'<svg class="chart {kind}{wide}" viewBox="{view.group(1)}" role="img" aria-label="{escape(alt)}">',
        svg,
        count=1,
    )
    svg = _IDS.sub(lambda match: match.group(1) + prefix, svg).replace("xlink:href", "href")
    svg = _FONT.sub(r"\1var(--sans)", svg)
    names = {color: f"var(--s{palette.index(color)})" for color in order}
    for color, name in {**_INKS, **names}.items():
        svg = svg.replace(color, name)
    return svg
