"""report.html: one file without a link to anything, which a browser shows with the network unplugged."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from urllib.parse import quote

from buzz.evaluation.show.report import fragments
from buzz.evaluation.show.report.folders import Run
from buzz.evaluation.show.report.page_data import page_data
from buzz.evaluation.show.report.pictures import PALETTE, Figure, is_sweep
from buzz.evaluation.show.verdict import Verdict, verdicts

_SCRIPTS = ("hive.js", "samples.js")
_HEXAGON = "M12 1.6 21 6.8v10.4l-9 5.2-9-5.2V6.8z"
_ICON = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 24 24'><path fill='#e5a019' d='{_HEXAGON}'/></svg>"

Sections = list[tuple[str, str, str]]  # anchor, title, HTML


def render_page(title: str, runs: Sequence[Run], figures: Sequence[Sequence[Figure]], shared: Figure | None) -> str:
    """The page.

    Args:
        figures: of each run.
        shared: a picture of all runs, if there are several.

    Raises:
        ConfigError: a recording of evictions is damaged.
    """
    data = page_data(runs)
    figures = [[figure for figure in drawn if figure.paged] for drawn in figures]
    if len(runs) == 1:
        sections = _of_one(runs[0], figures[0])
    else:
        sections = _of_several(runs, figures, shared)
    sections.append(("about", "How it was made", "".join(map(fragments.about, runs))))
    told = verdicts({run.name: run.summary for run in runs})
    return _document(title, _subtitle(runs), told, [section for section in sections if section[2]], data)


def _verdict(told: Verdict) -> str:
    figures = f"<p>{escape(told.figures)}</p>" if told.figures else ""
    return f'<div class="verdict"><p><strong>{escape(told.sentence)}</strong></p>{figures}</div>'


def _of_one(run: Run, figures: Sequence[Figure]) -> Sections:
    drawn = [(f"figure{i}", one.title, fragments.figure(one, f"f{i}-")) for i, one in enumerate(figures)]
    results = ("results", "Results", fragments.results(run))
    return [
        # Of methods in several sizes a picture says more than its table.
        *([*drawn[:1], results] if is_sweep(run) else [results, *drawn[:1]]),
        ("speed", "After a long prompt", fragments.speed(run)),
        ("hive", "The hive", _hive([run])),
        ("parts", "Task by task", fragments.parts(run)),
        ("needles", "Needles by length and depth", fragments.needles(run)),
        *drawn[1:],
        ("paired", "Paired differences", fragments.comparisons(run)),
        ("answers", "Answers side by side", _answers([run])),
    ]


def _of_several(runs: Sequence[Run], figures: Sequence[Sequence[Figure]], shared: Figure | None) -> Sections:
    sections = [("frontier", shared.title, fragments.figure(shared, "all-"))] if shared else []
    for number, (run, drawn) in enumerate(zip(runs, figures, strict=True)):
        pictures = "".join(
            f"<h3>{escape(one.title)}</h3>{fragments.figure(one, f'r{number}f{i}-')}"
            for i, one in enumerate(drawn)
            if shared is None or not one.quality  # else it is in the shared one
        )
        rest = f"{pictures}{fragments.comparisons(run)}"
        more = f"<details><summary>Figures and paired differences</summary>{rest}</details>" if rest else ""
        body = f"{fragments.results(run)}{fragments.parts(run)}{fragments.needles(run)}{more}"
        sections.append((f"run{number}", run.name, body))
    return [*sections, ("hive", "The hive", _hive(runs)), ("answers", "Answers side by side", _answers(runs))]


def _subtitle(runs: Sequence[Run]) -> str:
    facts = [run.summary["run"] for run in runs]
    models = dict.fromkeys(fact["model"] for fact in facts)
    tasks = dict.fromkeys(fact["task"] for fact in facts)
    samples = sum(fact["samples"] for fact in facts)
    counted = f"{samples} sample{'s' if samples != 1 else ''}" + (f" in {len(runs)} runs" if len(runs) > 1 else "")
    return f"{', '.join(models)} on {', '.join(tasks)}, {counted}"


# --- parts that scripts fill -----------------------------------------------------------------------------------------


def _hive(runs: Sequence[Run]) -> str:
    return _text("hive.html") if any(run.hives for run in runs) else ""


def _answers(runs: Sequence[Run]) -> str:
    records = (record for run in runs for rows in run.records.values() for record in rows)
    return _text("samples.html") if any(not record.get("blocks") for record in records) else ""


def _text(name: str) -> str:
    return (files("buzz.evaluation.show.report") / "assets" / name).read_text(encoding="utf-8")


# --- the document ----------------------------------------------------------------------------------------------------


def _document(title: str, subtitle: str, told: Sequence[Verdict], sections: Sections, data: str) -> str:
    script = "".join(_text(name) for name in _SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    # Nothing may be fetched, and no script may run but this one.
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    series = "".join(f"--s{number}:{color};" for number, color in enumerate(PALETTE))
    links = "".join(f'<a href="#{anchor}">{escape(name)}</a>' for anchor, name, _ in sections)
    body = "".join(
        f'<section id="{anchor}" aria-labelledby="{anchor}-title">'
        f'<h2 id="{anchor}-title">{escape(name)}</h2>{html}</section>\n'
        for anchor, name, html in sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:image/svg+xml,{quote(_ICON)}">
<style>:root{{{series}}}
{_text("page.css")}</style>
</head>
<body>
<a class="skip" href="#{sections[0][0]}">To the results</a>
<header>
<svg class="mark" viewBox="0 0 24 24" aria-hidden="true"><path d="{_HEXAGON}"/></svg>
<h1>{escape(title)}</h1>
<p>{escape(subtitle)}</p>
{"".join(map(_verdict, told))}
<nav aria-label="Sections">{links}</nav>
</header>
<main>
<noscript><p class="notes">Tables and figures need no script; the hive view and the answers do.</p></noscript>
{body}</main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""
