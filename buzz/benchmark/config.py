"""The config of a benchmark: strict, and checked whole before a model is made, by the rules of a run's config."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from buzz.benchmark.contenders import Contender, parse_contenders
from buzz.evaluation.config.methods import NAME
from buzz.evaluation.config.reading import read_config
from buzz.evaluation.config.schema import MAX_SEED, at_least, build, check, keys_of, matching, parsed_by, said
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.models.section import ModelConfig
from buzz.kernels.launch import Launch, Tiles

# Of models with random weights: LlamaConfig's arguments, by name.
SHAPES: Mapping[str, Mapping[str, Any]] = yaml.safe_load((Path(__file__).parent / "shapes.yaml").read_text("utf-8"))
_SOME = "a list of at least one integer, each at least 1, is wanted"
_MOST = 10**7  # of any count: no prompt, stream or matrix of a benchmark is longer
_POSITIVE = check(lambda value: value > 0, "a number above 0 is wanted")
_TEXT = matching(r"\S(.*\S)?", "text is wanted")


def _integers(raw: Any, where: str) -> list[int]:
    if not isinstance(raw, list) or not raw or not all(type(item) is int and item >= 1 for item in raw):
        raise ConfigError(where, said(raw), _SOME)
    if max(raw) > _MOST:
        raise ConfigError(where, said(raw), f"at most {_MOST} is wanted")
    return sorted(set(raw))


def _names(raw: Any, where: str) -> list[str] | None:
    if raw is None:
        return None
    if not isinstance(raw, list) or not raw or not all(isinstance(item, str) for item in raw):
        raise ConfigError(where, said(raw), "a list of names, or null for all, is wanted")
    return list(raw)


_INTEGERS, _NAMES = parsed_by(_integers), parsed_by(_names)


def _count(default: int) -> Any:
    return field(default=default, metadata=at_least(1, _MOST))


def _seconds(default: float) -> Any:
    return field(default=default, metadata=_POSITIVE)


def _variants(cls: type) -> dict[str, Any]:
    """Field metadata of a list of mappings, each with some fields of a dataclass."""

    def parse(raw: Any, where: str) -> list[Any]:
        if not isinstance(raw, list):
            raise ConfigError(where, said(raw), f"a list of mappings with keys of {', '.join(keys_of(cls))} is wanted")
        return [build(cls, item, f"{where}[{index}]") for index, item in enumerate(raw)]

    return parsed_by(parse)


@dataclass(frozen=True)
class BenchModel:
    """A shape with random weights (see `buzz.benchmark.model`), or a model as a run names it."""

    shape: str | None = None
    id: str | None = field(default=None, metadata=_TEXT)
    gguf: str | list[str] | None = field(default=None, metadata=ModelConfig.__dataclass_fields__["gguf"].metadata)
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: str = field(default="auto", metadata=ModelConfig.__dataclass_fields__["device"].metadata)

    def loadable(self) -> ModelConfig:
        """The same as the `model` of a run's config."""
        return ModelConfig(id=self.id, gguf=self.gguf, dtype=self.dtype, device=self.device)


@dataclass(frozen=True)
class Ceilings:
    """What the machine can do at most: a copy of `copy_mib` MiB, a product of two matrices of `matmul` rows."""

    copy_mib: int = _count(2048)
    matmul: int = _count(8192)
    repeats: int = _count(20)


@dataclass(frozen=True)
class Kernels:
    """One layer's attention: of prompts of `lengths` tokens, and of one token over `cached` slots in `batches` rows.

    tiles, launches: further ways to cut up the kernels of the scores and of one token.
    """

    lengths: list[int] = field(default_factory=lambda: [2048, 4096, 8192, 16384, 32768], metadata=_INTEGERS)
    cached: list[int] = field(default_factory=lambda: [640, 4096, 32768], metadata=_INTEGERS)
    batches: list[int] = field(default_factory=lambda: [1, 16], metadata=_INTEGERS)
    repeats: int = _count(7)
    tiles: list[Tiles] = field(default_factory=list, metadata=_variants(Tiles))
    launches: list[Launch] = field(default_factory=list, metadata=_variants(Launch))


