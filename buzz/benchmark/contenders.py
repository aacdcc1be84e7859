"""What is measured: transformers' own caches on the unpatched model, and policies on the patched one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from buzz.cache import Shape
from buzz.evaluation.config.methods import NAME, MethodConfig, own_keys, parse_method, policy_keys
from buzz.evaluation.config.schema import at_least, build, keys_of, refuse_unknown, said
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.paths import resolve_path
from buzz.policies import POLICIES, HeadShares
from buzz.words import hint

BASELINES = {
    "dynamic": "DynamicCache and SDPA",
    "eager": "DynamicCache and eager attention",
    "static": "StaticCache, decoding compiled by generate()",
    "quantized": "QuantizedCache and SDPA",
    "paged": "continuous batching: paged attention, by ContinuousBatchingManager",
}
_UNFITTED = ("reduction", "match")  # they need samples or another method's run


@dataclass(frozen=True)
class Limits:
    """Keys that every contender takes: points beyond `max_length` and `max_batch` are not measured for it.

    whole: of the section `one_row`, in place of its own.
    """

    max_length: int | None = field(default=None, metadata=at_least(1))
    max_batch: int | None = field(default=None, metadata=at_least(1))
    whole: int | None = field(default=None, metadata=at_least(1))


_LIMITS = keys_of(Limits)


@dataclass(frozen=True)
class Quantized:
    """Keys of the baseline `quantized`.

    Args:
        backend: what quantises keys and values: the package hqq, the package optimum-quanto, or transformers itself
            (fp8: 5.23 has it, 5.17 has not).
        bits: of a number in the cache; fp8 has 8 whatever this says.
    """

    backend: Literal["hqq", "quanto", "fp8"] = "hqq"
    bits: int = field(default=4, metadata=at_least(1, 8))


@dataclass(frozen=True)
class Paged:
    """Keys of the baseline `paged`.

    Args:
        graphs: whether calls are captured as CUDA graphs; None: as transformers decides (with flash-attn alone).
        batch_tokens: tokens of a call at most, of all rows together; longer prompts are read in several.
    """

    graphs: bool | None = None
    batch_tokens: int = field(default=8192, metadata=at_least(1))


@dataclass(frozen=True)
class Contender:
    """One row of the tables.

    Args:
        kind: a key of `BASELINES`, or `policy`.
        method: the policy and its parameters; None for a baseline.
        limits: which points it takes part in.
        shares: of heads, in place of those that are measured on the model; of another model, too.
        settings: keys of the baselines `quantized` and `paged`; None for all others.
    """

    name: str
    kind: str
    method: MethodConfig | None = None
    limits: Limits = field(default_factory=Limits)
    shares: HeadShares | None = None
    settings: Quantized | Paged | None = None

    @property
    def patched(self) -> bool:
        """Whether it runs on the patched model."""
        return self.method is not None

    def takes(self, length: int, batch: int) -> bool:
        """Whether a point lies within the limits."""
        longest, most = self.limits.max_length, self.limits.max_batch
        return (longest is None or length <= longest) and (most is None or batch <= most)

    def policy(self) -> Any:
        """A new policy; with a budget in tokens, the one that fits it. None for a baseline."""
        if self.method is None:
            return None
        if self.method.budget is None:
            return self.method.make_policy()
        kind = POLICIES[self.method.policy]
        return kind.from_budget(self.method.budget, **self.method.params, logn_base=self.method.logn_base)

    def shares_of(self, shape: Shape) -> HeadShares | None:
        """`shares` for the heads of a model: each has those of the head that is as far up and as far to the right."""
        if self.shares is None:
            return None
        given, layers = self.shares, len(shape.decided)
        rows = [given.shares[layer * given.layers // layers] for layer in range(layers)]
        return HeadShares(tuple(tuple(row[i * given.heads // shape.heads] for i in range(shape.heads)) for row in rows))


@dataclass(frozen=True)
class _Baseline:
    """The keys of a baseline that is given as a mapping, beside those of `Limits` and its own."""

    policy: Literal["dynamic", "eager", "static", "quantized", "paged"]
    name: str | None = field(default=None, metadata=NAME)


_SETTINGS: dict[str, type[Quantized] | type[Paged]] = {"quantized": Quantized, "paged": Paged}


def parse_contenders(raw: Any, where: str) -> list[Contender]:
    """The `methods` of a benchmark: names of baselines and policies, or mappings with the key `policy`.

    Raises:
        ConfigError: no list, an entry that is none of them, or a name that two have.
    """
    allowed = f"{', '.join(BASELINES)} and policies: {', '.join(POLICIES)}"
    if not isinstance(raw, list) or not raw:
        raise ConfigError(where, said(raw), f"a list of at least one method is wanted ({allowed})")
    found = [_contender(entry, f"{where}[{index}]") for index, entry in enumerate(raw)]
    names = [contender.name for contender in found]
    for index, name in enumerate(names):
        if name in names[:index]:
            what = f"{name!r} is the name of {where}[{names.index(name)}] as well"
            raise ConfigError(f"{where}[{index}].name", what, "each method needs a name of its own")
    return found


def _contender(raw: Any, where: str) -> Contender:
    entry = {"policy": raw} if isinstance(raw, str) else raw
    if not isinstance(entry, dict):
        raise ConfigError(where, said(raw), "a method's name or a mapping with the key policy is wanted")
    kind = entry.get("policy")
    if isinstance(kind, str) and kind in BASELINES:
        of, here = _SETTINGS.get(kind), f"{where} ({kind})"
        own = [] if of is None else keys_of(of)
        refuse_unknown(entry, [*keys_of(_Baseline), *_LIMITS, *own], here)
        baseline: _Baseline = build(_Baseline, _some(entry, keys_of(_Baseline)), here)
        limits = build(Limits, _some(entry, _LIMITS), here)
        settings = None if of is None else build(of, _some(entry, own), here)
        return Contender(baseline.name or baseline.policy, baseline.policy, None, limits, settings=settings)
    if not isinstance(kind, str) or kind not in POLICIES:
        names = [*BASELINES, *POLICIES]
        what = f"unknown method {kind!r}{hint(str(kind), names)}" if "policy" in entry else "is missing"
        raise ConfigError(f"{where}.policy", what, f"one of {', '.join(names)} is wanted")
    own = [key for key in own_keys() if key not in _UNFITTED]
    here = f"{where} ({kind})"
    refuse_unknown(entry, [*own, *policy_keys(kind), *_LIMITS, "head_shares"], here)
    limits = build(Limits, _some(entry, _LIMITS), where)
    file = entry.get("head_shares")
    method = parse_method({k: v for k, v in entry.items() if k not in (*_LIMITS, "head_shares")}, where)
    if isinstance(method.budget, float):
        raise ConfigError(f"{here}.budget", said(method.budget), "an integer (tokens) is wanted")
    if file is not None and not method.make_policy().measured:
        raise ConfigError(f"{here}.head_shares", said(file), "a policy that needs head shares is wanted for them")
    shares = None if file is None else _shares(file, f"{here}.head_shares")
    return Contender(method.name, "policy", method, limits, shares)


def _some(entry: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key in keys}


def _shares(file: Any, where: str) -> HeadShares:
    if not isinstance(file, str):
        raise ConfigError(where, said(file), "a file that HeadShares.save wrote is wanted")
    try:
        return HeadShares.load(resolve_path(file, where))
    except (ValueError, OSError) as error:
        raise ConfigError(where, str(error)) from error
