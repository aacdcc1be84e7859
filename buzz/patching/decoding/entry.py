"""`model.generate()` of a patched model: which calls are decoded in static memory."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from transformers.distributed.fsdp import is_fsdp_managed_module
from transformers.generation.configuration_utils import GenerationMode
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from buzz.cache import BeehiveCache
from buzz.patching.decoding.engine import Engine
from buzz.patching.decoding.loop import Loop

_RECORDED = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


class GeneratePatch:
    """The `generate` that sat on a model before, and how to put it back; nothing, if the model has none."""

    def __init__(self, model: Any) -> None:
        self._patched = callable(getattr(model, "generate", None))
        self._own = vars(model).get("generate")
        if not self._patched:
            return

        @functools.wraps(self._own or type(model).generate)
        def generate(self: Any, *args: Any, **kwargs: Any) -> Any:  # no reference to the model: it may be copied
            handle = self._buzz_handle
            return _generate(handle.engine, handle.generate_patch.before(self), args, kwargs)

        if self._own is not None:  # a function on the instance takes no `self`
            generate.__signature__ = _with_self(self._own)  # type: ignore[attr-defined]
        model.generate = MethodType(generate, model)

    def before(self, model: Any) -> Callable[..., Any]:
        """What `model.generate` was."""
        return self._own if self._own is not None else MethodType(type(model).generate, model)

    def remove(self, model: Any) -> None:
        """Put it back."""
        if self._own is not None:
            model.generate = self._own
        elif self._patched:
            del model.generate


def _with_self(function: Callable[..., Any]) -> inspect.Signature:
    parameters = list(inspect.signature(function).parameters.values())
    self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return inspect.Signature([self, *parameters])


def _generate(engine: Engine, before: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    cache = kwargs.get("past_key_values")
    if not isinstance(cache, BeehiveCache) or not engine.run.usable(engine.device):
        return before(*args, **kwargs)
    bound = inspect.signature(before).bind(*args, **kwargs)
    arguments = {**bound.arguments, **bound.arguments.get("kwargs", {})}
    why = engine.obstacle() or _obstacle(engine, arguments)
    if why is None and not engine.lock.acquire(blocking=False):
        why = "another call on this model is doing so"
    if why is not None:
        if why not in engine.told:
            engine.told.add(why)
            warnings.warn(f"generate() does not decode in static memory, which is slower: {why}", stacklevel=3)
        return before(*args, **kwargs)
    try:
        engine.refresh()
        return before(*args, **kwargs, custom_generate=Loop(engine, arguments.get("streamer")))
    finally:
        engine.lock.release()


def _obstacle(engine: Engine, arguments: dict[str, Any]) -> str | None:
    """What about a call keeps it from static memory; None: nothing."""
    if arguments.get("custom_generate") is not None:
        return "custom_generate is given"
    model, assistant = engine.model, arguments.get("assistant_model")
    options = {
        name: value for name, value in arguments.items()
        if name not in ("generation_config", "kwargs", "tokenizer") and name not in _NAMED
    }  # fmt: skip
    config, _ = model._prepare_generation_config(arguments.get("generation_config"), **options)
    mode = config.get_generation_mode(assistant)
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        return f"the mode is {mode.value}"
    if config.use_cache is False:
        return "use_cache is off"
    if config.stop_strings is not None:
        return "stop_strings need the tokenizer; give StopStringCriteria as stopping_criteria instead"
    if any(getattr(config, name, None) for name in _RECORDED):
        return "it is asked for " + ", ".join(name[7:] for name in _RECORDED if getattr(config, name, None))
    if _synchronised(model, arguments.get("synced_gpus")):
        return "several GPUs generate in step"
    ids = arguments.get("inputs", arguments.get("input_ids", arguments.get("inputs_embeds")))
    if isinstance(ids, torch.Tensor) and ids.device != engine.device:
        return "the inputs are not on the model's device"
    if torch.is_autocast_enabled(engine.device.type):
        return "autocast is on"
    return None


# Parameters of generate() that are no options of the generation configuration.
_NAMED = (
    "inputs", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "synced_gpus", "assistant_model",
    "streamer", "negative_prompt_ids", "negative_prompt_attention_mask", "custom_generate", "trust_remote_code",
)  # fmt: skip


def _synchronised(model: Any, asked: bool | None) -> bool:
    if asked is not None:
        return asked
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    several = distributed and torch.distributed.get_world_size() > 1
    return several and (is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model))
