"""docs/limits.md quotes the messages of the code, word for word."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^\| `(.+?)` \|", PAGE, flags=re.MULTILINE)


def texts():
    """All texts of the library's source, with … for what an f-string fills in."""
    found = set()
    for file in (ROOT / "buzz").rglob("*.py"):
        if "evaluation" not in file.parts:
            nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
            filled = [node for node in nodes if isinstance(node, ast.JoinedStr)]
            parts = {id(part) for node in filled for part in node.values}
            for node in filled:
                found.add("".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values))
            for node in nodes:
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
                    found.add(node.value)
    return found


@pytest.mark.parametrize("message", QUOTED)
def test_every_quoted_message_is_one_of_the_code(message):
    assert message in texts()


def test_every_message_that_points_to_the_page_is_on_it():
    pointing = {text for text in texts() if text.endswith("(docs/limits.md)")}
    assert len(pointing) > 10
    assert pointing <= set(QUOTED)


def test_the_page_has_them():
    assert len(QUOTED) > 25
