"""A model family: what it does otherwise than Llama."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from buzz.models.positions import Learned, Rotary

Projected = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Role = Literal["ForCausalLM", "Model", "DecoderLayer", "Attention", "RMSNorm", "MLP"]


def separate(family: Family, attention: Any, hidden: torch.Tensor) -> Projected:
    """Queries, keys and values by three projections.

    Heads are counted from what these give, not from the configuration: under tensor parallelism a process has some.
    """
    shape = (*hidden.shape[:2], -1, attention.head_dim)
    return (
        attention.q_proj(hidden).view(shape),
        attention.k_proj(hidden).view(shape),
        attention.v_proj(hidden).view(shape),
    )


def every(attention: Any) -> bool:
    """Every layer rotates its queries and keys."""
    return True


def by_head_width(attention: Any) -> float:
    """The factor of attention logits that the module was made with."""
    return attention.scaling


def unscaled(layer: Any) -> float:
    """A factor that is not there."""
    return 1.0


def embedded(backbone: Any, ids: torch.Tensor) -> torch.Tensor:
    """What goes into the first layer [B, 1, width], of ids int64 [B, 1]; learned positions come to it."""
    return backbone.embed_tokens(ids)


def finished(backbone: Any, hidden: torch.Tensor) -> torch.Tensor:
    """What goes into the output layer, of hidden [B, 1, width]."""
    return backbone.norm(hidden)


def as_they_are(config: Any, logits: torch.Tensor) -> torch.Tensor:
    """The model's logits, of those of its output layer."""
    return logits


# eq: functions and dictionaries have no order worth comparing; a family is itself.
@dataclass(frozen=True, eq=False)
class Family:
    """One model family, by what it does otherwise than Llama. It can be pickled: its functions have names.

    All else is derived from the modules: faster layers for prompts and kernels for one row wherever norms and MLP are
    of the family's own classes, KV heads from what `project` gives, windows from the configuration
    (`buzz.cache.Shape`).

    Args:
        name: `config.model_type` of the language model.
        prefix: of the names of its classes, such as `LlamaAttention`.
        module: where those are; None: in transformers, by the family's name.
        names: classes that are not called prefix + role, by role.
        project: (family, attention, hidden [B, L, width]) -> q [B, L, Hq, D], k and v [B, L, Hkv, D], normed where the
            family norms them, not rotated.
        positions: how tokens get their positions.
        rotates: attention -> whether that layer rotates queries and keys, in a family with rotary positions.
        scale: attention -> factor of its logits.
        norms: where a layer has RMS norms: before its two blocks, after them (before the sum), or both; None: it has
            none, so that it has no faster way either.
        offset: what is added to the weights of its norms.
        residual: layer -> factor of what a block adds to the residual.
        embed, finish, logits: what comes before the layers, after them, and after the output layer.
    """

    name: str
    prefix: str
    module: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    project: Callable[[Any, Any, torch.Tensor], Projected] = separate
    positions: type[Rotary] | type[Learned] = Rotary
    rotates: Callable[[Any], bool] = every
    scale: Callable[[Any], float] = by_head_width
    norms: Literal["before", "after", "both"] | None = "before"
    offset: float = 0.0
    residual: Callable[[Any], float] = unscaled
    embed: Callable[[Any, torch.Tensor], torch.Tensor] = embedded
    finish: Callable[[Any, torch.Tensor], torch.Tensor] = finished
    logits: Callable[[Any, torch.Tensor], torch.Tensor] = as_they_are

    def __deepcopy__(self, memo: dict[int, Any]) -> Family:
        return self

    def kind(self, role: Role) -> Any:
        """The class of a role; None: the family has none, or nobody has imported it, so that no model can be of it."""
        home = sys.modules.get(self.module or f"transformers.models.{self.name}.modeling_{self.name}")
        return getattr(home, self.class_name(role), None)

    def class_name(self, role: Role) -> str:
        """What the class of a role is called."""
        return self.names.get(role, self.prefix + role)
