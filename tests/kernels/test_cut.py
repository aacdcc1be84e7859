"""How a step's attention is cut up, against what was measured of groups of four on an H100."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from buzz.kernels.launch import Launch
from buzz.kernels.step import _cut, _tile

MEASURED = json.loads((Path(__file__).parents[2] / "docs/measured/batches/groups.json").read_text(encoding="utf-8"))
PROCESSORS, KV_HEADS, DIM = 132, 8, 128
CASES = sorted({(r["heads"], r["cached"], r["rows"]) for part in ("short", "long") for r in MEASURED[part]})


def cut(launch, heads, cached, rows):
    tile = _tile(torch.bfloat16, heads // KV_HEADS, DIM, True)
    return _cut(launch, cached + 79, rows * KV_HEADS, tile, PROCESSORS, dot=True, exact=False, pooled=False)


@pytest.mark.parametrize(("heads", "cached", "rows"), CASES)
def test_the_cut_is_near_the_best_that_was_measured(heads, cached, rows):
    case = {"heads": heads, "cached": cached, "rows": rows}
    found = [
        r for part in ("short", "long") for r in MEASURED[part] if r["kind"] == "new3" and case.items() <= r.items()
    ]
    ways = ("slots", "warps", "stages", "programs", "splits")
    taken = cut(Launch(), **case)
    same = [r["us"] for r in found if cut(Launch(**{way: r[way] for way in ways}), **case) == taken]
    assert min(same) <= 1.26 * min(r["us"] for r in found)


def test_a_launch_that_says_how_is_taken_at_its_word():
    for rows in (1, 16, 32, 64):
        for splits in (1, 2, 40):
            said = Launch(slots=64, splits=splits, warps=8, stages=1)
            assert cut(said, 32, 433, rows) == (64, splits, 1, 8, 1)
