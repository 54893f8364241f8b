"""A step captured as a CUDA graph: its kernels are launched by one call in place of a thousand.

On a GPU a step of a small network is bound by the time that the CPU takes to launch kernels. A graph records them once,
for inputs and parameters that lie at fixed places, and plays them back. A played step runs no Python, so whatever
Python decides in it is part of the key under which its graph is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from torchmetrics import Metric

from lightning_meta.functional.precision import without_autocast, without_cast_cache
from lightning_meta.functional.task_gradients import loss_with_gradients
from lightning_meta.nn.stateless import parts_of, untouched
from lightning_meta.nn.step_key import Key, step_key

_log = logging.getLogger(__name__)

Others = TypeVar("Others")
Recorder = Callable[[Callable[[], Any], torch.device], tuple[Any, Callable[[], None]]]
"""Runs a function once to record it; returns its result, and what runs it again into the same result."""

GRAPHS = 8  # that are kept; each holds the memory of a step
KINDS = 64  # of steps that are told apart before capturing is given up: something changes with every step
_READS = "_progress_reads"  # an attribute: how often `global_step` and `current_epoch` were read
COMPARED_EVERY = 1000  # replays from one comparison with the step as it is to the next; before, 1, 2, 4, 8 ...


class NotCapturedError(Exception):
    """Why a step cannot be captured."""


@dataclass
class _Captured:
    """A graph.

    Attributes:
        arguments: The inputs of the step, at the places that the graph reads.
        tensors: The tensors among them; new inputs are copied into them.
        result: What it writes.
        play: Runs it.
        noise: By how much two runs of the step itself differed.
        replays: How often it was played.
    """

    arguments: Any
    tensors: list[Tensor]
    result: Any
    play: Callable[[], None]
    noise: list[float]
    replays: int = 0


@dataclass
class _Result:
    """What a step gives: the loss, its gradient by each trained parameter, and whatever else it returns."""

    loss: Tensor | None
    gradients: list[Tensor | None] = field(default_factory=list)
    others: Any = None

    def tensors(self) -> list[Tensor]:
        """All of it that is compared: the gradients as one, since that of a single bias may be rounding alone."""
        gradients = [g.to_dense().flatten() for g in self.gradients if g is not None]
        found = [self.loss, torch.cat(gradients) if gradients else None, *tree_leaves(self.others)]
        return [tensor for tensor in found if isinstance(tensor, Tensor)]


class StepGraphs:
    """Runs steps as graphs: one for each kind of step that came twice, and the steps themselves otherwise.

    Copies and pickles begin anew, so that a module which holds this can be copied and stored.

    Args:
        ignored: Names of attributes of modules that do not change what a step computes; see `step_key`.
        recorder: What records; `cuda_graph` by default.
    """

    def __init__(self, ignored: frozenset[str] = frozenset(), recorder: Recorder | None = None) -> None:
        self.ignored, self.recorder = ignored, recorder
        self.obstacle = ""  # why steps are not captured any more
        self._told = self._told_device = False
        self._places: tuple[int, ...] = ()  # of the parameters that the graphs read
        self._kinds: dict[Key, _Captured | None] = {}

    @property
    def captured(self) -> int:
        """The number of graphs."""
        return sum(kind is not None for kind in self._kinds.values())

    @property
    def replays(self) -> int:
        """How often graphs were played."""
        return sum(kind.replays for kind in self._kinds.values() if kind is not None)

    def loss(
        self, step: Callable[..., tuple[Tensor, Others]], module: nn.Module, *inputs: Any
    ) -> tuple[Tensor, Others]:
        """The loss of a training step, which gives the trained parameters their gradients in the backward pass.

        Args:
            step: Of the inputs, a scalar loss and a pytree of whatever else is wanted.
            module: What the step runs. Its buffers may change in place.
            *inputs: Pytrees; their tensors are all that changes from step to step.

        Returns:
            What the step returns. The tensors beside the loss are written over by the next step.
        """
        parts = _parts(module)
        trained = list({id(p): p for part in parts for p in part._parameters.values() if p is not None}.values())
        trained = [p for p in trained if p.requires_grad]

        def whole(*given: Any) -> _Result:
            reads = getattr(module, _READS, 0)
            with torch.enable_grad(), without_cast_cache(_device(given).type):
                loss, others = step(*given)
            if getattr(module, _READS, 0) != reads:
                raise NotCapturedError(
                    "it reads the number of the step or epoch; set an attribute in on_train_batch_start, and read that"
                )
            with without_autocast(loss.device.type):  # as in the Trainer's backward pass
                gradients = torch.autograd.grad(loss, trained, allow_unused=True)
            return _Result(loss.detach(), list(gradients), tree_map(_detached, others))

        kind = self._kind(parts, trained, inputs)
        if kind is None:
            return step(*inputs)
        try:
            result = self._played(kind, whole, module, inputs)
        except NotCapturedError as error:
            self._give_up(str(error))
            return step(*inputs)
        assert result.loss is not None
        return loss_with_gradients(result.loss, trained, result.gradients), result.others

    def values(self, step: Callable[..., Others], module: nn.Module, *inputs: Any) -> Others:
        """What a step without gradients returns, as copies; arguments as for `loss`. It changes no buffer."""

        def whole(*given: Any) -> _Result:
            buffers = list(module.buffers())
            before = [buffer._version for buffer in buffers]
            with without_cast_cache(_device(given).type):
                others = step(*given)
            if before != [buffer._version for buffer in buffers]:
                raise NotCapturedError("it changes a buffer, which could not be noticed and put back")
            return _Result(None, [], tree_map(_detached, others))

        kind = self._kind(_parts(module), [], inputs)
        if kind is None:
            return step(*inputs)
        try:
            with torch.inference_mode(False), torch.no_grad():
                copies: Others = tree_map(_copied, self._played(kind, whole, module, inputs).others)
                return copies
        except NotCapturedError as error:
            self._give_up(str(error))
            return step(*inputs)

    def _kind(self, parts: Sequence[nn.Module], trained: Sequence[Tensor], inputs: Any) -> Key | None:
        """The key of a step that is captured, or will be now; None for one that runs as it is."""
        if self.obstacle:
            return None
        device = _device(inputs)
        if self.recorder is None and device.type != "cuda":
            if not self._told_device:
                self._told_device = True
                _log.info(
                    "graph: steps run without a CUDA graph: the inputs are on %s, and only CUDA has graphs", device
                )
            return None
        reason = _hook(parts, trained) or (_scaled(device) if trained else "")
        if reason:
            self._give_up(reason)
            return None
        places = tuple(p.data_ptr() for part in parts for p in part._parameters.values() if p is not None)
        if places != self._places:
            self._kinds.clear()  # weights that moved hardly come back
            self._places = places
        key = step_key(parts, inputs, self.ignored)
        if key in self._kinds:
            if self._kinds[key] is None and self.captured >= GRAPHS:
                self._tell_bound(f"{GRAPHS} kinds of steps have a CUDA graph; others")
                return None
            return key
        if len(self._kinds) >= KINDS:
            self._tell_bound("shapes or attributes change from step to step; further kinds of steps")
        else:
            self._kinds[key] = None  # a kind that comes once is not worth a graph
        return None

    def _tell_bound(self, reason: str) -> None:
        if not self._told:
            self._told = True
            _log.warning("graph: %s run without one", reason)

    def _played(self, key: Key, whole: Callable[..., _Result], module: nn.Module, inputs: Any) -> _Result:
        graph = self._kinds[key]
        if graph is None:
            graph = self._kinds[key] = self._record(whole, module, inputs)
        new = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
        for static, tensor in zip(graph.tensors, new, strict=True):
            static.copy_(tensor, non_blocking=True)
        if graph.replays % COMPARED_EVERY == 0 or graph.replays.bit_count() == 1:
            self._compare(graph, whole, module)
        graph.play()
        graph.replays += 1
        result: _Result = graph.result
        return result

    def _record(self, whole: Callable[..., _Result], module: nn.Module, inputs: Any) -> _Captured:
        leaves, structure = tree_flatten(inputs)
        static = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        arguments = tree_unflatten(static, structure)

        def run() -> _Result:
            return whole(*arguments)

        device = _device(inputs)
        try:
            with _warming_up(device):
                first, second = (_trial(run, module) for _ in range(2))
                with untouched(module), _no_waiting(device):
                    run()
            with untouched(module):
                result, play = (self.recorder or cuda_graph)(run, device)
        except RuntimeError as error:
            raise NotCapturedError(" ".join(str(error).split())[:200]) from error
        tensors = [leaf for leaf in static if isinstance(leaf, Tensor)]
        return _Captured(arguments, tensors, result, play, _differences(first, second))

    def _compare(self, graph: _Captured, whole: Callable[..., _Result], module: nn.Module) -> None:
        """Play the graph beside the step itself, both from the same random state and buffers.

        Raises:
            NotCapturedError: They differ.
        """

        def play() -> _Result:
            graph.play()
            result: _Result = graph.result
            return result

        expected = _trial(lambda: whole(*graph.arguments), module)
        found = _trial(play, module)
        if len(expected) != len(found):
            raise NotCapturedError("the captured step gives other tensors than the step itself")
        for difference, noise, tensor in zip(_differences(expected, found), graph.noise, expected, strict=True):
            allowed = _tolerance(tensor) + 10 * noise
            if not difference <= allowed:
                raise NotCapturedError(
                    f"after {graph.replays} steps the captured step differs by {difference:.1e}, relative to the step "
                    f"itself, where {allowed:.1e} can be rounding"
                )

    def _give_up(self, reason: str) -> None:
        self.obstacle = reason
        self._kinds.clear()
        _log.warning("graph: steps run without a CUDA graph from here on: %s", reason)

    def __deepcopy__(self, memo: dict[int, Any]) -> StepGraphs:
        return StepGraphs(self.ignored, self.recorder)

    def __reduce__(self) -> tuple[type[StepGraphs], tuple[frozenset[str], Recorder | None]]:
        return StepGraphs, (self.ignored, self.recorder)


def cuda_graph(function: Callable[[], Any], device: torch.device) -> tuple[Any, Callable[[], None]]:
    """Record a function as a CUDA graph.

    Args:
        function: Reads and writes tensors at fixed places.
        device: Where.

    Returns:
        Its result, which is there once the graph was played, and what plays the graph.
    """
    graph = torch.cuda.CUDAGraph()
    # The loader's thread, which pins memory, calls CUDA while this one captures.
    with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = function()
    return result, graph.replay


@contextmanager
def _warming_up(device: torch.device) -> Iterator[None]:
    """A stream beside the current one, where libraries choose algorithms and allocate what they keep."""
    if device.type != "cuda":
        yield
        return
    stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        current.wait_stream(stream)


@contextmanager
def _no_waiting(device: torch.device) -> Iterator[None]:
    """Within the context an operation for which the CPU waits for the GPU raises: it cannot be captured."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _trial(run: Callable[[], _Result], module: nn.Module) -> list[Tensor]:
    """What a run gives and makes of the buffers; these and the random states are as before afterwards."""
    with untouched(module):
        found = run().tensors()
        return [tensor.clone() for tensor in (*found, *module.buffers())]