@dataclass(frozen=True)
class Prefill:
    """The first call; `seconds` bounds the repetitions of a point (three are always made).

    `new_lengths`: so many lengths below each are read once as well, other ones by each method, since kernels may be
    planned or compiled anew for a length that a process has not seen before.
    """

    lengths: list[int] = field(default_factory=lambda: [1024, 2048, 4096, 8192, 16384, 32768], metadata=_INTEGERS)
    methods: list[str] | None = field(default=None, metadata=_NAMES)
    repeats: int = _count(5)
    seconds: float = _seconds(3.0)
    prefill_chunk_size: int | None = field(default=None, metadata=at_least(1))
    new_lengths: int = field(default=0, metadata=at_least(0))


@dataclass(frozen=True)
class Decode:
    """One token after another, by generate(): at least `steps`, three evictions if there are any, at most `seconds`."""

    contexts: list[int] = field(default_factory=lambda: [1024, 4096, 16384], metadata=_INTEGERS)
    batches: list[int] = field(default_factory=lambda: [1], metadata=_INTEGERS)
    methods: list[str] | None = field(default=None, metadata=_NAMES)
    steps: int = _count(128)
    seconds: float = _seconds(4.0)
    prefill_chunk_size: int | None = field(default=None, metadata=at_least(1))


@dataclass(frozen=True)
class Stream:
    """Decoding after so many streamed `tokens`, read in chunks of `chunk`."""

    tokens: list[int] = field(default_factory=lambda: [1024, 131072], metadata=_INTEGERS)
    chunk: int = _count(1024)
    methods: list[str] | None = field(default=None, metadata=_NAMES)
    steps: int = _count(256)
    seconds: float = _seconds(5.0)


@dataclass(frozen=True)
class Evictions:
    """Share of the evictions in `steps` steps, and calls that wait for the device in `profiled` further ones."""

    context: int = _count(4096)
    batch: int = _count(1)
    methods: list[str] | None = field(default=None, metadata=_NAMES)
    steps: int = _count(1000)
    seconds: float = _seconds(20.0)
    profiled: int = _count(64)


@dataclass(frozen=True)
class Throughput:
    """Prompts and answers end to end: in `batches` rows, and if `largest` in as many (up to `limit`) as fit."""

    prompt: int = _count(4096)
    new_tokens: int = field(default=512, metadata=at_least(2))
    batches: list[int] | None = field(
        default=None, metadata=parsed_by(lambda raw, where: None if raw is None else _integers(raw, where))
    )
    largest: bool = True
    start: int = _count(4)
    limit: int = _count(512)
    methods: list[str] | None = field(default=None, metadata=_NAMES)
    seconds: float = _seconds(30.0)


@dataclass(frozen=True)
class OneRow:
    """A prompt of each of `contexts` with the beginning of its answer, one row: the first token, and those after it.

    whole: prompts up to so many tokens are read in one call; longer ones in chunks of `prefill_chunk_size`, unless a
        contender has a `whole` of its own.
    repeats: of the prompt, none later than twice `seconds`; steps: none later than `seconds`.
    """

    contexts: list[int] = field(default_factory=lambda: [1024, 8192, 32768, 131072], metadata=_INTEGERS)
    methods: list[str] | None = field(default=None, metadata=_NAMES)
    whole: int = _count(32768)
    prefill_chunk_size: int = _count(8192)
    repeats: int = _count(3)
    steps: int = _count(32)
    seconds: float = _seconds(2.0)


@dataclass(frozen=True)
class ManyRows:
    """As many prompts of each of `contexts` as fit into `memory_gib` GiB above the weights, `limit` at most.

    new_tokens: of an answer; of its steps as many are measured as begin within `seconds`, `steps` at most.
    """

    contexts: list[int] = field(default_factory=lambda: [8192], metadata=_INTEGERS)
    methods: list[str] | None = field(default=None, metadata=_NAMES)
    memory_gib: float = _seconds(8.0)
    prefill_chunk_size: int = _count(1024)
    new_tokens: int = field(default=256, metadata=at_least(2))
    steps: int = _count(64)
    limit: int = _count(256)
    seconds: float = _seconds(2.0)


