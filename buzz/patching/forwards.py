"""The forwards that stand in for a backbone's and its attention modules': the same as theirs without a BeehiveCache."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from buzz.cache import BeehiveCache, Call, Shape
from buzz.models.attention import attend_in_call, attend_in_step
from buzz.models.cache_argument import CACHE, named, refuse_other
from buzz.models.family import Family
from buzz.models.layer import Prompt, read
from buzz.models.outputs import output_weight
from buzz.models.positions import Learned, Rotary
from buzz.models.shares import give_shares
from buzz.models.slots import StaticLayer
from buzz.models.tensor_parallel import spread_heads
from buzz.models.untouched import is_watched
from buzz.patching.columns import pick_columns
from buzz.patching.echo import read_again, refuse_positions
from buzz.patching.masks import tokens_of
from buzz.patching.standin import own_forward


@dataclass
class PatchedAttention:
    """What a patched attention module remembers."""

    family: Family
    positions: Rotary | Learned


@dataclass
class PatchedBackbone:
    """What a patched backbone remembers.

    shape: of the caches that it takes. told: warnings that were given. patched: how its modules were left.
    """

    handle: Any
    family: Family
    positions: Rotary | Learned
    prompt: Prompt
    shape: Shape
    told: set[str] = field(default_factory=set)
    patched: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy's modules are patched anew when it is first called."""
        return {**vars(self), "patched": None}

    def remember(self, backbone: Any) -> None:
        """The backbone and all in it is patched now."""
        self.patched = list(_patched(backbone))

    def is_whole(self, backbone: Any) -> bool:
        """Whether backbone, layers and attention are those that were patched, with the forwards that they had then."""
        return self.patched is not None and self.patched == list(_patched(backbone))

    def warn_once(self, text: str) -> None:
        """A warning that a patched model gives once, of calls that somebody made."""
        if text not in self.told and not self.handle.measuring:
            self.told.add(text)
            warnings.warn(text, stacklevel=2)


def _patched(backbone: Any) -> Iterator[Any]:
    """What a replaced module or forward changes, or another number of layers, or another sliding window."""
    layers, config = list(backbone.layers), backbone.config
    yield config.num_hidden_layers, getattr(config, "sliding_window", None)
    for module in (backbone, *layers, *(getattr(layer, "self_attn", layer) for layer in layers)):
        own = vars(module)
        yield module, type(module), type(module).forward, own.get("forward"), own.get("_old_forward")


@dataclass
class PatchedLayer:
    """What a patched decoder layer remembers."""

    prompt: Prompt
    family: Family


def layer_forward(layer: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Stands in for the forward of a decoder layer."""
    patched: PatchedLayer | None = vars(layer).get("_buzz")
    if patched is None or args or not patched.prompt.open:
        return own_forward(layer, hidden_states, *args, **kwargs)
    return read(patched.family, layer, hidden_states, patched.prompt, kwargs)


def attention_forward(module: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Stands in for the forward of an attention module."""
    patched: PatchedAttention | None = vars(module).get("_buzz")
    cache = kwargs.get(CACHE)
    if patched is None or not isinstance(cache, StaticLayer | BeehiveCache):
        return own_forward(module, hidden_states, *args, **kwargs)
    if isinstance(cache, StaticLayer):
        return attend_in_step(module, patched.family, patched.positions, hidden_states, cache, kwargs), None
    return _attend(module, patched, hidden_states, cache, kwargs), None


@torch.compiler.disable
def _attend(
    module: Any, patched: PatchedAttention, hidden: torch.Tensor, cache: BeehiveCache, kwargs: dict[str, Any]
) -> torch.Tensor:
    """The attention of a call against a cache; a compiled layer breaks its graph here."""
    if cache.skip(module.layer_idx):
        return torch.zeros_like(hidden)
    if not torch.is_grad_enabled():
        return attend_in_call(module, patched.family, patched.positions, hidden, cache, kwargs)
    with torch.no_grad():
        output = attend_in_call(module, patched.family, patched.positions, hidden, cache, kwargs)
    asking = (t for t in (hidden, *module.parameters()) if t.requires_grad)
    return output if (first := next(asking, None)) is None else _NoGradient.apply(output, first)


class _NoGradient(torch.autograd.Function):
    """Passes attention on, and refuses to be differentiated through."""

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, asking: torch.Tensor) -> torch.Tensor:
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise RuntimeError("a BeehiveCache has no gradient: train without it (docs/limits.md)")


