"""The methods of a run: policies with their parameters, from the config's list to checked dataclasses."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

from buzz.evaluation.config.schema import check, convert, matching, refuse_unknown, said
from buzz.evaluation.errors import ConfigError
from buzz.policies import POLICIES, make_policy
from buzz.words import hint

# Names become file and folder names; one of dots alone would be a folder that exists.
NAME = matching(r"(?!\.+$)[A-Za-z0-9._-]{1,200}", "a name of letters, digits and . _ - is wanted")
_BUDGET = check(
    lambda value: 0 < value <= 1 if isinstance(value, float) else value >= 1,
    "a share of the prompt above 0.0 and up to 1.0, or an integer of at least 1 (tokens), is wanted",
)


@dataclass(frozen=True)
class MethodConfig:
    """One method of a run: a policy, its parameters and what surrounds it.

    Args:
        name: unique in the run, also where case does not count; names the file of its samples.
        policy: a key of `buzz.policies.POLICIES`.
        params: the policy's own parameters. All of them, defaults included, unless a budget or match is given: then
            those the user fixed, the others being left for `from_budget` to fit.
        positions: None: the model family's default.
        logn_base: log-n scaling of attention logits; None: off.
        budget: mean cache length wanted: a share of the prompt (float, up to 1.0) or tokens (int).
        reduction: wanted mean cache length of the full cache over that of this method, sample by sample.
        match: name of the method whose memory this one gets. At most one of the three is set.
        match_by: what is made equal by `match`: mean cached tokens (also if None) or mean allocated bytes.
    """

    name: str = field(metadata=NAME)
    policy: str
    params: dict[str, Any] = field(default_factory=dict)
    positions: Literal["cache", "original"] | None = None
    logn_base: float | None = field(default=None, metadata=check(lambda v: v > 1, "a number above 1 is wanted"))
    budget: int | float | None = field(default=None, metadata=_BUDGET)
    reduction: float | None = field(default=None, metadata=check(lambda v: v > 1, "a number above 1 is wanted"))
    match: str | None = None
    match_by: Literal["tokens", "bytes"] | None = None

    def make_policy(self) -> Any:
        """The policy with `params` and `logn_base`; a budget or match is for the runner to apply, and decides what is
        not given."""
        params = {**self.params, "logn_base": self.logn_base}
        if self.budget is self.reduction is self.match is None:
            return make_policy(self.policy, **params)
        return POLICIES[self.policy].unfitted(**params)


def parse_methods(raw: Any, where: str) -> list[MethodConfig]:
    """The `methods` of a config; `where` names them in errors.

    Raises:
        ConfigError: no list, an entry that is no method, a name that two have, or a match with none or several.
    """
    if not isinstance(raw, list) or not raw:
        raise ConfigError(
            where, said(raw), f"a list of at least one method is wanted (policies: {', '.join(POLICIES)})"
        )
    methods = [parse_method(entry, f"{where}[{index}]") for index, entry in enumerate(raw)]
    first: dict[str, int] = {}
    for index, method in enumerate(methods):
        # Names become file names, and not every file system tells upper from lower case.
        other = first.setdefault(method.name.casefold(), index)
        if other != index:
            what = f"{method.name!r} is the name of {where}[{other}] as well"
            raise ConfigError(f"{where}[{index}].name", what, "each method needs a name of its own")
    return [_matched(method, methods, f"{where}[{index}]") for index, method in enumerate(methods)]


def parse_method(raw: Any, where: str) -> MethodConfig:
    """One entry of `methods`: a policy's name, or a mapping. Its `match` is left as it is."""
    entry = {"policy": raw} if isinstance(raw, str) else raw
    policies = f"one of {', '.join(POLICIES)} is wanted"
    if not isinstance(entry, dict):
        raise ConfigError(where, said(raw), "a policy's name or a mapping with the key policy is wanted")
    name = entry.get("policy")
    if not isinstance(name, str) or name not in POLICIES:
        what = f"unknown policy {name!r}{hint(str(name), POLICIES)}" if "policy" in entry else "is missing"
        raise ConfigError(f"{where}.policy", what, policies)

    where = f"{where} ({name})"
    own, params = own_keys(), policy_keys(name)
    hints = get_type_hints(POLICIES[name]) | get_type_hints(MethodConfig)
    refuse_unknown(entry, [*own, *params], where)
    values = {
        key: convert(value, hints[key], own[key].metadata if key in own else {}, f"{where}.{key}")
        for key, value in entry.items()
    }
    given = {key: value for key, value in values.items() if key in params}
    rest = {key: value for key, value in values.items() if key in own}
    method = MethodConfig(**{"name": default_name(name, values), **rest, "params": given})
    return _with_defaults(method, params, where)


def own_keys() -> dict[str, dataclasses.Field[Any]]:
    """The keys that every method takes, and their fields."""
    return {item.name: item for item in dataclasses.fields(MethodConfig) if item.name != "params"}


