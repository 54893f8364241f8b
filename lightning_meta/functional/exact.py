"""Replacements for functions of torch whose derivatives are wrong or missing within `torch.func`.

The errors of torch 2.13, found by comparing `vmap`, a loop and finite differences in float64 (the table that
`tests/nn/test_layers.py` prints):

- second derivatives under `vmap` of `layer_norm`, `instance_norm` and `batch_norm` with weights: up to 10 % off;
- second derivatives of `torch._weight_norm`, also without `vmap`: the dependence of the norm on the weight is missing;
- first and second derivatives under `vmap` of `embedding` with `padding_idx`: the row of the padding has a gradient;
- second derivatives that raise: fused attention, `hardsigmoid`, `embedding_bag`, `cdist` (before torch 2.14) and
  cuDNN's recurrent kernels;
- `nn.MultiheadAttention` and `nn.TransformerEncoderLayer` in evaluation mode take their inference path under `vmap`,
  which has no derivative. While a function mode is active, they do not take this path.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

Function = Callable[..., Tensor]


class ExactDerivatives(TorchFunctionMode):
    """A context in which these functions are computed by basic operations.

    It covers modules and functions called in `forward`. Every call of torch passes through it, at a cost of about a
    microsecond, so it is not used for networks that call none of these functions.

    Attributes:
        found: Whether any of these functions was called.
    """

    found = False
    _depth: ClassVar[threading.local] = threading.local()  # function modes are also per thread

    @classmethod
    def active(cls) -> bool:
        """Whether this thread is within such a context."""
        return bool(getattr(cls._depth, "value", 0))

    def __enter__(self) -> Self:
        self._depth.value = getattr(self._depth, "value", 0) + 1
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self._depth.value -= 1
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, function: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        replacement = _REPLACEMENTS.get(function)
        if replacement is not None:
            self.found = True
            if get_interpreter_stack() or function in _WITH_STATISTICS:
                return replacement(function, *args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _gradients_are_mapped() -> bool:
    """Whether a gradient is taken within or around `vmap`, in whatever order."""
    transforms = {level.key() for level in get_interpreter_stack() or ()}
    return transforms >= {TransformType.Grad, TransformType.Vmap}


def _normalise(x: Tensor, dims: Sequence[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """`x` less its mean and divided by its standard deviation along `dims`, the mean and the variance."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))  # sums of float16 end at 65,504
    mean = x.mean(list(dims), keepdim=True)
    x = x - mean
    var = x.square().mean(list(dims), keepdim=True)
    return x * (var + eps).rsqrt(), mean, var


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    x = x if weight is None else x * weight
    return (x if bias is None else x + bias).to(dtype)


