"""The layers that a backbone may have, each with the shape of its input."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

LINE, PLANE, VOLUME, SEQUENCE, FLAT = (4, 6), (4, 6, 6), (4, 4, 4, 4), (5, 8), (8,)
DISTANCES_TWICE = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14)
"""Whether torch has second derivatives of `pdist` and `cdist`: from 2.14 on."""

CHANNELS = {1: LINE, 2: PLANE, 3: VOLUME}


class Case(NamedTuple):
    """A layer and its properties.

    Attributes:
        make: A new layer.
        shape: Shape of one example of its input.
        maps: Whether `vmap` can run it; else it raises a RuntimeError.
        random: Whether it draws, so that `vmap` and a loop see different numbers.
        second_order: Whether it has a second derivative.
        tolerance: Tolerance of `vmap` against the loop.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    maps: bool = True
    random: bool = False
    second_order: bool = True
    tolerance: float = 1e-9


class Call(nn.Module):
    """A function of the input and of layers, as in the `forward` of a user's network."""

    def __init__(self, function: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.layers)


def evaluating(make: Callable[..., nn.Module], *args: Any, **options: Any) -> nn.Module:
    return make(*args, **options).eval()


def from_nothing(cell: Callable[..., nn.Module]) -> nn.Module:
    """A recurrent cell that makes its first state itself."""
    return Call(lambda x, c: c(x[:, 0]), cell(8, 4))


def ids(x: Tensor) -> Tensor:
    """Token numbers in [0, 6) made of the input."""
    return (x.detach() > 0).long() + 2 * (torch.arange(x.shape[-1]) % 3)