def backbone_forward(backbone: Any, *args: Any, **kwargs: Any) -> Any:
    """Stands in for the forward of a backbone."""
    patched: PatchedBackbone | None = vars(backbone).get("_buzz")
    if patched is not None:
        refuse_other(kwargs)
        kwargs = named(kwargs)
        cache = kwargs.get(CACHE)
        if args and cache is None:
            cache = next((x for x in args if isinstance(x, BeehiveCache)), None)
        if isinstance(cache, BeehiveCache):
            return _call(backbone, patched, cache, args, kwargs)
        patched.prompt.close()  # a call that failed may have left it open
    return own_forward(backbone, *args, **kwargs)


@torch.compiler.disable
def _call(
    backbone: Any, patched: PatchedBackbone, cache: BeehiveCache, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """One call of a cache: tell it which tokens come, bring those of every row to the left, and the output back."""
    inputs = kwargs
    if args:
        names = list(inspect.signature(type(backbone).forward).parameters)[1:]
        inputs = dict(zip(names, args, strict=False))
        if inputs.keys() & kwargs:
            return own_forward(backbone, *args, **kwargs)  # which says what is wrong
        inputs |= kwargs
    key = "input_ids" if inputs.get("input_ids") is not None else "inputs_embeds"
    if inputs.get(key) is None or (key == "input_ids" and inputs.get("inputs_embeds") is not None):
        return own_forward(backbone, *args, **kwargs)  # which says what is wrong
    if not patched.is_whole(backbone):
        patched.handle.renew()
        patched = backbone._buzz
    try:
        return _run(backbone, patched, cache, inputs, key)
    except BaseException:
        cache.cancel()
        raise
    finally:
        patched.prompt.close()  # what was asked of this call does not hold for the next


def _run(backbone: Any, patched: PatchedBackbone, cache: BeehiveCache, inputs: dict[str, Any], key: str) -> Any:
    tokens, prompt = inputs[key], patched.prompt
    _refuse(backbone, tokens, key, inputs)
    cache.check(patched.shape)
    cache.filled_by(backbone)
    given = _positions(inputs.get("position_ids"), tokens)
    cache.heads = spread_heads(backbone.layers[0].self_attn, patched.shape.heads)
    cache.check_place((next(layer.parameters()).device for layer in backbone.layers), cache.heads is not None)
    for layer, block in enumerate(backbone.layers):
        if "projected" in cache.integers.policy(layer).reads:
            output_weight(block.self_attn)  # which says what is wrong
    asked = prompt.asked  # of this call, not of those that measure
    give_shares(cache, patched.handle.model)
    prompt.asked = asked
    patched.positions.renew()
    rows, columns = tokens.shape[:2]
    mask = tokens_of(inputs.get("attention_mask"), rows, columns, cache.get_seq_length())
    call = cache.begin(rows, columns, mask)
    as_dict = inputs.pop("return_dict", None)
    _arrange(backbone, patched, cache, call, inputs, key, given)
    refuse_positions(patched.positions, cache, call.counts, inputs["position_ids"])
    output = own_forward(backbone, **inputs, return_dict=True)
    if call.order is not None:
        _put_back(output, call, moved=prompt.ends_only and output.last_hidden_state.shape[1] == 1)
    if cache.hearing is not None:
        quick = None if patched.family.norms is None else prompt
        read_again(backbone, patched.positions, quick, cache, inputs, key, call.counts)
    if as_dict is None:
        as_dict = getattr(backbone.config, "return_dict", True)
    return output if as_dict else output.to_tuple()


def _put_back(output: Any, call: Call, moved: bool) -> None:
    """Put the columns of an output back where the caller had them; moved: those of the last hidden state are there."""
    back = _back(call)
    hidden = output.get("hidden_states") or ()
    hidden = tuple(h if h is None else pick_columns(h, back) for h in hidden)
    last = output.last_hidden_state if moved else pick_columns(output.last_hidden_state, back)
    if not all(call.counts):  # a row without a token has nothing to give
        empty = torch.tensor([not count for count in call.counts], device=last.device)[:, None, None]
        last, hidden = last.masked_fill(empty, 0), tuple(h if h is None else h.masked_fill(empty, 0) for h in hidden)
    output.last_hidden_state = last
    if hidden:
        output.hidden_states = hidden
    if router := output.get("router_logits"):  # [B * width, experts] of each layer
        rows = len(back)
        output.router_logits = tuple(pick_columns(r.view(rows, call.width, -1), back).flatten(0, 1) for r in router)


def _arrange(
    backbone: Any,
    patched: PatchedBackbone,
    cache: BeehiveCache,
    call: Call,
    inputs: dict[str, Any],
    key: str,
    given: torch.Tensor | None,
) -> None:
    """Rewrite the inputs of a call: the tokens of every row at the left, with the positions that they get."""
    tokens, family, prompt = inputs[key], patched.family, patched.prompt
    watched = call.order is not None and any(map(is_watched, backbone.modules()))
    if family.norms is not None:
        prompt.begin(backbone, call.columns)
    if watched:
        patched.warn_once(
            "hooks on modules see the tokens of padded rows at the left, without the pads between them (docs/limits.md)"
        )
    if call.order is not None:
        order = call.order[:, : call.width]
        inputs[key] = pick_columns(tokens, order)
        if given is not None:
            given = pick_columns(given.expand(len(tokens), -1), order)
        if prompt.ends_only:
            prompt.ends = _back(call)[:, -1:]
    by_slot = cache.positions == "cache"
    if given is not None and by_slot:
        _compare_positions(patched, call, given)
    inputs["position_ids"] = patched.positions.ids(call, by_slot, given, tokens.device)
    if len(tokens) > 1 and not patched.positions.constant:
        patched.warn_once(
            "this model's rotary angles depend on the longest row of a call, so the rows of a batch depend on their "
            "neighbours, as in the unpatched model (docs/limits.md)"
        )
    # transformers takes a 4D mask as it is, so none is built; which slots a query sees follows from the cache.
    inputs["attention_mask"] = tokens.new_empty(1, 1, 1, 0)


def _refuse(backbone: Any, tokens: torch.Tensor, key: str, inputs: dict[str, Any]) -> None:
    """Refuse in words what a call asks for and a BeehiveCache cannot do."""
    width = 2 if key == "input_ids" else 3
    if tokens.dim() != width or not tokens.shape[1]:
        wanted = "[rows, columns]" if width == 2 else "[rows, columns, width]"
        raise ValueError(f"{key} must be {wanted} with one column or more, got {list(tokens.shape)}")
    asked = inputs.get("output_attentions")
    if asked or (asked is None and getattr(backbone.config, "output_attentions", False)):
        raise ValueError(
            "output_attentions: a BeehiveCache keeps no matrix of attention weights; "
            "leave it out, or run the model without the cache (docs/limits.md)"
        )
    interface = ALL_ATTENTION_FUNCTIONS.get(backbone.config._attn_implementation)
    if not (getattr(interface, "__module__", None) or "transformers.").startswith("transformers."):
        raise ValueError(
            f"the model's attention implementation {backbone.config._attn_implementation!r} is none of transformers', "
            "and with a BeehiveCache it would not be used (docs/limits.md)"
        )
    if any(inputs.get(name) is not None for name in ("cu_seq_lens_q", "cu_seq_lens_k", "block_sequence_ids")):
        raise ValueError("packed sequences cannot be evicted from: give a row to each sequence (docs/limits.md)")
    if not backbone.training:
        return
    checkpointing = any(getattr(m, "gradient_checkpointing", False) for m in (backbone, *backbone.layers))
    # Before 5.24 layers drop a cache without gradients, too.
    if checkpointing and (torch.is_grad_enabled() or CACHE != "cache"):
        why = "gradient checkpointing runs layers without a cache"
    elif any(getattr(backbone.config, name, 0) for name in ("attention_dropout", "layerdrop", "resid_pdrop")):
        why = "dropout of attention or of layers is on"
    else:
        return
    raise ValueError(f"the model is in training mode and {why}: call model.eval() first (docs/limits.md)")


def _positions(given: Any, tokens: torch.Tensor) -> torch.Tensor | None:
    """position_ids of the caller, int64 [1 or B, columns]."""
    if given is None:
        return None
    rows, columns = tokens.shape[:2]
    if not isinstance(given, torch.Tensor) or given.dim() != 2 or given.shape not in ((1, columns), (rows, columns)):
        shape = list(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
        raise ValueError(f"position_ids must be [{rows} or 1, {columns}], one for each token of the call, got {shape}")
    return given


def _compare_positions(patched: PatchedBackbone, call: Call, given: torch.Tensor) -> None:
    """Warn once if a row's positions are not those of its tokens, 0, 1, 2, ..., where slots are the positions."""
    text = (
        "position_ids are not 0, 1, 2, ... in every row, and with positions='cache' a key's position is its slot: "
        "they are not used. With positions='original' they are (docs/limits.md)"
    )
    if text in patched.told or call.empty:
        return
    device = given.device
    inside = torch.arange(call.width, device=device) < torch.tensor(call.counts, device=device)[:, None]  # [B, width]
    if not bool(((call.query_positions(device) == given) | ~inside).all()):
        patched.warn_once(text)


def _back(call: Call) -> torch.Tensor:
    """Where every column of the caller is, int64 [B, columns]; a pad gets the token before it, or the row's first."""
    assert call.tokens is not None
    return (call.tokens.cumsum(dim=1) - 1).clamp(min=0)
