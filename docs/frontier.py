"""Draws docs/frontier.svg from measured/comb/quality.json: distance from the full cache against how much smaller it is.

python docs/frontier.py
"""

from __future__ import annotations

import json
import math
from pathlib import Path

HERE = Path(__file__).parent
PANELS = {"XSUM": "xsum", "CNN/DailyMail": "cnn_dm"}
REDUCTIONS = (2.5, 4, 8)
# The label, the class of its line, and its mark.
METHODS = {
    "comb-echo": ("comb with echo ²", "own", "M-4 0L0 -4L4 0L0 4Z"),
    "comb": ("comb", "own", "M-3.5 -3.5H3.5V3.5H-3.5Z"),
    "kvzip": ("kvzip ²", "a", "M-4 3L0 -4L4 3Z"),
    "h2o": ("h2o", "b", "M-3 -3H3V3H-3Z"),
    "expected_attention": ("expected attention", "c", "M-4 -3L0 4L4 -3Z"),
    "tova": ("tova", "d", "M-4 0L0 -4L4 0L0 4Z"),
    "snapkv": ("snapkv", "e", "M-3 -3L3 3M-3 3L3 -3"),
    "streaming": ("streaming", "f", "M-4 0H4M0 -4V4"),
}
LEFT, TOP, WIDE, HIGH, APART = 46, 46, 200, 250, 372  # of a panel, in pixels; LABELS: at least so far apart
LABELS = 14
LEAST, MOST = 0.005, 2.6  # of the axis, which is logarithmic
STYLE = """
text{font:13px system-ui,sans-serif;fill:#1f2328}.axis,.label{font-size:12px}.title{font-weight:600}
.grid{stroke:#d1d9e0;stroke-width:1}path,polyline{fill:none;stroke-width:1.5}
.own{stroke:#c2410c}.a{stroke:#0969da}.b{stroke:#1a7f37}.c{stroke:#8250df}.d{stroke:#6e7781}.e{stroke:#9a6700}
.f{stroke:#57606a}
polyline.own{stroke-width:2.5}polyline.a{stroke-dasharray:7 3}polyline.c{stroke-dasharray:2 3}
polyline.d{stroke-dasharray:5 2 1 2}polyline.e{stroke-dasharray:9 3 2 3}polyline.f{stroke-dasharray:3 2}
.own.label{font-weight:600}
.label{stroke:none!important}
@media (prefers-color-scheme:dark){text{fill:#e6edf3}.grid{stroke:#3d444d}.own{stroke:#ff9b57}.a{stroke:#6cb6ff}
.b{stroke:#57ab5a}.c{stroke:#b083f0}.d{stroke:#9198a1}.e{stroke:#daaa3f}.f{stroke:#909dab}}
"""


def height(kl: float) -> float:
    """Where a KL lies, from the top."""
    return TOP + HIGH * math.log(MOST / kl) / math.log(MOST / LEAST)


def apart(places: list[float]) -> list[float]:
    """Places of labels, ascending, moved as little as it takes to keep them apart."""
    pools: list[list[float]] = []  # first place wanted, less what those before it in the pool take, and their number
    for place in places:
        pools.append([place, 1])
        while len(pools) > 1 and pools[-2][0] + pools[-2][1] * LABELS > pools[-1][0]:
            (first, n), (second, m) = pools[-2], pools.pop()
            pools[-1] = [(first * n + (second - n * LABELS) * m) / (n + m), n + m]
    return [first + i * LABELS for first, n in pools for i in range(int(n))]


def panel(cells: dict, task: str, title: str, left: float) -> list[str]:
    """One task: axes, a line a method, and its label at the end."""
    at = [left + WIDE * i / (len(REDUCTIONS) - 1) for i in range(len(REDUCTIONS))]
    lines = [f'<text class="title" x="{left}" y="{TOP - 18}">{title}</text>']
    for tick in (0.01, 0.1, 1):
        y = height(tick)
        lines.append(f'<path class="grid" d="M{left} {y:.1f}H{left + WIDE}"/>')
        lines.append(f'<text class="axis" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for x, reduction in zip(at, REDUCTIONS, strict=True):
        lines.append(f'<text class="axis" x="{x:.1f}" y="{TOP + HIGH + 20}" text-anchor="middle">{reduction:g}x</text>')
    found = {
        name: [cells[f"{task}, {reduction:g}x"][name]["metrics"]["fidelity_kl"][0] for reduction in REDUCTIONS]
        for name in METHODS
    }
    order = sorted(METHODS, key=lambda name: -found[name][-1])
    ends = dict(zip(order, apart([height(found[name][-1]) for name in order]), strict=True))
    for name, (label, kind, mark) in reversed(METHODS.items()):
        points = [(x, height(kl)) for x, kl in zip(at, found[name], strict=True)]
        lines.append(f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
        lines += [f'<path class="{kind}" transform="translate({x:.1f} {y:.1f})" d="{mark}"/>' for x, y in points]
        lines.append(
            f'<path class="{kind}" d="M{at[-1] + 6:.1f} {points[-1][1]:.1f}L{at[-1] + 14:.1f} {ends[name]:.1f}"/>'
        )
        lines.append(f'<text class="label {kind}" x="{at[-1] + 17:.1f}" y="{ends[name] + 4:.1f}">{label}</text>')
    return lines


def draw() -> str:
    """The picture, as SVG."""
    cells = json.loads((HERE / "measured/comb/quality.json").read_text("utf-8"))["cells"]
    what = "KL divergence from the full cache along its own answer, for caches that are 2.5, 4 and 8 times smaller"
    width, tall = LEFT + 2 * APART - 28, TOP + HIGH + 46
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {tall}" width="{width}" role="img">',
            f"<title>{what}</title><style>{STYLE}</style>",
            *(
                line
                for i, (title, task) in enumerate(PANELS.items())
                for line in panel(cells, task, title, LEFT + i * APART)
            ),
            f'<text class="axis" x="{LEFT}" y="{tall - 6}">KL to the full cache (log scale, lower is better) against '
            "how many times smaller the cache is. ² reads prompts twice.</text>",
            "</svg>",
            "",
        ]
    )


if __name__ == "__main__":
    (HERE / "frontier.svg").write_text(draw(), encoding="utf-8")