@dataclass(frozen=True)
class Agreement:
    """Greedy answers of `new_tokens` to `prompts` texts of `shortest` to `longest` tokens, decoded in two ways.

    batch: rows answered together; the shorter ones are padded at the left.
    """

    prompts: int = _count(20)
    batch: int = _count(1)
    shortest: int = _count(1024)
    longest: int = _count(4096)
    new_tokens: int = _count(200)
    methods: list[str] | None = field(default=None, metadata=_NAMES)


@dataclass(frozen=True)
class Steps:
    """Single forward calls timed by turns: at equal cache `lengths`, and in `batches` rows after a long `prompt`."""

    prompt: int = _count(6000)
    steps: int = _count(128)
    lengths: list[int] = field(default_factory=lambda: [256, 411, 564], metadata=_INTEGERS)
    batches: list[int] = field(default_factory=lambda: [1, 4], metadata=_INTEGERS)


_SERVED = (OneRow, ManyRows)  # sections that continuous batching, which makes its cache itself, can take part in
SECTIONS: dict[str, type] = {
    "ceilings": Ceilings,
    "kernels": Kernels,
    "prefill": Prefill,
    "decode": Decode,
    "stream": Stream,
    "evictions": Evictions,
    "throughput": Throughput,
    "one_row": OneRow,
    "many_rows": ManyRows,
    "agreement": Agreement,
    "steps": Steps,
}


def _optional(cls: Callable[..., Any]) -> dict[str, Any]:
    """Field metadata of a section that may be null; an empty mapping takes its defaults."""
    return parsed_by(lambda raw, where: None if raw is None else build(cls, raw, where))


@dataclass(frozen=True)
class BenchConfig:
    """Everything that a benchmark depends on.

    Args:
        methods: the contenders; the first one that a table has is what its ratios are against.
        only: sections to run this time; None: all that are there.
        seconds: no point is begun later than this after the start; None: no end.
        output: the folder of the results; `runs/bench/<name>` if not given.
    """

    name: str = field(metadata=NAME)
    model: BenchModel
    methods: list[Contender] = field(default_factory=list, metadata=parsed_by(parse_contenders))
    ceilings: Ceilings | None = field(default=None, metadata=_optional(Ceilings))
    kernels: Kernels | None = field(default=None, metadata=_optional(Kernels))
    prefill: Prefill | None = field(default=None, metadata=_optional(Prefill))
    decode: Decode | None = field(default=None, metadata=_optional(Decode))
    stream: Stream | None = field(default=None, metadata=_optional(Stream))
    evictions: Evictions | None = field(default=None, metadata=_optional(Evictions))
    throughput: Throughput | None = field(default=None, metadata=_optional(Throughput))
    one_row: OneRow | None = field(default=None, metadata=_optional(OneRow))
    many_rows: ManyRows | None = field(default=None, metadata=_optional(ManyRows))
    agreement: Agreement | None = field(default=None, metadata=_optional(Agreement))
    steps: Steps | None = field(default=None, metadata=_optional(Steps))
    only: list[str] | None = field(default=None, metadata=parsed_by(_names))
    seconds: float | None = field(default=None, metadata=_POSITIVE)
    seed: int = field(default=0, metadata=at_least(0, MAX_SEED))
    output: str = ""

    def __post_init__(self) -> None:
        if not self.output.strip():
            object.__setattr__(self, "output", f"runs/bench/{self.name}")

    @property
    def sections(self) -> dict[str, Any]:
        """The sections of this run, in order."""
        there = {name: getattr(self, name) for name in SECTIONS if getattr(self, name) is not None}
        return {name: section for name, section in there.items() if self.only is None or name in self.only}

    def contenders(self, section: Any) -> list[Contender]:
        """Those of a section, in its order, but the unpatched ones first; `paged` only where it can take part."""
        able = [c for c in self.methods if c.kind != "paged" or isinstance(section, _SERVED)]
        known = {contender.name: contender for contender in able}
        named = [known[name] for name in (known if section.methods is None else section.methods)]
        return sorted(named, key=lambda contender: contender.patched)