def heads(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values `(M, 2, L, 4)`."""
    parts = x.view(len(x), 5, 2, 4).transpose(1, 2)
    return parts, parts.flip(1), parts.sin()


def attention(**options: Any) -> Callable[[], nn.Module]:
    return lambda: Call(lambda x: F.scaled_dot_product_attention(*heads(x), **options))


def multi_head(training: bool = True, call: dict[str, Any] | None = None, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layer = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        return Call(lambda x, layer: layer(x, x, x, **(call or {}))[0], layer).train(training)

    return make


def encoder(**options: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(8, 2, 16, **{"dropout": 0.0, "batch_first": True, **options})


def of_input(function: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Call(function)


def _normalisations() -> dict[str, Case]:
    cases = {
        "LayerNorm": Case(lambda: nn.LayerNorm(8), SEQUENCE),
        "LayerNorm, no bias": Case(lambda: nn.LayerNorm(8, bias=False), SEQUENCE),
        "LayerNorm, not affine": Case(lambda: nn.LayerNorm(8, elementwise_affine=False), SEQUENCE),
        "LayerNorm of two dimensions": Case(lambda: nn.LayerNorm((5, 8)), SEQUENCE),
        "F.layer_norm": Case(
            lambda: Call(lambda x, w: F.layer_norm(x, (8,), w.weight[0], w.weight[1]), nn.Linear(8, 5)), SEQUENCE
        ),
        "torch.layer_norm": Case(
            lambda: Call(lambda x, w: torch.layer_norm(x, (8,), w.weight[0], w.weight[1]), nn.Linear(8, 5)), SEQUENCE
        ),
        "RMSNorm": Case(lambda: nn.RMSNorm(8), SEQUENCE),
        "GroupNorm of 1": Case(lambda: nn.GroupNorm(1, 4), PLANE),
        "GroupNorm of 2": Case(lambda: nn.GroupNorm(2, 4), PLANE),
        "GroupNorm of 4": Case(lambda: nn.GroupNorm(4, 4), PLANE),
        "F.instance_norm": Case(
            lambda: Call(lambda x, w: F.instance_norm(x, None, None, w.weight[0], w.bias), nn.Linear(5, 5)), SEQUENCE
        ),
        "torch.instance_norm": Case(
            lambda: Call(
                lambda x, w: torch.instance_norm(x, w.weight[0], w.bias, None, None, True, 0.1, 1e-5, True),
                nn.Linear(5, 5),
            ),
            SEQUENCE,
        ),
        "F.batch_norm": Case(
            lambda: Call(lambda x, w: F.batch_norm(x, None, None, w.weight[0], w.bias, True), nn.Linear(5, 5)), SEQUENCE
        ),
        "torch.batch_norm": Case(
            lambda: Call(
                lambda x, w: torch.batch_norm(x, w.weight[0], w.bias, None, None, True, 0.1, 1e-5, True),
                nn.Linear(5, 5),
            ),
            SEQUENCE,
        ),
        "LocalResponseNorm": Case(lambda: nn.LocalResponseNorm(3), PLANE),
        "F.normalize": Case(of_input(lambda x: F.normalize(x, dim=-1)), SEQUENCE),
        "weight_norm": Case(lambda: parametrizations.weight_norm(nn.Linear(8, 3)), FLAT),
        "weight_norm of all": Case(lambda: parametrizations.weight_norm(nn.Linear(8, 3), dim=cast(int, None)), FLAT),
        "weight_norm of Conv2d": Case(lambda: parametrizations.weight_norm(nn.Conv2d(4, 3, 3)), PLANE),
        "weight_norm of ConvTranspose1d": Case(
            lambda: parametrizations.weight_norm(nn.ConvTranspose1d(4, 3, 3), dim=1), LINE
        ),
        "orthogonal": Case(lambda: parametrizations.orthogonal(nn.Linear(6, 4)), (6,)),
        "orthogonal, Householder": Case(
            lambda: parametrizations.orthogonal(nn.Linear(6, 4), orthogonal_map="householder"), (6,)
        ),
        "spectral_norm, evaluation": Case(lambda: parametrizations.spectral_norm(nn.Linear(8, 3)).eval(), FLAT),
    }
    for n, shape in CHANNELS.items():
        instance, batch = getattr(nn, f"InstanceNorm{n}d"), getattr(nn, f"BatchNorm{n}d")
        cases |= {
            f"InstanceNorm{n}d": Case(partial(instance, 4), shape),
            f"InstanceNorm{n}d, affine": Case(partial(instance, 4, affine=True), shape),
            f"InstanceNorm{n}d, stored": Case(
                partial(evaluating, instance, 4, affine=True, track_running_stats=True), shape
            ),
            f"BatchNorm{n}d, not tracking": Case(partial(batch, 4, track_running_stats=False), shape),
            f"BatchNorm{n}d, stored": Case(partial(evaluating, batch, 4), shape),
        }
    return cases


def _in_space() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for n, shape in CHANNELS.items():
        layers: dict[str, Any] = {name: getattr(nn, f"{name}{n}d") for name in ("Conv", "ConvTranspose")}
        ways: dict[str, dict[str, Any]] = {
            "": {"padding": 1},
            ", groups and stride": {"groups": 2, "stride": 2},
            ", depthwise": {"groups": 4, "bias": False},
            ", circular": {"padding": "same", "padding_mode": "circular"},
        }
        for name, options in ways.items():
            cases[f"Conv{n}d{name}"] = Case(partial(layers["Conv"], 4, 4, 3, **options), shape)
        for name, options in {"": {"stride": 2, "padding": 1, "output_padding": 1}, ", groups": {"groups": 2}}.items():
            cases[f"ConvTranspose{n}d{name}"] = Case(partial(layers["ConvTranspose"], 4, 4, 3, **options), shape)
        for name, arguments in {
            "MaxPool": (2,),
            "AvgPool": (2,),
            "LPPool": (2.0, 2),
            "AdaptiveAvgPool": (2,),
            "AdaptiveMaxPool": (2,),
            "ReflectionPad": (1,),
            "ReplicationPad": (1,),
            "ZeroPad": (1,),
            "ConstantPad": (1, 2.0),
            "CircularPad": (1,),
        }.items():
            made = getattr(nn, f"{name}{n}d")
            cases[f"{name}{n}d"] = Case(partial(made, *arguments), shape)
        dropout = getattr(nn, f"Dropout{n}d")
        cases[f"Dropout{n}d"] = Case(partial(dropout, 0.5), shape, random=True)
    return cases | {
        "FractionalMaxPool2d": Case(lambda: nn.FractionalMaxPool2d(2, output_size=3), PLANE),
        "MaxPool2d, overlapping": Case(lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True), PLANE),
        "max_unpool2d": Case(
            of_input(lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), [2, 2])), PLANE
        ),
        "Upsample, nearest": Case(lambda: nn.Upsample(scale_factor=2), PLANE),
        "Upsample, linear": Case(lambda: nn.Upsample(scale_factor=2, mode="linear"), LINE),
        "Upsample, bilinear": Case(lambda: nn.Upsample(scale_factor=2, mode="bilinear"), PLANE),
        "Upsample, bicubic": Case(lambda: nn.Upsample(scale_factor=2, mode="bicubic"), PLANE),
        "Upsample, trilinear": Case(lambda: nn.Upsample(scale_factor=2, mode="trilinear"), VOLUME),
        "PixelShuffle": Case(lambda: nn.PixelShuffle(2), PLANE),
        "PixelUnshuffle": Case(lambda: nn.PixelUnshuffle(2), PLANE),
        "ChannelShuffle": Case(lambda: nn.ChannelShuffle(2), PLANE),
        "Unfold": Case(lambda: nn.Unfold(3), PLANE),
        "Fold": Case(lambda: nn.Fold((4, 4), 2), (8, 9)),
        "Softmax2d": Case(lambda: nn.Softmax2d(), PLANE),
        "FeatureAlphaDropout": Case(lambda: nn.FeatureAlphaDropout(0.5), PLANE, random=True),
    }


def _pointwise() -> dict[str, Case]:
    plain = [
        *("ELU", "Hardshrink", "Hardtanh", "Hardswish", "LeakyReLU", "LogSigmoid", "PReLU", "ReLU"),
        *("ReLU6", "SELU", "CELU", "GELU", "Sigmoid", "SiLU", "Mish", "Softplus", "Softshrink", "Softsign", "Tanh"),
        *("Tanhshrink", "GLU", "Identity"),
    ]
    return (
        {name: Case(getattr(nn, name), FLAT) for name in plain}
        | {
            "Hardsigmoid": Case(nn.Hardsigmoid, FLAT, tolerance=1e-7),  # torch's kernel for float64 has 1/6 in float32
            "GELU, tanh": Case(lambda: nn.GELU("tanh"), FLAT),
            "PReLU of channels": Case(lambda: nn.PReLU(4), PLANE),
            "Threshold": Case(lambda: nn.Threshold(0.1, 0.2), FLAT),
            "Softmin": Case(lambda: nn.Softmin(-1), FLAT),
            "Softmax": Case(lambda: nn.Softmax(-1), FLAT),
            "LogSoftmax": Case(lambda: nn.LogSoftmax(-1), FLAT),
            "ReLU, in place": Case(lambda: nn.ReLU(inplace=True), FLAT),
            "RReLU": Case(nn.RReLU, FLAT, maps=False, random=True),
            "Dropout": Case(lambda: nn.Dropout(0.5), FLAT, random=True),
            "AlphaDropout": Case(lambda: nn.AlphaDropout(0.5), FLAT, random=True),
            "F.gumbel_softmax": Case(of_input(F.gumbel_softmax), FLAT, random=True),
            "noise": Case(of_input(lambda x: x * (1 + torch.rand_like(x))), FLAT, random=True),
            "Linear": Case(lambda: nn.Linear(8, 3), FLAT),
            "Bilinear": Case(lambda: Call(lambda x, b: b(x[:, :4], x[:, 4:]), nn.Bilinear(4, 4, 3)), FLAT),
            "cosine_similarity": Case(of_input(lambda x: F.cosine_similarity(x, x.flip(1), dim=-1)), SEQUENCE),
            "pairwise_distance": Case(of_input(lambda x: F.pairwise_distance(x, x.flip(1) + 0.1)), SEQUENCE),
            "cdist": Case(of_input(lambda x: torch.cdist(x, x + 0.1)), SEQUENCE),
            "pdist": Case(of_input(lambda x: F.pdist(x).expand(3, 3)), FLAT, second_order=DISTANCES_TWICE),
            "var": Case(of_input(lambda x: x.var(-1)), SEQUENCE),
            "std": Case(of_input(lambda x: x.std(-1)), SEQUENCE),
            "norm": Case(of_input(lambda x: x.norm(dim=-1)), SEQUENCE),
            "median": Case(of_input(lambda x: x.median(-1).values), SEQUENCE),
            "fft": Case(of_input(lambda x: torch.fft.rfft(x).abs()), SEQUENCE),
            "data-dependent branch": Case(of_input(lambda x: x if x.sum() > 0 else -x), FLAT, maps=False),
            "boolean index": Case(of_input(lambda x: x[x > 0].sum() * x), FLAT, maps=False),
            "one_hot": Case(of_input(lambda x: F.one_hot(ids(x), 6) * x[..., None]), FLAT, maps=False),
        }
    )


def _sequences() -> dict[str, Case]:
    table = lambda **o: Case(lambda: Call(lambda x, e: e(ids(x)) * x[..., None], nn.Embedding(6, 3, **o)), FLAT)  # noqa: E731
    bag = lambda mode: Case(lambda: Call(lambda x, e: e(ids(x)), nn.EmbeddingBag(6, 3, mode=mode)), FLAT)  # noqa: E731
    cases = {
        "Embedding": table(),
        "Embedding, padding_idx": table(padding_idx=0),
        "Embedding, padding_idx from the end": table(padding_idx=-1),
        **{f"EmbeddingBag, {mode}": bag(mode) for mode in ("sum", "mean", "max")},
        "EmbeddingBag, weighted": Case(
            lambda: Call(lambda x, e: e(ids(x), per_sample_weights=x), nn.EmbeddingBag(6, 3, mode="sum")), FLAT
        ),
        "attention": Case(attention(), SEQUENCE),
        "attention, causal": Case(attention(is_causal=True), SEQUENCE),
        "attention, boolean mask": Case(attention(attn_mask=torch.ones(5, 5).tril().bool()), SEQUENCE),
        "attention, real mask": Case(attention(attn_mask=torch.eye(5, dtype=torch.float64)), SEQUENCE),
        "attention, learned mask": Case(
            lambda: Call(
                lambda x, w: F.scaled_dot_product_attention(*heads(x), attn_mask=w.weight), nn.Linear(5, 5, bias=False)
            ),
            SEQUENCE,
        ),
        "attention, scale": Case(attention(scale=0.3), SEQUENCE),
        "attention, shared heads": Case(
            of_input(
                lambda x: F.scaled_dot_product_attention(
                    heads(x)[0], heads(x)[1][:, :1], heads(x)[2][:, :1], enable_gqa=True
                )
            ),
            SEQUENCE,
        ),
        "attention, dropout": Case(attention(dropout_p=0.3), SEQUENCE, random=True),
        "MultiheadAttention": Case(multi_head(), SEQUENCE),
        "MultiheadAttention, no weights": Case(multi_head(call={"need_weights": False}), SEQUENCE),
        "MultiheadAttention, evaluation": Case(multi_head(training=False), SEQUENCE),
        "MultiheadAttention, no weights, evaluation": Case(
            multi_head(training=False, call={"need_weights": False}), SEQUENCE
        ),
        "MultiheadAttention, padding": Case(
            multi_head(call={"need_weights": False, "key_padding_mask": torch.tensor([[False] * 3 + [True] * 2] * 3)}),
            SEQUENCE,
        ),
        "MultiheadAttention, kdim": Case(multi_head(call={"need_weights": False}, kdim=8, vdim=8), SEQUENCE),
        "MultiheadAttention, bias_kv": Case(multi_head(call={"need_weights": False}, add_bias_kv=True), SEQUENCE),
        "MultiheadAttention, dropout": Case(multi_head(dropout=0.3), SEQUENCE, random=True),
        "TransformerEncoderLayer": Case(encoder, SEQUENCE),
        "TransformerEncoderLayer, evaluation": Case(lambda: encoder().eval(), SEQUENCE),
        "TransformerEncoderLayer, GELU, norm first": Case(
            lambda: encoder(activation="gelu", norm_first=True), SEQUENCE
        ),
        "TransformerEncoderLayer, dropout": Case(lambda: encoder(dropout=0.2), SEQUENCE, random=True),
        "TransformerEncoder, evaluation": Case(lambda: evaluating(nn.TransformerEncoder, encoder(), 2), SEQUENCE),
        "TransformerDecoderLayer": Case(
            lambda: Call(
                lambda x, d: d(x, x.flip(1)), nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            ),
            SEQUENCE,
        ),
        "Transformer": Case(
            lambda: Call(lambda x, t: t(x, x.flip(1)), nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=True)),
            SEQUENCE,
        ),
        "RNNCell, from a state": Case(lambda: Call(lambda x, c: c(x[:, 0], x[:, 1, :4]), nn.RNNCell(8, 4)), SEQUENCE),
        "GRUCell, from a state": Case(lambda: Call(lambda x, c: c(x[:, 0], x[:, 1, :4]), nn.GRUCell(8, 4)), SEQUENCE),
        "LSTM, projected": Case(lambda: nn.LSTM(8, 4, proj_size=2, batch_first=True), SEQUENCE, maps=False),
        "RNN, ReLU": Case(lambda: nn.RNN(8, 4, nonlinearity="relu", batch_first=True), SEQUENCE, maps=False),
    }
    for name in ("RNN", "GRU", "LSTM"):
        made = getattr(nn, name)
        cell = getattr(nn, f"{name}Cell")
        cases |= {
            name: Case(partial(made, 8, 4, batch_first=True), SEQUENCE, maps=False),
            f"{name}, two ways, two layers": Case(
                partial(made, 8, 4, 2, bidirectional=True, batch_first=True), SEQUENCE, maps=False
            ),
            f"{name}, dropout": Case(
                partial(made, 8, 4, 2, dropout=0.5, batch_first=True), SEQUENCE, maps=False, random=True
            ),
            f"{name}Cell": Case(partial(from_nothing, cell), SEQUENCE, maps=False),
        }
    return cases


CASES = _normalisations() | _in_space() | _pointwise() | _sequences()
