"""The policy of each request: the method's own, or the one that comes nearest to the memory it asks for."""

from __future__ import annotations

from buzz.evaluation.config.methods import MethodConfig
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.run.budgets import policy_for
from buzz.policies import Policy
from buzz.words import told


class Fitting:
    """Policies for texts of any length; nothing is lost because one of them is too short.

    A share of a short text may be less than the policy can hold at all: its sink and a slot, say. Such a text gets the
    smallest cache that the policy can have, which `is_least` tells.

    Args:
        method: of the model's arguments.
        layers: of the model, those that policies decide over.

    Raises:
        ConfigError: there is no budget that this policy can be fitted to.
    """

    def __init__(self, method: MethodConfig, layers: int) -> None:
        self._method, self._layers = method, layers
        self._known: dict[tuple[int, int], Policy] = {}
        self._least: Policy | None = None
        if method.reduction is not None or isinstance(method.budget, float):
            self._least = _least(method)

    def policy(self, first: int, calls: int) -> Policy:
        """For a text of which `first` tokens are read in one call, and the others in so many one-token calls."""
        key = (first, calls)
        if key not in self._known:
            try:
                self._known[key] = policy_for(self._method, first, calls, None, self._layers)
            except ConfigError:
                if self._least is None:
                    raise
                self._known[key] = self._least
        return self._known[key]

    def is_least(self, policy: Policy) -> bool:
        """Whether a policy is the smallest that a share or a reduction can come to."""
        return policy == self._least


def _least(method: MethodConfig) -> Policy:
    """The policy for the smallest budget that it can be fitted to."""
    base, held = method.make_policy(), method.params
    try:
        return base.from_budget(base.least_budget(**held), **held)
    except ValueError as error:
        key = "budget" if method.budget is not None else "reduction"
        what = f"no budget fits {method.policy} with these parameters ({told(error)})"
        raise ConfigError(f"model_args.{key}", what, "fewer parameters beside it are wanted") from error
