"""`model.generate()` of a patched model: what it is given, and which calls are decoded in static memory."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any, ClassVar

import torch
from transformers.distributed.fsdp import is_fsdp_managed_module
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.utils import GenerationMixin
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from buzz.cache import BeehiveCache
from buzz.cache.interface import UNCROPPED
from buzz.decoding.engine import Engine
from buzz.decoding.loop import Loop, fit_to_prompt
from buzz.models.cache_argument import CACHE, named
from buzz.models.shares import give_shares

_RECORDED = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


class Method:
    """Stands in for a method of a model, if it has one, and knows the one that was there."""

    name: ClassVar[str]

    def __init__(self, model: Any) -> None:
        self._model, self._own = model, vars(model).get(self.name)
        if callable(getattr(model, self.name, None)):
            setattr(model, self.name, self)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._before)

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self._before.__doc__

    @property
    def _before(self) -> Callable[..., Any]:
        """What the method was."""
        return self._own if self._own is not None else MethodType(getattr(type(self._model), self.name), self._model)

    def remove(self) -> None:
        """Put it back, unless somebody has put something else there."""
        if vars(self._model).get(self.name) is self:
            if self._own is not None:
                setattr(self._model, self.name, self._own)
            else:
                delattr(self._model, self.name)


class GeneratePatch(Method):
    """`model.generate`."""

    name = "generate"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        handle = vars(self._model).get("_buzz_handle")
        if handle is None:  # somebody kept it
            return self._before(*args, **kwargs)
        handle.refresh()
        return _generate(handle.engine, self._before, args, kwargs)


class InputsPatch(Method):
    """`model.prepare_inputs_for_generation`: a BeehiveCache that it drops is put back.

    Phi3 drops its cache where the text grows past `original_max_position_embeddings`, to read all of it anew: without
    a word the call, and all after it, would go to another cache.
    """

    name = "prepare_inputs_for_generation"

    def __call__(self, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        kwargs = named(kwargs)
        inputs, cache = self._before(input_ids, *args, **kwargs), kwargs.get(CACHE)
        if isinstance(cache, BeehiveCache) and inputs.get(CACHE) is not cache:
            return GenerationMixin.prepare_inputs_for_generation(self._model, input_ids, *args, **kwargs)
        return inputs


class PrefillPatch(Method):
    """`model._prefill`, which reads a prompt, in chunks perhaps: a BeehiveCache is told of all of it."""

    name = "_prefill"

    def __call__(self, input_ids: Any, generation_config: Any, model_kwargs: Any, *args: Any, **kwargs: Any) -> Any:
        fit_to_prompt(model_kwargs.get(CACHE), input_ids, model_kwargs)
        return self._before(input_ids, generation_config, model_kwargs, *args, **kwargs)


def _generate(engine: Engine, before: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    kwargs = named(kwargs)
    cache = kwargs.get(CACHE)
    if not isinstance(cache, BeehiveCache):
        return before(*args, **kwargs)
    bound = inspect.signature(before).bind(*args, **kwargs)
    arguments = {**bound.arguments, **bound.arguments.get("kwargs", {})}
    if _is_assisted(engine.model, arguments):
        raise NotImplementedError(UNCROPPED)
    _check_prompt(cache, arguments)
    if _said(engine.model, arguments, "use_cache") is False:
        raise ValueError(
            "use_cache=False (of the call, or of the model's generation_config) and a BeehiveCache are given: "
            "leave out one of them, or set model.generation_config.use_cache = True"
        )
    if not engine.run.usable(engine.device):
        return before(*args, **kwargs)
    why = engine.obstacle() or _obstacle(engine, arguments)
    if why is None and not engine.lock.acquire(blocking=False):
        why = "another call on this model is doing so"
    if why is not None:
        if why not in engine.told:
            engine.told.add(why)
            warnings.warn(f"generate() does not decode in static memory, which is slower: {why}", stacklevel=3)
        return before(*args, **kwargs)
    try:
        engine.check(cache)
        give_shares(cache, engine.model)
        engine.refresh()
        return before(*args, **kwargs, custom_generate=Loop(engine, arguments.get("streamer")))
    finally:
        engine.lock.release()


def _check_prompt(cache: BeehiveCache, arguments: Mapping[str, Any]) -> None:
    """Refuse a prompt of which nothing is left to read, and one that is not the whole text.

    Raises:
        ValueError: says how many tokens the cache has seen, and how many the prompt has.
    """
    given = [arguments.get(name) for name in ("inputs", "input_ids", "inputs_embeds")]
    widths = [t.shape[1] for t in given if isinstance(t, torch.Tensor) and t.dim() > 1]
    seen = cache.get_seq_length()
    if seen and widths and max(widths) <= seen:
        raise ValueError(
            f"the cache has seen {seen} tokens, the prompt has {max(widths)}: generate() takes the whole text so far, "
            "of which it reads what the cache has not seen; cache.reset() starts anew (docs/limits.md)"
        )


def _is_assisted(model: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether a call of generate(), or a configuration behind it, asks for assisted decoding, which crops its cache."""
    if arguments.get("custom_generate") is not None:
        return False
    names = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")
    return any(_said(model, arguments, name) not in (None, False) for name in names)


def _said(model: Any, arguments: Mapping[str, Any], name: str) -> Any:
    """What a call of generate() says of an option, or else the configurations behind it; None: nothing."""
    configs = arguments.get("generation_config"), getattr(model, "generation_config", None)
    said = [arguments.get(name), *(getattr(config, name, None) for config in configs)]
    return next((value for value in said if value is not None), None)


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
