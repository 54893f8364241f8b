"""Embeddings and one-hot encodings of inputs that are codes of categories, as from a `Table`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.checks import whole
from lightning_meta.errors import UserError
from lightning_meta.nn.frozen import FeatureExtractor
from lightning_meta.tasks.table import FIRST, UNSEEN


class CategoryEmbedding(nn.Module):
    r"""$[x_{\text{numbers}}; E_1[c_1]; \ldots; E_k[c_k]]$: numeric inputs, then the embedding of each code.

    Guo and Berkhahn, Entity Embeddings of Categorical Variables (2016), https://arxiv.org/abs/1604.06737.

    Entries are initialised from $\mathcal{N}(0, 1/d)$, so that the embedding of a column has the expected squared norm
    of one standardised number; those of unseen and missing texts are initialised to 0. A value that is not a code of
    its column is treated as an unseen text.

    Args:
        columns: Number of codes of each input, which are 0, 1, ...; 0 for a numeric input.
        size: Size d of all embeddings; by default `embedding_size` of each column.
    """

    def __init__(self, columns: Sequence[int], size: int | None = None) -> None:
        super().__init__()
        self.columns = tuple(columns)
        self.coded = [i for i, codes in enumerate(columns) if codes]
        sizes = [embedding_size(columns[i] - FIRST) if size is None else size for i in self.coded]
        for i, width in zip(self.coded, sizes, strict=True):
            self.register_parameter(f"embedding_{i}", nn.Parameter(torch.empty(columns[i], width)))
        self.out_features = len(columns) - len(self.coded) + sum(sizes)
        # Slices, since a list of indices would be copied to the device in every step.
        ends = [-1, *self.coded, len(columns)]
        self.numbers = [slice(a + 1, b) for a, b in pairwise(ends) if b - a > 1]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the entries."""
        for weight in self.parameters():
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
            nn.init.zeros_(weight[:FIRST])

    def forward(self, x: Tensor) -> Tensor:
        """Features `(M, out_features)` of inputs `(M, D)`; columns beyond D are appended unchanged."""
        check_precision(x.dtype, self.columns)
        parts = [x[:, of] for of in self.numbers]
        for i in self.coded:
            weight: Tensor = getattr(self, f"embedding_{i}")  # under `vmap` it is a tensor, not a parameter
            parts.append(nn.functional.embedding(codes_of(x[:, i], self.columns[i]), weight))
        if x.shape[1] > len(self.columns):
            parts.append(x[:, len(self.columns) :])
        return torch.cat(parts, 1)


class OneHot(nn.Module):
    """Flattens inputs and replaces each code by a one-hot vector over the texts, as `categories: one_hot` does.

    Args:
        columns: Number of codes of each input; 0 for a numeric input. Empty if all inputs are numeric.
    """

    def __init__(self, columns: Sequence[int] = ()) -> None:
        super().__init__()
        self.columns = tuple(columns)

    def take_columns(self, columns: Sequence[int]) -> None:
        """Set which inputs are codes."""
        self.columns = tuple(columns)

    @property
    def out_features(self) -> int:
        """Number of features F, if `columns` are known."""
        return sum(codes - FIRST if codes else 1 for codes in self.columns)

    def forward(self, x: Tensor) -> Tensor:
        """Features `(M, F)` of inputs `(M, ...)`."""
        x = x.flatten(1)
        if not any(self.columns):
            return x
        check_precision(x.dtype, self.columns)
        parts = [x[:, i : i + 1] if not codes else _one_hot(x[:, i], codes) for i, codes in enumerate(self.columns)]
        return torch.cat(parts, 1)


def embedding_size(categories: int) -> int:
    r"""$\min(600, \mathrm{round}(1.6\, n^{0.56}))$, a rule of thumb for the size of an embedding of n categories.

    Howard and Gugger, fastai: A Layered API for Deep Learning, Information 11 (2020),
    https://docs.fast.ai/tabular.model.html, `emb_sz_rule`.
    """
    return min(600, max(1, round(1.6 * math.pow(categories, 0.56))))


def codes_of(x: Tensor, codes: int) -> Tensor:
    """Inputs `(M,)` as int64 codes; values that are not codes become `UNSEEN`."""
    found = x.long()
    return torch.where((found < 0) | (found >= codes) | (found != x), UNSEEN, found)


def take_columns(networks: Mapping[str, nn.Module], columns: Sequence[int]) -> None:
    """Tell the networks that read the inputs of a table which of these are codes.

    A network of your own needs a method `take_columns(columns)`, in the network or in one of its submodules.

    Args:
        networks: The networks by the name of their option.
        columns: Number of codes of each input; 0 for a numeric input.

    Raises:
        UserError: There are codes, and a network would treat them as numbers.
    """
    for option, network in networks.items():
        parts: list[Any] = list(network.modules())
        before = {id(parameter) for parameter in network.parameters()}
        takers = [part for part in parts if callable(getattr(part, "take_columns", None))]
        for part in takers:
            part.take_columns(columns)
        for part in parts:
            if isinstance(part, FeatureExtractor) and part.frozen:  # the new parameters are frozen as well
                part.train(part.training)
                for parameter in part.parameters():
                    parameter.requires_grad_(parameter.requires_grad and id(parameter) in before)
        if any(columns) and not takers:
            raise UserError(
                f"{option}: {type(network).__name__} would treat the codes of categories as numbers; use "
                "lightning_meta.nn.TabularMLP, which embeds them, or let the Table give categories: one_hot"
            )


def awaits_columns(network: nn.Module) -> bool:
    """Whether a part of a network makes its layers in `take_columns` and does not know its columns yet."""
    return any(
        callable(getattr(part, "take_columns", None)) and getattr(part, "columns", ()) is None
        for part in network.modules()
    )


def check_columns(columns: Sequence[int]) -> None:
    """Check numbers of codes.

    Raises:
        UserError: A number of codes is neither 0 nor at least 3: two codes are for unseen and missing texts.
    """
    for i, codes in enumerate(columns):
        whole(0, **{f"columns[{i}]": codes})
        if 0 < codes <= FIRST:
            raise UserError(
                f"columns[{i}]: a category has {FIRST} codes for unseen and missing texts, and one for each text; got "
                f"{codes}, expected 0 for a number, or {FIRST + 1} and more"
            )


def check_precision(dtype: torch.dtype, columns: Sequence[int]) -> None:
    """Refuse a dtype with so few bits that neighbouring codes round to the same number.

    Raises:
        UserError: The dtype cannot represent all codes of a column.
    """
    if not dtype.is_floating_point:
        return
    most = int(2 / torch.finfo(dtype).eps)
    if max(columns, default=0) > most + 1:
        raise UserError(
            f"precision: inputs in {dtype} can represent {most} codes of a category, and a column has {max(columns)}; "
            "use precision 32-true or bf16-mixed"
        )


def _one_hot(x: Tensor, codes: int) -> Tensor:
    """`(M,)` to `(M, texts)` of the same dtype."""
    texts = torch.arange(FIRST, codes, device=x.device)
    return codes_of(x, codes).unsqueeze(1).eq(texts).to(x.dtype)