def _differences(some: Sequence[Tensor], others: Sequence[Tensor]) -> list[float]:
    """The norm of the difference of each two tensors, relative to the first; 0 where both are not finite alike."""
    apart = []
    for one, other in zip(some, others, strict=True):
        a, b = one.double(), other.double()
        a, b = a.nan_to_num(0.0, 1e300, -1e300), b.nan_to_num(0.0, 1e300, -1e300)
        apart.append((a - b).norm() / a.norm().clamp_min(1e-30) if one.numel() else a.new_zeros(()))
    return torch.stack(apart).tolist() if apart else []


def _tolerance(x: Tensor) -> float:
    """By how much a step may differ from itself: sums of a GPU are not always in the same order."""
    device = x.device.type
    cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    return {torch.float64: 1e-9, torch.bfloat16: 5e-2, torch.float16: 1e-2}.get(cast, 1e-3)


def _parts(module: nn.Module) -> list[nn.Module]:
    """What a step may run: all but metrics, which count what they are given."""
    return [part for part in parts_of(module) if not isinstance(part, Metric)]


def _device(inputs: Any) -> torch.device:
    return next(leaf.device for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))


def _scaled(device: torch.device) -> str:
    """Why a step in mixed float16 is not captured."""
    if torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.float16:
        return (
            "in float16 gradients vanish unless the loss is scaled first, and a graph has taken them before; use bf16"
        )
    return ""


def _hook(parts: Sequence[nn.Module], trained: Sequence[Tensor]) -> str:
    """A hook, which a graph would not call, in words."""
    for part in parts:
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
            return f"{type(part).__name__} has a hook, which a graph does not call"
    if any(p._backward_hooks for p in trained):
        return "a parameter has a hook, which a graph does not call"
    return ""


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf
