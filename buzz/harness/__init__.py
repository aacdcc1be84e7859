"""EleutherAI's lm-evaluation-harness with caches that evict: the model `buzz` for lm-eval.

Read `model`, what lm-eval calls, then `likelihood`, one batch read through a cache, `arguments`, what a user may give,
`fitting`, the policy of a request, and `kept`, what is told of its cache. `cli` is lm-eval's own command line with this
model in it. lm-eval is imported by `model` and `register` alone, and only when they are asked for.
"""

from __future__ import annotations

import importlib
import importlib.util

from buzz.evaluation.errors import ConfigError

MODEL = "buzz"  # its name in lm-eval


def register() -> None:
    """Make the model known to lm-eval in this process, as `buzz`. Doing it again changes nothing.

    lm-eval 0.4.13 looks for models in its own table alone, so somebody has to do this before it is asked for one.

    Raises:
        ConfigError: lm-eval is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("lm-eval", "is not installed", "`pip install lm-eval` is wanted (the extra lm-eval of buzz)")
    importlib.import_module("lm_eval.models")  # fills the table, which it leaves alone if somebody was there first
    from lm_eval.api.registry import model_registry

    if MODEL not in model_registry:
        model_registry.register(MODEL, target="buzz.harness.model:BuzzLM")


__all__ = ["MODEL", "register"]
