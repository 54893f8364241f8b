"""Steps captured as CUDA graphs, which launch all kernels of a step by a single call.

On a GPU, the duration of a step of a small network is dominated by kernel launches from the CPU. A graph captures them
once, for inputs and parameters at fixed addresses, and replays them. A replayed step runs no Python, so everything that
Python decides in a step is part of the key of its graph; see `step_key`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from torchmetrics import Metric

from lightning_meta.errors import reason_of
from lightning_meta.functional.precision import without_autocast, without_cast_cache
from lightning_meta.functional.ranks import refusing_sums, world_size
from lightning_meta.functional.task_gradients import loss_with_gradients
from lightning_meta.nn.stateless import parts_of, untouched
from lightning_meta.nn.step_constants import StepConstants
from lightning_meta.nn.step_key import Key, step_key

_log = logging.getLogger(__name__)

Others = TypeVar("Others")
Recorder = Callable[[Callable[[], Any], torch.device], tuple[Any, Callable[[], None]]]
"""Captures a function by running it once; returns its result, and a function that replays it into the same result."""

GRAPHS = 8  # most graphs that are kept; each holds the memory of a step
KINDS = 64  # most keys of steps; beyond that, something changes in every step, and capturing is useless
_READS = "_progress_reads"  # attribute that counts reads of `global_step` and `current_epoch`
COMPARED_EVERY = 1000  # replays between comparisons with an uncaptured step; also after 1, 2, 4, 8 ...


class NotCapturedError(Exception):
    """A step cannot be captured; the message is the reason."""


@dataclass
class _Captured:
    """A captured step.

    Attributes:
        arguments: Inputs of the step, at the addresses that the graph reads.
        tensors: The tensors among them, into which new inputs are copied.
        result: The result that a replay overwrites.
        play: Replays the graph.
        noise: Relative differences between two uncaptured runs.
        constants: Tensors that the graph reads besides these.
        replays: Number of replays.
    """

    arguments: Any
    tensors: list[Tensor]
    result: Any
    play: Callable[[], None]
    noise: list[float]
    constants: StepConstants
    replays: int = 0


@dataclass
class _Result:
    """The result of a step: the loss, its gradient for each trained parameter, and what else the step returns."""

    loss: Tensor | None
    gradients: list[Tensor | None] = field(default_factory=list)
    others: Any = None

    def tensors(self) -> list[Tensor]:
        """The tensors to compare; gradients as a single vector, since that of one bias may be rounding error only."""
        gradients = [g.to_dense().flatten() for g in self.gradients if g is not None]
        leaves = [self.loss, torch.cat(gradients) if gradients else None, *tree_leaves(self.others)]
        return [tensor for tensor in leaves if isinstance(tensor, Tensor)]


class StepGraphs:
    """Runs steps as CUDA graphs: a step whose key occurs for the second time is captured, others run uncaptured.

    Copies and pickles contain no graphs, so that a module with this attribute can be copied and stored.

    Args:
        ignored: Names of module attributes that do not change what a step computes; see `step_key`.
        recorder: Function that captures; `cuda_graph` by default.
    """

    def __init__(self, ignored: frozenset[str] = frozenset(), recorder: Recorder | None = None) -> None:
        self.ignored, self.recorder = ignored, recorder
        self.obstacle = ""  # why no step is captured any more
        self._warned_of_limit = self._logged_device = False
        self._addresses: tuple[int, ...] = ()  # of the parameters that the graphs read
        self._kinds: dict[Key, _Captured | None] = {}

    @property
    def captured(self) -> int:
        """The number of graphs."""
        return sum(kind is not None for kind in self._kinds.values())

    @property
    def replays(self) -> int:
        """The number of replays."""
        return sum(kind.replays for kind in self._kinds.values() if kind is not None)

    def loss(
        self,
        step: Callable[..., tuple[Tensor, Others]],
        module: nn.Module,
        *inputs: Any,
        unread: Collection[nn.Module] = (),
    ) -> tuple[Tensor, Others]:
        """The loss of a training step, whose backward pass sets the gradients of the trained parameters.

        Args:
            step: Function from the inputs to a scalar loss and a pytree of other results.
            module: The module that the step runs; its buffers may change in place.
            *inputs: Pytrees; only their tensors may change from step to step.
            unread: Submodules that the step does not run.

        Returns:
            What the step returns. The next step overwrites the tensors other than the loss.
        """
        parts = _parts(module)
        trained = list({id(p): p for part in parts for p in part._parameters.values() if p is not None}.values())
        trained = [p for p in trained if p.requires_grad]

        def with_gradients(*arguments: Any) -> _Result:
            reads, device = getattr(module, _READS, 0), _device(arguments).type
            with torch.enable_grad(), without_cast_cache(device), _attributes_kept(parts, self.ignored):
                loss, others = step(*arguments)
            if getattr(module, _READS, 0) != reads:
                raise NotCapturedError(
                    "it reads the number of the step or epoch, which a graph would freeze; copy it to an attribute in "
                    "on_train_batch_start and read that"
                )
            with without_autocast(loss.device.type):  # as in the Trainer's backward pass
                gradients = torch.autograd.grad(loss, trained, allow_unused=True)
            return _Result(loss.detach(), list(gradients), tree_map(_detached, others))

        kind = self._kind(parts, trained, inputs, _without(parts, unread))
        if kind is None:
            return step(*inputs)
        try:
            result = self._played(kind, with_gradients, module, inputs)
        except NotCapturedError as error:
            self._give_up(str(error))
            return step(*inputs)
        assert result.loss is not None
        return loss_with_gradients(result.loss, trained, result.gradients), result.others

    def values(
        self, step: Callable[..., Others], module: nn.Module, *inputs: Any, unread: Collection[nn.Module] = ()
    ) -> Others:
        """Copies of the results of a step without gradients, which changes no buffer.

        Args:
            step: Function from the inputs to a pytree.
            module: Module that the step runs.
            *inputs: Pytrees; only their tensors may change from step to step.
            unread: Submodules that the step does not run.
        """
        parts = _parts(module)
        read = _without(parts, unread)

        def checked(*arguments: Any) -> _Result:
            buffers = list(module.buffers())
            before = [buffer._version for buffer in buffers]
            with without_cast_cache(_device(arguments).type), _attributes_kept(read, self.ignored):
                others = step(*arguments)
            if before != [buffer._version for buffer in buffers]:
                raise NotCapturedError("it changes a buffer, which a replay could not detect and undo")
            return _Result(None, [], tree_map(_detached, others))

        kind = self._kind(parts, [], inputs, read)
        if kind is None:
            return step(*inputs)
        try:
            with torch.inference_mode(False), torch.no_grad():
                copies: Others = tree_map(_copied, self._played(kind, checked, module, inputs).others)
                return copies
        except NotCapturedError as error:
            self._give_up(str(error))
            return step(*inputs)

    def _kind(
        self,
        parts: Sequence[nn.Module],
        trained: Sequence[Tensor],
        inputs: Any,
        read: Sequence[nn.Module] | None = None,
    ) -> Key | None:
        """The key of a step that is captured or to be captured now; None for one that runs uncaptured."""
        if self.obstacle:
            return None
        device = _device(inputs)
        if self.recorder is None and device.type != "cuda":
            if not self._logged_device:
                self._logged_device = True
                _log.info(
                    "graph: steps run without a CUDA graph: the inputs are on %s, and only CUDA has graphs", device
                )
            return None
        reason = _hook(parts, trained) or (_scaled(device) if trained else "")
        if reason:
            self._give_up(reason)
            return None
        addresses = tuple(p.data_ptr() for part in parts for p in part._parameters.values() if p is not None)
        if addresses != self._addresses:
            self._kinds.clear()  # graphs of the old addresses cannot be used again
            self._addresses = addresses
        key = step_key(parts if read is None else read, inputs, self.ignored)
        if key in self._kinds:
            if self._kinds[key] is None and self.captured >= GRAPHS:
                self._warn_of_limit(f"{GRAPHS} kinds of steps have a CUDA graph; others")
                return None
            return key
        if len(self._kinds) >= KINDS:
            self._warn_of_limit("shapes or attributes change from step to step; further kinds of steps")
        else:
            self._kinds[key] = None  # captured when it occurs again
        return None

    def _warn_of_limit(self, reason: str) -> None:
        if not self._warned_of_limit:
            self._warned_of_limit = True
            _log.warning("graph: %s run without one", reason)

    def _played(self, key: Key, whole: Callable[..., _Result], module: nn.Module, inputs: Any) -> _Result:
        graph = self._kinds[key]
        if graph is None:
            graph = self._kinds[key] = self._record(whole, module, inputs)
        _copy(graph.tensors, [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)])
        if graph.replays % COMPARED_EVERY == 0 or graph.replays.bit_count() == 1:
            self._compare(graph, whole, module)
        graph.play()
        graph.replays += 1
        result: _Result = graph.result
        return result

    def _record(self, whole: Callable[..., _Result], module: nn.Module, inputs: Any) -> _Captured:
        leaves, structure = tree_flatten(inputs)
        static = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        arguments, constants = tree_unflatten(static, structure), StepConstants()

        def run() -> _Result:
            with refusing_sums(), constants:
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
            raise NotCapturedError(reason_of(error, 200)) from error
        tensors = [leaf for leaf in static if isinstance(leaf, Tensor)]
        return _Captured(arguments, tensors, result, play, _differences(first, second), constants)

    def _compare(self, graph: _Captured, whole: Callable[..., _Result], module: nn.Module) -> None:
        """Compare a replay with an uncaptured run from the same random state and buffers.

        Raises:
            NotCapturedError: They differ by more than rounding.
        """

        def play() -> _Result:
            graph.play()
            result: _Result = graph.result
            return result

        expected = _trial(lambda: whole(*graph.arguments), module)
        replayed = _trial(play, module)
        if len(expected) != len(replayed):
            raise NotCapturedError("the captured step returns a different number of tensors than an uncaptured one")
        for difference, noise, tensor in zip(_differences(expected, replayed), graph.noise, expected, strict=True):
            allowed = _tolerance(tensor) + 10 * noise
            if not difference <= allowed:
                raise NotCapturedError(
                    f"after {graph.replays} steps the relative difference between the captured and an uncaptured step "
                    f"is {difference:.1e}; rounding explains at most {allowed:.1e}"
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
    """Capture a function as a CUDA graph.

    Args:
        function: The function; it reads and writes tensors at fixed addresses.
        device: The CUDA device.

    Returns:
        Its result, valid after the first replay, and a function that replays the graph.
    """
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    stream, generator = torch.cuda.current_stream(device), torch.cuda.default_generators[device.index]
    random_state = generator.clone_state()
    try:
        # Thread-local, since the data loader's thread that pins memory calls CUDA during the capture.
        with torch.cuda.device(device), torch.cuda.graph(graph, pool, capture_error_mode="thread_local"):
            result = function()
    except BaseException:
        if torch.cuda.current_stream(device) != stream:  # CUDA has ended the capture, and torch did not clean up
            _clean_up(graph, pool, stream, generator, random_state)
        raise
    return result, graph.replay


_ended_by_cuda: list[torch.cuda.CUDAGraph] = []  # kept, since torch's allocators keep pointers to them


def _clean_up(
    graph: torch.cuda.CUDAGraph,
    pool: Any,
    stream: torch.cuda.Stream,
    generator: torch.Generator,
    random_state: torch.Generator,
) -> None:
    """Leave a capture that CUDA ended by an error, such as for a solver that waits for the device.

    torch raises before it leaves the capture: its stream stays current, random layers raise ever after ("Offset
    increment outside graph capture"), and the allocator stays in the state of a capture.

    Args:
        graph: The graph.
        pool: Memory pool of the graph.
        stream: The stream before the capture.
        generator: The default generator of the device.
        random_state: A copy of the generator's state from before the capture.
    """
    _ended_by_cuda.append(graph)
    torch.cuda.set_stream(stream)
    generator.graphsafe_set_state(random_state)
    with suppress(AttributeError, RuntimeError):  # private functions, and a later torch may do this itself
        torch._C._cuda_endAllocateToPool(stream.device_index, pool)
        torch._C._cuda_releasePool(stream.device_index, pool)


@contextmanager
def _warming_up(device: torch.device) -> Iterator[None]:
    """A side stream for the runs before a capture, in which libraries choose algorithms and allocate workspaces."""
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
    """A context in which operations that synchronise the CPU with the GPU raise, since they cannot be captured."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _without(parts: Sequence[nn.Module], unread: Collection[nn.Module]) -> list[nn.Module]:
    left_out = {id(part) for part in unread}
    return [part for part in parts if id(part) not in left_out]


def _trial(run: Callable[[], _Result], module: nn.Module) -> list[Tensor]:
    """Copies of the results and buffers after a run; buffers and random states are restored."""
    with untouched(module):
        results = run().tensors()
        return [tensor.clone() for tensor in (*results, *module.buffers())]


@contextmanager
def _attributes_kept(parts: Sequence[nn.Module], ignored: frozenset[str]) -> Iterator[None]:
    """A context in which modules may not store tensors in attributes, as a replay would not do so.

    Tensors within lists, dictionaries and other objects are not seen. A step that changes them differs from its
    replays, which the comparison of the first ones finds; but the trial runs have changed them then.

    Raises:
        NotCapturedError: A module stored one; its attributes are restored.
    """

    def stored(part: nn.Module) -> dict[str, Tensor]:
        return {n: v for n, v in vars(part).items() if isinstance(v, Tensor) and n not in ignored}

    before, changed = [stored(part) for part in parts], ""
    try:
        yield
    finally:
        for part, old in zip(parts, before, strict=True):
            for name, tensor in stored(part).items():
                if tensor is not old.get(name):
                    changed = changed or f"{type(part).__name__} stores a tensor in {name}"
                    del vars(part)[name]
            vars(part).update(old)
    if changed:
        raise NotCapturedError(f"{changed}, which a replay would not; register a buffer and change it in place")


def _copy(static: Sequence[Tensor], new: Sequence[Tensor]) -> None:
    """Copy inputs into those of a graph, all of a dtype by one call: a batch of many tasks has many small tensors."""
    by_dtype: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for to, tensor in zip(static, new, strict=True):
        if tensor.numel():
            targets, sources = by_dtype.setdefault(tensor.dtype, ([], []))
            targets.append(to)
            sources.append(tensor)
    for targets, sources in by_dtype.values():
        torch._foreach_copy_(targets, sources, non_blocking=True)


def _differences(some: Sequence[Tensor], others: Sequence[Tensor]) -> list[float]:
    """The norm of each difference, relative to the first tensor; equal non-finite values do not differ."""
    distances = []

    for one, other in zip(some, others, strict=True):
        a, b = one.double(), other.double()
        a, b = a.nan_to_num(0.0, 1e300, -1e300), b.nan_to_num(0.0, 1e300, -1e300)
        distances.append((a - b).norm() / a.norm().clamp_min(1e-30) if one.numel() else a.new_zeros(()))
    return torch.stack(distances).tolist() if distances else []


def _tolerance(x: Tensor) -> float:
    """The relative difference that reordered sums on a GPU may cause."""
    device = x.device.type
    cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    return {torch.float64: 1e-9, torch.bfloat16: 5e-2, torch.float16: 1e-2}.get(cast, 1e-3)


def _parts(module: nn.Module) -> list[nn.Module]:
    """The modules that a step may run: all but metrics, whose state changes in every step."""
    return [part for part in parts_of(module) if not isinstance(part, Metric)]


def _device(inputs: Any) -> torch.device:
    return next(leaf.device for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))


def _scaled(device: torch.device) -> str:
    """Why a step in mixed float16 is not captured; empty for other precisions."""
    if torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.float16:
        return "float16 needs loss scaling, but a graph computes the gradients before the loss is scaled; use bf16"
    return ""


def _hook(parts: Sequence[nn.Module], trained: Sequence[Tensor]) -> str:
    """Names what a replay would not call: a hook, or an exchange between ranks; empty if there is nothing."""
    ranks = world_size()
    for part in parts:
        if ranks > 1 and isinstance(part, nn.SyncBatchNorm):
            return "SyncBatchNorm exchanges statistics between ranks, which not all of them might replay together"
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
            return f"{type(part).__name__} has a hook, which a graph does not call"
    if any(p._backward_hooks for p in trained):
        return "a parameter has a hook, which a graph does not call"
    return ""


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf
