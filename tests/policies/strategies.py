"""Random policies for hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

NAMES = ["full", "local", "streaming", "h2o", "buzz", "buzz_fast", "buzz_no_max", "snapkv", "tova", "random"]


@st.composite
def settings_of(draw: st.DrawFn, names: list[str] = NAMES) -> tuple[str, dict]:
    """A policy's name and small parameters, so that short streams evict often."""
    name = draw(st.sampled_from(names))
    size = st.integers(1, 6)
    if name == "full":
        return name, {}
    if name == "h2o":
        return name, {"heavy": draw(size), "window": draw(size)}
    if name == "tova":
        return name, {"capacity": draw(size)}
    if name == "snapkv":
        window = draw(size)
        return name, {"capacity": window + draw(size), "window": window, "kernel": draw(st.sampled_from([1, 3, 5]))}
    params = {"sink": draw(st.integers(0, 4)), "window": draw(size)}
    if name.startswith("buzz"):
        params |= {"stride": draw(st.integers(1, 7)), "threshold": draw(st.integers(0, 12))}
    if name == "random":
        params |= {"capacity": params["sink"] + params["window"] + draw(st.integers(0, 8)), "seed": draw(size)}
    return name, params
