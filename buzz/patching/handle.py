"""The patch of a model: what was put where, and how it is taken back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.utils.hooks import RemovableHandle

from buzz.cache import Shape
from buzz.decoding.capture import Captured
from buzz.decoding.engine import Engine
from buzz.models.layer import Prompt
from buzz.patching.forwards import (
    PatchedAttention,
    PatchedBackbone,
    PatchedLayer,
    attention_forward,
    backbone_forward,
    layer_forward,
)
from buzz.patching.generate import GeneratePatch, InputsPatch, Method, PrefillPatch
from buzz.patching.standin import difference, install, uninstall
from buzz.patching.targets import Targets, find_targets
from buzz.policies import HeadShares


class PatchHandle:
    """A patch that can be taken back, by `remove()` or by leaving the `with` block it was made for.

    Attributes:
        engine: decoding in static memory.
        shares: of the model's heads, once they are known (`buzz.head_shares`). measuring: whether they are being
            measured.
    """

    def __init__(self, targets: Targets) -> None:
        self._depth = 0
        self.shares: HeadShares | None = None
        self.measuring = False
        self._put(targets)

    def _put(self, targets: Targets) -> None:
        """Patch all of it, or nothing."""
        model, family = targets.model, targets.family
        self._targets = targets
        self._installed: list[tuple[Any, Any]] = []  # modules and what stands in for their forwards
        self._hooks: list[RemovableHandle] = []
        self._methods: list[Method] = []  # of the model, with what stands in for them
        all_positions = []
        try:
            for backbone in targets.backbones:
                prompt, positions = Prompt(), family.positions(backbone)
                all_positions.append(positions)
                note = PatchedBackbone(self, family, positions, prompt, Shape.of(backbone.config))
                self._install(backbone, backbone_forward, note)
                for layer in backbone.layers:
                    self._install(layer.self_attn, attention_forward, PatchedAttention(family, positions))
                    # Layers with a forward of their own, such as one that moves inputs to its device, stay.
                    if family.norms is not None and "forward" not in vars(layer):
                        self._install(layer, layer_forward, PatchedLayer(prompt, family))
                note.remember(backbone)
                for owner in model.modules():
                    if backbone in owner.children() and difference(owner, family.kind("ForCausalLM")) is None:
                        self._hooks.append(owner.register_forward_pre_hook(_Ask(prompt), with_kwargs=True))
            self.engine = Engine(model, family, targets.backbones, all_positions[0], Captured())
            self._methods = [GeneratePatch(model), InputsPatch(model), PrefillPatch(model)]
            model._buzz_handle = self
        except BaseException:
            self.remove()
            raise

    def _install(self, module: Any, function: Any, note: Any) -> None:
        self._installed.append((module, function))
        install(module, function, note)

    def refresh(self) -> None:
        """Patch what has been put in the place of patched modules since."""
        if not all(backbone._buzz.is_whole(backbone) for backbone in self._targets.backbones):
            self.renew()

    def renew(self, model: Any = None) -> None:
        """Patch what has been put in the place of patched modules, or a larger model around the patched one.

        Raises:
            UnsupportedModelError: something cannot be patched; then nothing is.
        """
        family, engine = self._targets.family, self.engine
        self.remove()
        self._put(find_targets(self._targets.model if model is None else model, [family]))
        self.engine.run, self.engine.told = engine.run, engine.told

    @property
    def model(self) -> Any:
        """What `generate()` is called on."""
        return self._targets.model

    def remove(self) -> None:
        """Put every forward back as it was. Doing it again changes nothing."""
        for module, function in self._installed:
            uninstall(module, function)
        for hook in self._hooks:
            hook.remove()
        if vars(self.model).get("_buzz_handle") is self:
            del self.model._buzz_handle
        for method in self._methods:
            method.remove()
        if self._methods:
            self.engine.clear()
        self._installed, self._hooks, self._methods = [], [], []

    def __enter__(self) -> PatchHandle:
        self._depth += 1
        return self

    def __exit__(self, *exc: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.remove()

    def __repr__(self) -> str:
        if not self._installed:
            return "PatchHandle(removed)"
        name, family = type(self.model).__name__, self._targets.family
        layers = sum(function is attention_forward for _, function in self._installed)
        return f"PatchHandle({name}, family={family.name!r}, layers={layers})"


@dataclass(frozen=True)
class _Ask:
    """Before a language model's forward: what will be looked at."""

    prompt: Prompt

    def __call__(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep = kwargs.get("logits_to_keep")
        recorded = ("output_hidden_states", "output_router_logits")
        watched = any(kwargs.get(name) or getattr(model.config, name, False) for name in recorded)
        self.prompt.asked = type(keep) is int and keep == 1 and not watched
