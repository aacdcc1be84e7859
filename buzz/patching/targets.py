"""What of a model is patched, and whether it can be: only modules that are what their family's classes say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from buzz.models.family import Family
from buzz.patching.forwards import attention_forward, backbone_forward, layer_forward
from buzz.patching.standin import difference


class UnsupportedModelError(ValueError):
    """The model, or one of its modules, is none that buzz can patch."""


@dataclass(frozen=True)
class Targets:
    """The language model to patch, with its family and its backbones."""

    model: Any
    family: Family
    backbones: Sequence[Any]


def find_targets(model: Any, families: Sequence[Family]) -> Targets:
    """Look through wrappers, such as those of torch.compile or DeepSpeed, for the language model inside.

    Raises:
        TypeError: `model` is no module. UnsupportedModelError: of no family, of several models, or with a module that
        is not what its family's class says.
    """
    if not isinstance(model, nn.Module):
        inner = " (did you mean its .model?)" if isinstance(getattr(model, "model", None), nn.Module) else ""
        raise TypeError(f"patch_model takes a model, a torch.nn.Module, got {type(model).__name__}{inner}")
    for family in families:
        kind = family.kind("Model")
        owners = {} if kind is None else {backbone: owner for owner, backbone in _backbones(model, kind)}
        if not owners:
            continue
        roots = list(dict.fromkeys(owners.values()))
        if len(roots) > 1:
            names = ", ".join(_name(model, root) for root in roots)
            raise UnsupportedModelError(f"there are {len(roots)} models in this {_kind(model)}: {names}; patch each")
        targets = Targets(roots[0], family, list(owners))
        for backbone in targets.backbones:
            _check(targets.model, family, backbone)
        return targets
    kind = getattr(getattr(model, "config", None), "model_type", None) or _kind(model)
    supported = ", ".join(family.name for family in families)
    raise UnsupportedModelError(f"cannot patch a {kind!r} model, supported are {supported}")


def _backbones(module: nn.Module, kind: type[nn.Module], owner: Any = None) -> Iterator[tuple[nn.Module, nn.Module]]:
    """The backbones in a module, each with the outermost PreTrainedModel around it, which may be itself."""
    if owner is None and isinstance(module, PreTrainedModel):
        owner = module
    if isinstance(module, kind):
        yield owner if owner is not None else module, module
        return
    for child in module.children():
        yield from _backbones(child, kind, owner)


def _check(model: nn.Module, family: Family, backbone: Any) -> None:
    _refuse(model, backbone, difference(backbone, family.kind("Model"), backbone_forward))
    layers, wanted = list(backbone.layers), backbone.config.num_hidden_layers
    if len(layers) != wanted:
        _refuse(model, backbone, f"it has {len(layers)} layers, its config says {wanted}")
    for index, layer in enumerate(layers):
        _refuse(model, layer, difference(layer, family.kind("DecoderLayer"), layer_forward))
        attention: Any = getattr(layer, "self_attn", None)
        _refuse(model, layer, None if isinstance(attention, nn.Module) else "it has no self_attn")
        _refuse(model, attention, difference(attention, family.kind("Attention"), attention_forward))
        _refuse(model, attention, _beyond(attention))
        if attention.layer_idx != index:
            _refuse(model, attention, f"its layer_idx is {attention.layer_idx}, not {index}")


def _beyond(attention: Any) -> str | None:
    """What an attention module does that buzz's attention does not; None: nothing."""
    if getattr(attention, "attn_logit_softcapping", None) is not None:
        return f"its logits are capped (attn_logit_softcapping={attention.attn_logit_softcapping:g})"
    if getattr(attention, "sinks", None) is not None:
        return "it has attention sinks of its own (sinks)"
    bidirectional = getattr(attention.config, "use_bidirectional_attention", False)
    if bidirectional or not getattr(attention, "is_causal", True):
        return "its queries see later tokens (is_causal=False)"
    return None


def _refuse(model: nn.Module, module: nn.Module, why: str | None) -> None:
    if why is not None:
        raise UnsupportedModelError(f"cannot patch {_name(model, module)}: {why} (docs/limits.md)")


def _name(model: nn.Module, module: nn.Module) -> str:
    """What a module of a model is called."""
    return next((name for name, other in model.named_modules() if other is module and name), _kind(module))


def _kind(module: Any) -> str:
    return type(module).__name__
