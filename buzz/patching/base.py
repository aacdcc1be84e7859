"""What the patches of all model families share: rows in, rows out, and one attention call against the cache."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from buzz.cache import BeehiveCache, Call
from buzz.patching.decoding.capture import Captured
from buzz.patching.decoding.engine import Engine
from buzz.patching.decoding.entry import GeneratePatch
from buzz.patching.decoding.step import StaticLayer
from buzz.patching.family import Family
from buzz.patching.prompt import PatchedLayer, Prompt, layer_forward
from buzz.patching.tensor_parallel import spread_heads


@dataclass
class _Attention:
    """What a patched attention module remembers."""

    family: Family
    context: Any
    forward: Callable[..., Any]  # the one that was there
    own: bool  # whether that one sat on the module itself


def _attention_forward(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Stands in for the attention module's forward; without a BeehiveCache it is the forward that was there."""
    patched: _Attention = self._buzz
    cache = kwargs.get("past_key_values")
    if isinstance(cache, StaticLayer):
        return patched.family.step(self, hidden_states, cache, kwargs), None
    if not isinstance(cache, BeehiveCache):
        return patched.forward(hidden_states, *args, **kwargs)
    with torch.no_grad():  # eviction has no gradient
        return patched.family.forward(self, hidden_states, cache, patched.context, kwargs), None


def _enter(family: Family, prompt: Prompt, backbone: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Before a backbone's forward: tell the cache which rows come, and bring their tokens to the left."""
    names = inspect.signature(type(backbone).forward).parameters
    inputs = dict(zip(list(names)[1:], args, strict=False)) | kwargs
    cache = inputs.get("past_key_values")
    if not isinstance(cache, BeehiveCache):
        prompt.close()  # a call that failed may have left it open
        return None
    key = "input_ids" if inputs.get("input_ids") is not None else "inputs_embeds"
    tokens, given = inputs[key], inputs.get("position_ids")
    cache.heads = spread_heads(backbone, family.attention)
    call = cache.begin(tokens.shape[0], tokens.shape[1], inputs.get("attention_mask"))
    if family.read is not None:
        prompt.begin(backbone, call.columns)
    if call.order is not None:
        inputs[key] = _pick_columns(tokens, call.order[:, : call.width])
        if given is not None:
            given = _pick_columns(given.expand(len(tokens), -1), call.order[:, : call.width])
        if prompt.ends_only:
            prompt.ends = _back(call)[:, -1:]
    inputs["position_ids"] = family.position_ids(backbone, cache, given, tokens.device)
    # transformers takes a 4D mask as it is, so none is built; which slots a query sees follows from the cache.
    inputs["attention_mask"] = tokens.new_empty(1, 1, 1, 0)
    return (), inputs


def _leave(prompt: Prompt, backbone: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """After a backbone's forward: put every column back where the caller had it."""
    ends_only = prompt.ends_only and output[0].shape[1] == 1
    prompt.close()
    cache = kwargs.get("past_key_values")
    if not isinstance(cache, BeehiveCache) or (call := cache.last_call) is None or call.order is None or ends_only:
        return output
    back = _back(call)
    if isinstance(output, tuple):
        return (_pick_columns(output[0], back), *output[1:])
    output.last_hidden_state = _pick_columns(output.last_hidden_state, back)
    if output.get("hidden_states") is not None:
        output.hidden_states = tuple(_pick_columns(h, back) for h in output.hidden_states)
    return output


def _back(call: Call) -> torch.Tensor:
    """Where every column of the caller is, int64 [B, columns]; pads get the column of some token."""
    assert call.order is not None
    return call.order.argsort(dim=1).clamp(max=call.width - 1)


def _ask(prompt: Prompt, model: Any, kwargs: dict[str, Any]) -> None:
    """Before a language model's forward: what will be looked at."""
    keep, hidden = kwargs.get("logits_to_keep"), kwargs.get("output_hidden_states")
    prompt.asked = type(keep) is int and keep == 1 and not hidden and not model.config.output_hidden_states


def _pick_columns(x: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """x[b, columns[b]] of x [B, L] or [B, L, width]."""
    columns = columns.to(x.device)
    return x.gather(1, columns if x.dim() == 2 else columns[..., None].expand(-1, -1, x.shape[2]))


class PatchHandle:
    """A patch that can be taken back, by `remove()` or by leaving the `with` block it was made for."""

    def __init__(self, model: nn.Module, family: Family) -> None:
        self._model = model
        self._modules: list[Any] = []
        self._hooks: list[RemovableHandle] = []
        self._depth = 0
        backbones = [m for m in model.modules() if isinstance(m, family.backbone)]
        contexts = []
        for backbone in backbones:
            prompt = Prompt()
            self._hooks += [
                backbone.register_forward_pre_hook(_Enter(family, prompt), with_kwargs=True),
                backbone.register_forward_hook(_Leave(prompt), with_kwargs=True),
            ]
            context = family.context(backbone)
            contexts.append(context)
            for module in [m for m in backbone.modules() if isinstance(m, family.attention)]:
                module._buzz = _Attention(family, context, module.forward, "forward" in vars(module))  # type: ignore
                module.forward = MethodType(_attention_forward, module)
                self._modules.append(module)
            for owner in [m for m in model.modules() if isinstance(m, family.model) and backbone in m.children()]:
                self._hooks.append(owner.register_forward_pre_hook(_Ask(prompt), with_kwargs=True))
            for module in backbone.modules() if family.read is not None else ():
                if isinstance(module, family.layer) and "forward" not in vars(module):
                    module._buzz = PatchedLayer(prompt, family.read, module.forward)  # type: ignore
                    module.forward = MethodType(layer_forward, module)
                    self._modules.append(module)
        self.engine = Engine(model, family, backbones, contexts[0], Captured())
        self.generate_patch = GeneratePatch(model)
        model._buzz_handle = self  # type: ignore[assignment]

    def remove(self) -> None:
        """Put every forward back as it was. Doing it again changes nothing."""
        for module in self._modules:
            patched: _Attention | PatchedLayer = module._buzz
            if patched.own:
                module.forward = patched.forward
            else:
                del module.forward
            del module._buzz
        for hook in self._hooks:
            hook.remove()
        if self._modules:
            del self._model._buzz_handle
            self.generate_patch.remove(self._model)
        self.engine.clear()
        self._modules, self._hooks = [], []

    def __enter__(self) -> PatchHandle:
        self._depth += 1
        return self

    def __exit__(self, *exc: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.remove()


@dataclass(frozen=True)
class _Enter:
    family: Family
    prompt: Prompt

    def __call__(self, backbone: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _enter(self.family, self.prompt, backbone, args, kwargs)


@dataclass(frozen=True)
class _Ask:
    prompt: Prompt

    def __call__(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _ask(self.prompt, model, kwargs)


@dataclass(frozen=True)
class _Leave:
    prompt: Prompt

    def __call__(self, backbone: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return _leave(self.prompt, backbone, args, kwargs, output)