def load_bench(path: str | Path, overrides: Sequence[str] = ()) -> BenchConfig:
    """Read, merge and check a benchmark's config; `key.sub=value` overrides as for a run.

    Raises:
        ConfigError: whatever is wrong, in one line.
    """
    return parse_bench(read_config(path, overrides, keys_of(BenchConfig)))


def parse_bench(raw: Mapping[str, Any]) -> BenchConfig:
    """The config that plain data describes; raises as `load_bench`."""
    config: BenchConfig = build(BenchConfig, raw, "")
    model = config.model
    if model.shape is not None and model.shape not in SHAPES:
        raise ConfigError("model.shape", f"unknown shape {model.shape!r}", f"one of {', '.join(SHAPES)} is wanted")
    if (model.shape is None) == (model.id is None and model.gguf is None):
        both = "shape is given beside id or gguf" if model.shape else "neither shape nor id nor gguf is given"
        raise ConfigError("model", both, f"one of the shapes {', '.join(SHAPES)}, or a model, is wanted")
    names = [contender.name for contender in config.methods]
    for section, settings in ((n, getattr(config, n)) for n in SECTIONS):
        if settings is None or not hasattr(settings, "methods"):
            continue
        if not names:
            raise ConfigError("methods", "is missing", f"a list of at least one method is wanted for {section}")
        _known(settings.methods, names, f"{section}.methods")
        paged = [c.name for c in config.methods if c.kind == "paged" and c.name in (settings.methods or [])]
        if paged and not isinstance(settings, _SERVED):
            what = f"{paged[0]!r} makes its cache itself"
            raise ConfigError(f"{section}.methods", what, "it takes part in one_row and many_rows alone")
        if not config.contenders(settings):
            raise ConfigError(f"{section}.methods", "is empty", "at least one method that can take part is wanted")
    if config.throughput is not None and not config.throughput.largest and config.throughput.batches is None:
        raise ConfigError("throughput.batches", "is null", "a list of integers is wanted where largest is false")
    if config.stream is not None and min(config.stream.tokens) < 2:
        raise ConfigError("stream.tokens", said(config.stream.tokens), "integers of at least 2 are wanted")
    if config.agreement is not None:
        if config.agreement.longest < config.agreement.shortest:
            what = f"is {config.agreement.longest}, shortest is {config.agreement.shortest}"
            raise ConfigError("agreement.longest", what, "at least as much is wanted")
        if not any(contender.patched for contender in config.contenders(config.agreement)):
            raise ConfigError("agreement.methods", "has no policy", "at least one is wanted")
    _multiples(config.steps)
    _known(config.only, [name for name in SECTIONS if getattr(config, name) is not None], "only")
    if not config.sections:
        raise ConfigError("config", "has no section to run", f"at least one of {', '.join(SECTIONS)} is wanted")
    return config


def _multiples(steps: Steps | None) -> None:
    """A larger batch of the section `steps` repeats the rows of the smaller one."""
    for smaller, larger in itertools.pairwise(steps.batches if steps is not None else []):
        if larger % smaller:
            raise ConfigError("steps.batches", said([smaller, larger]), "multiples of the ones before are wanted")


def _known(given: Sequence[str] | None, names: Sequence[str], where: str) -> None:
    for name in given or []:
        if name not in names:
            raise ConfigError(where, f"{name!r} is not there", f"one of {', '.join(names) or '(nothing)'} is wanted")


def as_data(value: Any) -> Any:
    """A part of a config as plain data, for JSON."""
    return dataclasses.asdict(value)


def with_defaults(facts: Mapping[str, Any], config: BenchConfig, name: str) -> dict[str, Any]:
    """Facts of a section as older code wrote them: settings that it did not have yet are what they are by default."""
    return {**facts, "settings": {**as_data(type(getattr(config, name))()), **facts.get("settings", {})}}


def section_facts(config: BenchConfig, name: str) -> dict[str, Any]:
    """What the results of a section depend on, beside the machine: its settings, its contenders, the model."""
    section = getattr(config, name)
    facts = {"settings": as_data(section), "model": as_data(config.model), "seed": config.seed}
    if hasattr(section, "methods"):
        facts["methods"] = [as_data(contender) for contender in config.contenders(section)]
    return facts