def policy_keys(policy: str) -> list[str]:
    """The keys that a method takes for its policy: the policy's own parameters."""
    return [item.name for item in dataclasses.fields(POLICIES[policy]) if item.init and item.name not in own_keys()]


def default_name(stem: str, values: Mapping[str, Any]) -> str:
    """A stem and what was given, as a file name: `buzz-stride7-window64`, `h2o-match-buzz`, `comb-echo-true`."""
    parts = [stem]
    for key, value in sorted(values.items()):
        if key not in ("policy", "name") and value is not None:
            told = f"{value:g}".replace("e+", "e") if isinstance(value, float) else str(value)
            told = told.lower() if isinstance(value, bool) else told  # as YAML has it
            parts.append(f"{key}-{told}" if isinstance(value, str | bool) else f"{key}{told}")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))


def _with_defaults(method: MethodConfig, params: list[str], where: str) -> MethodConfig:
    """The method with all of its policy's parameters, once the policy has accepted them."""
    given = [key for key in ("budget", "reduction", "match") if getattr(method, key) is not None]
    if len(given) > 1:
        raise ConfigError(f"{where}.{given[1]}", f"is given beside {given[0]}", "at most one of the two can be")
    if method.match_by is not None and method.match is None:
        raise ConfigError(
            f"{where}.match_by", f"is {method.match_by}, but there is no match", "match is wanted with it"
        )
    sized = given[0] if given else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the policy warns when it is built for use
            policy = method.make_policy()
            if sized and not policy.sizable:
                what = f"{method.policy} with these parameters never settles at a cache length"
                raise ConfigError(f"{where}.{sized}", what, "a policy that keeps evicting is wanted")
            if isinstance(method.budget, int):
                type(policy).from_budget(method.budget, **method.params)
    except (TypeError, ValueError) as error:
        raise _policy_error(error, where, [*params, "logn_base", "budget", "reduction"]) from error
    if sized:
        return method
    return dataclasses.replace(method, params={name: getattr(policy, name) for name in params})


def _policy_error(error: Exception, where: str, keys: Sequence[str]) -> ConfigError:
    """`buzz: window must be at least 1, got 0` -> `methods[2] (buzz).window: is 0, must be at least 1`."""
    message = re.sub(r"^\w+: ", "", str(error))
    exact = re.fullmatch(r"(\w+) (must be .+), got (.+)", message)
    if exact and exact[1] in keys:
        return ConfigError(f"{where}.{exact[1]}", f"is {exact[3]}", exact[2])
    named = [word for word in re.findall(r"\w+", message) if word in keys]
    return ConfigError(f"{where}.{named[0]}" if named else where, message)


def baselines(methods: Sequence[MethodConfig], name: str, where: str) -> dict[str, str]:
    """What each method is compared with if all are to be compared with one: the name of a method, by method.

    That is the method of this name; or the one whose name adds to it the memory that the compared method asks for, as
    a sweep names methods: `h2o-reduction4` for all with a `reduction` of 4 where `h2o` is asked for.

    Raises:
        ConfigError: no method has such a name, or no other has its memory.
    """
    known = dict.fromkeys(method.name for method in methods)  # in their order
    found, alone = {}, False
    for method in methods:
        memory = {key: getattr(method, key) for key in ("budget", "match", "match_by", "reduction")}
        other = name if name in known else default_name(name, memory)
        if other in known and other != method.name:
            found[method.name] = other
        alone |= other == method.name
    if not found and alone:
        raise ConfigError(
            where,
            f"{name!r} is the only method" + ("" if name in known else " at its memory"),
            "another one is wanted" if name in known else "another one with its budget or reduction is wanted",
        )
    if not found:
        raise ConfigError(
            where, f"{name!r} is no method to compare others with", f"one of {', '.join(known)} is wanted"
        )
    return found


def parse_compare(raw: Any, where: str) -> list[str]:
    """Names of methods: a text, a list of texts, or null for none."""
    names = [raw] if isinstance(raw, str) else [] if raw is None else raw
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(where, said(raw), "the name of a method, or a list of such names, is wanted")
    return list(dict.fromkeys(names))


def _matched(method: MethodConfig, methods: list[MethodConfig], where: str) -> MethodConfig:
    """The method with `match` as the full name of another method; a policy's name will do where only one has it."""
    if method.match is None:
        return method
    others = [other for other in methods if other is not method and other.match is None]
    found = [other for other in others if other.name == method.match]
    found = found or [other for other in others if other.policy == method.match]
    if len(found) != 1:
        what = f"{method.match!r} names {'more than one' if found else 'no other'} method without a match of its own"
        names = ", ".join(other.name for other in others)
        raise ConfigError(f"{where} ({method.policy}).match", what, f"one of {names} is wanted" if names else "")
    return dataclasses.replace(method, match=found[0].name)
