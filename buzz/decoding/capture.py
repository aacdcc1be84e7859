"""Steps as CUDA graphs, of compiled layers where that works."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from buzz.decoding.step import MODULES, StaticStep, run_head, run_layer
from buzz.models.slots import Stages, as_it_is

_WARM_UPS = 3  # calls before a capture: lazy initialisation, compilation, tuning
_SHAPES = 64  # kinds of steps, and numbers of rows, that layer and head may be compiled for in one process


class Captured:
    """Runs a step by replaying a CUDA graph of it: one of each stretch, where its layers are on several devices.

    Args:
        compiled: whether the layers are compiled first.
        options: inductor's, in place of those that are best known for the number of rows.
        kernels: whether a step is not compiled but run by kernels of our own, where they serve it.
    """

    def __init__(self, compiled: bool = True, options: Mapping[str, Any] | None = None, kernels: bool = True) -> None:
        self._compiled, self._options = compiled, options
        self._kernels = {True, False} if kernels else set[bool]()  # those of one row, those of a few: until they fail
        self._streams: dict[torch.device, torch.cuda.Stream] = {}  # for captures: libraries keep memory for each stream

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled with a model: a copy has streams of its own."""
        return {**vars(self), "_streams": {}}

    def usable(self, device: torch.device) -> bool:
        return device.type == "cuda"

    def prepare(self, step: StaticStep) -> Callable[[], None]:
        """Warm up and capture; the step is not live, so nothing that counts is written.

        What goes wrong in a kernel, the compiler or the capture costs speed only, and is told once.

        Raises:
            RuntimeError: it goes wrong where processes wait for each other, which may not go different ways.
        """
        # Not under inference mode: what is compiled there would be compiled again outside.
        with torch.inference_mode(False), torch.no_grad():
            step.live.zero_()
            for stages, what in self._ways(step):
                try:
                    return self._capture(step, stages)
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:
                    if step.is_spread():
                        raise RuntimeError(f"decoding is not {what}, which the other processes wait for") from error
                    first = (str(error).splitlines() or [""])[0]
                    warnings.warn(f"decoding is not {what}: {type(error).__name__}: {first}", stacklevel=2)
        return step

    def _ways(self, step: StaticStep) -> Iterator[tuple[Stages, str]]:
        """How a step can be run, the fastest way first; asked for the next one where one fails."""
        one = len(step.ids) == 1
        if one in self._kernels and (stages := step.kernel_stages()) is not None:
            yield stages, "run by kernels of our own"
            self._kernels.discard(one)
        # The modules' own forwards bring the processes' parts together; a hook around one is not for the compiler.
        if self._compiled and not step.is_spread() and not step.has_hooks():
            free_capacity(step)
            options = _options(len(step.ids)) if self._options is None else self._options
            yield compiled_stages(options=dict(options)), "compiled"
            self._compiled = False
        yield MODULES, "captured"

    def _capture(self, step: StaticStep, stages: Stages) -> Callable[[], None]:
        with ExitStack() as streams, torch._dynamo.config.patch(recompile_limit=_SHAPES):
            for device in dict.fromkeys(stretch.device for stretch in step.stretches):
                streams.enter_context(_beside(device))
            for _ in range(_WARM_UPS):
                step(stages)
        replays = [self._captured(step, index, stages) for index in range(len(step.stretches))]
        if len(replays) == 1:
            return replays[0]

        def replay() -> None:
            for index, run in enumerate(replays):
                run()
                step.pass_on(index)

        return replay

    def _captured(self, step: StaticStep, index: int, stages: Stages) -> Callable[[], None]:
        """A function that replays the part of one stretch."""
        device = step.stretches[index].device
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        graph, stream = torch.cuda.CUDAGraph(), self._streams[device]
        with torch.cuda.device(device):
            # What other threads do with the device is their affair. Every graph has a memory pool of its own, which
            # goes with it.
            try:
                with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                    step.run(index, stages)
            except BaseException:
                _leave_capture()
                raise
        return graph.replay


def free_capacity(step: StaticStep) -> None:
    """Let steps of any capacity share what is compiled for one; the number of rows stays fixed."""
    for slots in step.layers:
        held = slots.keys.dim() - 2  # [B, H, C, D], or a pool [B, P, D]
        places = [(slots.keys, held), (slots.values, held), (slots.scores, held)]
        for tensor, axis in (*places, (slots.cos, 0), (slots.sin, 0)):
            if tensor is not None:
                torch._dynamo.mark_dynamic(tensor, axis)


@contextmanager
def _beside(device: torch.device) -> Iterator[None]:
    """On a stream of its own, between what the device's current one does before and afterwards."""
    stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


def _leave_capture() -> None:
    """After a capture that failed: PyTorch's random generator goes on waiting for its end, and refuses to be used."""
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    generator.graphsafe_set_state(generator.clone_state())


def _options(rows: int) -> dict[str, Any]:
    """With one row a matrix product is a walk through the weights, which inductor writes well only if it tunes it."""
    return {"coordinate_descent_tuning": True} if rows == 1 else {}


def compiled_stages(**how: Any) -> Stages:
    """Every layer through one compiled function, and the head through another.

    Args:
        how: further arguments of `torch.compile`.
    """
    layer, head = (torch.compile(stage, fullgraph=True, dynamic=False, **how) for stage in (run_layer, run_head))
    return Stages(layer, head, as_it_is)
