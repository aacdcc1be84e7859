"""Imports run down: a room imports only rooms below it, no modules import each other in a circle, and only buzz.kernels
knows Triton."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
EVALUATION = ["config", "metrics tasks", "models", "measure", "show", "run"]
# From the ground up; rooms of one line are neighbours, and may import each other as long as no circle comes of it.
FLOORS = [
    *["buzz.rows buzz.words", "buzz.kernels", "buzz.policies", "buzz.attention", "buzz.cache", "buzz.models"],
    *["buzz.decoding", "buzz.patching", "buzz", "buzz.evaluation"],
    *[" ".join(f"buzz.evaluation.{room}" for room in floor.split()) for floor in EVALUATION],
    *["buzz.benchmark buzz.harness", "buzz.cli", "buzz.__main__", "scripts"],
]
HEIGHTS = {room: height for height, floor in enumerate(FLOORS) for room in floor.split()}
FACADE = "buzz"  # the package itself: lazily, it imports anything
MOST_FILES = 12  # loose ones in buzz/evaluation


def read() -> dict[str, str]:
    """The source of every module, by its name."""
    files = [file for top in ("buzz", "scripts") for file in (ROOT / top).rglob("*.py")]
    parts = {file: file.relative_to(ROOT).with_suffix("").parts for file in files}
    return {".".join(p[:-1] if p[-1] == "__init__" else p): f.read_text(encoding="utf-8") for f, p in parts.items()}


def imported(source: str) -> Iterator[tuple[str, str | None]]:
    """Every (module, name or None) that a source imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield from ((node.module, alias.name) for alias in node.names)


def arrows(sources: Mapping[str, str]) -> dict[str, list[str]]:
    """module -> those of the modules that it imports, in order; for the facade none."""
    found = {}
    for module, source in sorted(sources.items()):
        names = {f"{home}.{name}" if f"{home}.{name}" in sources else home for home, name in imported(source)}
        found[module] = sorted(names & set(sources)) if module != FACADE else []
    return found


def room(module: str) -> str | None:
    """The innermost room that a module stands in."""
    inside = [name for name in HEIGHTS if module == name or (name != FACADE and module.startswith(f"{name}."))]
    return max(inside, key=len, default=None)


def arrows_up(sources: Mapping[str, str]) -> list[str]:
    faults = [f"{module} stands on no floor" for module in sorted(sources) if room(module) is None]
    for module, targets in arrows(sources).items():
        for target in targets:
            here, there = room(module), room(target)
            if here and there and HEIGHTS[there] > HEIGHTS[here]:
                faults.append(f"{module} imports {target}: {there} is above {here}")
    return faults


def circles(sources: Mapping[str, str]) -> list[str]:
    """The shortest circle through the first module of every knot."""
    graph, faults, told = arrows(sources), [], set()
    for start in graph:
        paths, queue = {}, [(start, [start])]
        for module, path in queue:  # breadth first
            for target in graph.get(module, ()):
                if target not in paths:
                    paths[target] = [*path, target]
                    queue.append((target, paths[target]))
        if start in paths and not told & set(paths[start]):
            told |= set(paths[start])
            faults.append("a circle: " + " -> ".join(paths[start]))
    return faults


def strays(sources: Mapping[str, str]) -> list[str]:
    """Where Triton is imported outside its room."""
    return [
        f"{module} imports triton"
        for module, source in sorted(sources.items())
        if room(module) != "buzz.kernels" and any(home.split(".")[0] == "triton" for home, _ in imported(source))
    ]


def loose(sources: Mapping[str, str]) -> list[str]:
    inside = {name for name in sources if name.startswith("buzz.evaluation.") and name.count(".") == 2}
    files = sorted(name for name in inside if not any(other.startswith(f"{name}.") for other in sources))
    return [f"{len(files)} loose files in buzz/evaluation: {', '.join(files)}"] if len(files) > MOST_FILES else []


def faults(sources: Mapping[str, str]) -> list[str]:
    return [*arrows_up(sources), *circles(sources), *strays(sources), *loose(sources)]


def test_the_house_stands():
    sources = read()
    assert len(sources) > 100
    assert all(any(module.startswith(name) for module in sources) for name in HEIGHTS)  # no room is gone
    found = faults(sources)
    assert not found, "\n" + "\n".join(found)


SOUND = {
    "buzz": "if True:\n    from buzz.cache import BeehiveCache",
    "buzz.rows": "",
    "buzz.cache": "from buzz.cache.layer import Layer",
    "buzz.cache.layer": "import torch\nfrom buzz import rows",
    "buzz.kernels.step": "import triton.language as tl",
    "buzz.patching": "import importlib.util\nimportlib.util.find_spec('triton')",
    "buzz.evaluation.config": "from buzz.cache import BeehiveCache",
    "buzz.evaluation.config.schema": "",
    "buzz.evaluation.run.cli": "from buzz.evaluation.config import schema",
}


def test_a_sound_house_has_no_fault():
    assert faults(SOUND) == []


def added(module: str, source: str) -> list[str]:
    return faults({**SOUND, module: source})


def test_an_arrow_up_is_found_wherever_it_stands():
    fault = ["buzz.rows imports buzz.cache.layer: buzz.cache is above buzz.rows"]
    for line in ("import buzz.cache.layer", "from buzz.cache.layer import Layer", "from buzz.cache import layer"):
        assert added("buzz.rows", line)[:1] == fault
        assert added("buzz.rows", f"if TYPE_CHECKING:\n    {line}")[:1] == fault
        assert added("buzz.rows", f"def later():\n    {line}")[:1] == fault
    assert added("buzz.evaluation.config.schema", "import buzz.evaluation.run.cli")[0].endswith(
        "buzz.evaluation.run is above buzz.evaluation.config"
    )
    assert added("buzz.evaluation.files", "import buzz.evaluation.config.schema")[0].endswith(
        "buzz.evaluation.config is above buzz.evaluation"
    )


def test_a_circle_is_found_also_inside_a_room():
    assert added("buzz.cache.layer", "def later():\n    from buzz.cache import BeehiveCache") == [
        "a circle: buzz.cache -> buzz.cache.layer -> buzz.cache"
    ]
    assert added("buzz.words", "import buzz.rows") == []
    assert faults({"buzz.rows": "import buzz.words", "buzz.words": "import buzz.rows"}) == [
        "a circle: buzz.rows -> buzz.words -> buzz.rows"
    ]


def test_triton_and_the_facade_and_loose_files_are_found():
    assert added("buzz.models.row", "def later():\n    import triton") == ["buzz.models.row imports triton"]
    assert added("buzz.models.row", "from triton.language import load") == ["buzz.models.row imports triton"]
    assert added("buzz.models.row", "import buzz") == ["buzz.models.row imports buzz: buzz is above buzz.models"]
    assert added("buzz.evaluation.run.loop", "import buzz") == []
    assert added("buzz.sundries", "") == ["buzz.sundries stands on no floor"]
    many = {f"buzz.evaluation.part{i:02}": "" for i in range(13)}
    assert [fault.split(":")[0] for fault in faults({**SOUND, **many})] == ["13 loose files in buzz/evaluation"]
    assert faults({**SOUND, **dict(list(many.items())[:12])}) == []