def _layer_norm(
    function: Function,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    if not _gradients_are_mapped():
        return function(input, normalized_shape, weight, bias, eps)
    in_float32 = input.is_cuda and torch.is_autocast_enabled("cuda")  # autocast's list for CUDA has `layer_norm`
    x = _normalise(input, range(-len(normalized_shape), 0), eps)[0]
    return _affine(x, weight, bias, x.dtype if in_float32 else input.dtype)


def _channel_norm(of_batch: bool) -> Function:
    """Batch or instance normalisation of `(M, C, ...)`, with the arguments of `torch.nn.functional`."""

    def norm(
        function: Function,
        input: Tensor,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        use_input_stats: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not use_input_stats or not _gradients_are_mapped():
            # torch refuses statistics with a gradient, as those that a recomputed step returns have.
            mean, var = (None if s is None else s.detach() for s in (running_mean, running_var))
            return function(input, mean, var, weight, bias, use_input_stats, momentum, eps)
        dims = [0, *range(2, input.dim())] if of_batch else list(range(2, input.dim()))
        x, *statistics = _normalise(input, dims, eps)
        if running_mean is not None and running_var is not None:
            count = input.numel() // input.shape[1] // (1 if of_batch else input.shape[0])
            mean, var = (s.detach().mean(0).flatten() for s in statistics)
            running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
            running_var.mul_(1 - momentum).add_(var * count / max(count - 1, 1), alpha=momentum)  # unbiased, as torch's
        shape = [-1] + [1] * (input.dim() - 2)
        weight, bias = (None if t is None else t.view(shape) for t in (weight, bias))
        return _affine(x, weight, bias, input.dtype)

    return norm


def _batch_norm(
    function: Function,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    return _channel_norm(True)(function, input, running_mean, running_var, weight, bias, training, momentum, eps)


def _weights_first(replacement: Function) -> Function:
    """`torch.batch_norm` and `torch.instance_norm` take the weights before the statistics, and a switch for cuDNN."""

    def reordered(
        function: Function,
        input: Tensor,
        weight: Any,
        bias: Any,
        running_mean: Any,
        running_var: Any,
        *rest: Any,
        **named: Any,
    ) -> Tensor:
        order = ("training", "use_input_stats", "momentum", "eps", "cudnn_enabled")
        *options, cudnn_enabled = *rest, *(named[name] for name in order if name in named)

        def original(input: Tensor, mean: Any, var: Any, weight: Any, bias: Any, *options: Any) -> Tensor:
            return function(input, weight, bias, mean, var, *options, cudnn_enabled)

        return replacement(original, input, running_mean, running_var, weight, bias, *options)

    return reordered


def _embedding(
    function: Function,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    rows = function(input, weight, None, max_norm, norm_type, scale_grad_by_freq)  # a step needs a dense gradient
    if padding_idx is None:
        return rows
    return torch.where((input == padding_idx % len(weight)).unsqueeze(-1), rows.detach(), rows)


def _torch_embedding(function: Function, weight: Tensor, indices: Tensor, padding_idx: int = -1, *_: Any) -> Tensor:
    return _embedding(F.embedding, indices, weight, None if padding_idx < 0 else padding_idx)


def _embedding_bag(
    function: Function,
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    if input.dim() != 2 or max_norm is not None or scale_grad_by_freq or padding_idx is not None:
        return function(
            input, weight, offsets, max_norm, norm_type, scale_grad_by_freq, mode, sparse, per_sample_weights,
            include_last_offset, padding_idx,
        )  # fmt: skip
    rows = F.embedding(input, weight)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(-1)
    return rows.max(1).values if mode == "max" else rows.sum(1) if mode == "sum" else rows.mean(1)


def _weight_norm(function: Function, v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    others = [d for d in range(v.dim()) if d != dim]  # -1 stands for a norm of all
    return v * (g / v.square().sum(others, keepdim=dim != -1).sqrt())


def _cdist(function: Function, x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str = "") -> Tensor:
    differences = x1.unsqueeze(-2) - x2.unsqueeze(-3)
    if p != 2:
        distances: Tensor = torch.linalg.vector_norm(differences, p, dim=-1)
        return distances
    squares = differences.square().sum(-1)
    same = squares == 0  # the root has no derivative there; torch takes 0
    return torch.where(same, 0, torch.where(same, 1, squares).sqrt())


def _hardsigmoid(function: Function, input: Tensor, inplace: bool = False) -> Tensor:
    return F.relu6(input + 3) / 6


def _with_basic_attention(function: Function, *args: Any, **kwargs: Any) -> Any:
    with sdpa_kernel(SDPBackend.MATH):
        return function(*args, **kwargs)


def _without_cudnn(function: Function, *args: Any, **kwargs: Any) -> Any:
    before = torch.backends.cudnn.enabled
    # Not by `cudnn.flags`, which reads a switch that cannot be read within `full_float32`.
    torch.backends.cudnn.enabled = False
    try:
        return function(*args, **kwargs)
    finally:
        torch.backends.cudnn.enabled = before


_WITH_STATISTICS = frozenset((F.instance_norm, torch.instance_norm, F.batch_norm, torch.batch_norm))

_REPLACEMENTS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.instance_norm: _channel_norm(of_batch=False),
    torch.instance_norm: _weights_first(_channel_norm(of_batch=False)),
    F.batch_norm: _batch_norm,
    torch.batch_norm: _weights_first(_batch_norm),
    F.embedding: _embedding,
    torch.embedding: _torch_embedding,
    F.embedding_bag: _embedding_bag,
    F.hardsigmoid: _hardsigmoid,
    torch._weight_norm: _weight_norm,
    torch.cdist: _cdist,
    # Whatever has attention inside: a mode is not active within the function that it is called for.
    F.scaled_dot_product_attention: _with_basic_attention,
    F.multi_head_attention_forward: _with_basic_attention,
    **{getattr(torch, name): _without_cudnn for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
}
