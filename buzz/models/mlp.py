"""The gated MLP, down(activation(gate(x)) * up(x)), in the two forms that families give it."""

from __future__ import annotations

from typing import Any

import torch

from buzz.models.family import Family
from buzz.models.tensor_parallel import local
from buzz.models.untouched import is_linear, is_untouched

# Names in configurations, and the kernels'.
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


def is_gated(family: Family, mlp: Any) -> bool:
    """Whether a module is the family's gated MLP, with an activation that the kernels have."""
    return is_untouched(mlp, family.kind("MLP")) and activation_of(mlp) is not None


def activation_of(mlp: Any) -> Any:
    """The kernels' name of its activation; None: they have none."""
    config = mlp.config
    return _ACTIVATIONS.get(getattr(config, "hidden_activation", None) or config.hidden_act)


def is_joint(mlp: Any) -> bool:
    """Whether one projection gives gate and up, one after the other."""
    return hasattr(mlp, "gate_up_proj")


def inner_linears(mlp: Any) -> list[Any]:
    """Its projections before the gate."""
    return [mlp.gate_up_proj] if is_joint(mlp) else [mlp.gate_proj, mlp.up_proj]


def gate_and_up(mlp: Any) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
    """Weights [inner, width] and biases [inner] or None of gate and up, of projections that are untouched; of spread
    ones this process's rows."""
    linears = inner_linears(mlp)
    if not is_joint(mlp):
        return [local(linear.weight) for linear in linears], [local(linear.bias) for linear in linears]
    (joint,) = linears
    biases = [None, None] if joint.bias is None else list(joint.bias.chunk(2))
    return list(joint.weight.chunk(2)), biases


def has_matrices(mlp: Any, dtype: torch.dtype) -> bool:
    """Whether its projections before the gate are untouched matrices in a dtype."""
    return all(is_linear(linear, dtype) for linear in inner_linears(mlp))
