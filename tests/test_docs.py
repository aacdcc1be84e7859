"""What the pages say can be done: links lead somewhere, commands are understood, pictures are of the figures."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from buzz.benchmark.config import load_bench
from buzz.evaluation.run.config import load_config
from buzz.evaluation.run.grid import is_sweep, load_sweep

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"`((?:python scripts/benchmark\.py )?configs/[^`]+\.yaml[^`]*)`", RESULTS)))


def anchors(page: Path) -> set[str]:
    """Of headings as GitHub makes them, and those that are written out."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    slugs = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)
    return {*slugs, *re.findall(r'<a id="([^"]+)">', text)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?:", link):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_results_are_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command.removeprefix("python scripts/benchmark.py "))
    load = (
        load_bench if command.startswith("python") else load_sweep if is_sweep(*words[:1], words[1:]) else load_config
    )
    load(words[0], words[1:])


def test_every_claim_has_a_row_of_its_own():
    rows = [line for line in RESULTS.splitlines() if line.startswith("| <a id=")]
    ids = [re.findall(r'<a id="(\w+)"></a>\1\. ', row) for row in rows]
    assert all(len(found) == 1 for found in ids)
    assert len({found[0] for found in ids}) == len(rows) > 20
    for row in rows:
        assert re.search(r"\| \d{4}-\d{2}-\d{2}, [0-9a-f]{7} \|", row), row


def test_the_frontier_is_drawn_from_the_figures():
    drawn = runpy.run_path(str(ROOT / "docs" / "frontier.py"))["draw"]()
    assert (ROOT / "docs" / "frontier.svg").read_text(encoding="utf-8") == drawn
