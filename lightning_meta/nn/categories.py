"""Inputs of which some are the codes of categories, as a `Table` gives them: embedded, or one-hot."""

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
    r"""$[x_{\text{numbers}}; E_1[c_1]; \dots; E_k[c_k]]$: an embedding of each code, behind the numbers.

    Guo and Berkhahn, Entity Embeddings of Categorical Variables (2016), https://arxiv.org/abs/1604.06737.

    Entries start as $\mathcal{N}(0, 1/d)$, so that a column counts as much as one standardised number; those of an
    unseen and of a missing text start at 0. Any number that is no code of the column counts as an unseen text.

    Args:
        columns: For each input, 0 for a number, else how many codes it has, from 0 on.
        size: d of all columns; by default `embedding_size` of each.
    """

    def __init__(self, columns: Sequence[int], size: int | None = None) -> None:
        super().__init__()
        self.columns = tuple(columns)
        self.coded = [i for i, codes in enumerate(columns) if codes]
        sizes = [embedding_size(columns[i] - FIRST) if size is None else size for i in self.coded]
        for i, width in zip(self.coded, sizes, strict=True):
            self.register_parameter(f"embedding_{i}", nn.Parameter(torch.empty(columns[i], width)))
        self.out_features = len(columns) - len(self.coded) + sum(sizes)
        # Slices and not a list of places, which would be copied to the device in every step.
        ends = [-1, *self.coded, len(columns)]
        self.numbers = [slice(a + 1, b) for a, b in pairwise(ends) if b - a > 1]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the entries anew."""
        for weight in self.parameters():
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
            nn.init.zeros_(weight[:FIRST])

    def forward(self, x: Tensor) -> Tensor:
        """Inputs `(M, D)` to features `(M, out_features)`; further columns than D come last, as they are."""
        check_precision(x.dtype, self.columns)
        parts = [x[:, of] for of in self.numbers]
        for i in self.coded:
            weight: Tensor = getattr(self, f"embedding_{i}")  # under `vmap` no parameter
            parts.append(nn.functional.embedding(codes_of(x[:, i], self.columns[i]), weight))
        if x.shape[1] > len(self.columns):
            parts.append(x[:, len(self.columns) :])
        return torch.cat(parts, 1)


class OneHot(nn.Module):
    """Lays inputs out flat, with an input of 0 or 1 for each text in place of a code, as `categories: one_hot` does.

    Args:
        columns: For each input, 0 for a number, else how many codes it has; empty where none has any.
    """

    def __init__(self, columns: Sequence[int] = ()) -> None:
        super().__init__()
        self.columns = tuple(columns)

    def take_columns(self, columns: Sequence[int]) -> None:
        """Note which inputs are codes."""
        self.columns = tuple(columns)

    @property
    def out_features(self) -> int:
        """F, where `columns` are known."""
        return sum(codes - FIRST if codes else 1 for codes in self.columns)

    def forward(self, x: Tensor) -> Tensor:
        """`(M, ...)` to `(M, F)`."""
        x = x.flatten(1)
        if not any(self.columns):
            return x
        check_precision(x.dtype, self.columns)
        parts = [x[:, i : i + 1] if not codes else _one_hot(x[:, i], codes) for i, codes in enumerate(self.columns)]
        return torch.cat(parts, 1)


def embedding_size(categories: int) -> int:
    r"""$\min(600, \mathrm{round}(1.6\, n^{0.56}))$, a rule of thumb for the numbers in an embedding of n categories.

    Howard and Gugger, fastai: A Layered API for Deep Learning, Information 11 (2020),
    https://docs.fast.ai/tabular.model.html, `emb_sz_rule`.
    """
    return min(600, max(1, round(1.6 * math.pow(categories, 0.56))))


def codes_of(x: Tensor, codes: int) -> Tensor:
    """Inputs `(M,)` as codes int64; what is none of them becomes `UNSEEN`."""
    found = x.long()
    return torch.where((found < 0) | (found >= codes) | (found != x), UNSEEN, found)


def take_columns(networks: Mapping[str, nn.Module], columns: Sequence[int]) -> None:
    """Tell the networks that get the inputs of a table which of these are codes.

    A network of your own learns it by a method `take_columns(columns)`, here or in a part of it.

    Args:
        networks: By what the user calls each.
        columns: For each input, 0 for a number, else how many codes it has.

    Raises:
        UserError: There are codes, and a network would take them for numbers.
    """
    for option, network in networks.items():
        parts: list[Any] = list(network.modules())
        before = {id(parameter) for parameter in network.parameters()}
        takers = [part for part in parts if callable(getattr(part, "take_columns", None))]
        for part in takers:
            part.take_columns(columns)
        for part in parts:
            if isinstance(part, FeatureExtractor) and part.frozen:  # what was made just now is frozen, too
                part.train(part.training)
                for parameter in part.parameters():
                    parameter.requires_grad_(parameter.requires_grad and id(parameter) in before)
        if any(columns) and not takers:
            raise UserError(
                f"{option}: {type(network).__name__} would take the codes of categories for numbers; use "
                "lightning_meta.nn.TabularMLP, which embeds them, or let the Table give categories: one_hot"
            )


def awaits_columns(network: nn.Module) -> bool:
    """Whether a part of a network makes its layers in `take_columns` and has not been told its columns yet."""
    return any(
        callable(getattr(part, "take_columns", None)) and getattr(part, "columns", ()) is None
        for part in network.modules()
    )


def check_columns(columns: Sequence[int]) -> None:
    """Refuse what are no columns.

    Raises:
        UserError: A number of codes that is neither 0 nor leaves room for a text beside the two others.
    """
    for i, codes in enumerate(columns):
        whole(0, **{f"columns[{i}]": codes})
        if 0 < codes <= FIRST:
            raise UserError(
                f"columns[{i}]: a category has {FIRST} codes for unseen and missing texts, and one for each text; got "
                f"{codes}, expected 0 for a number, or {FIRST + 1} and more"
            )


def check_precision(dtype: torch.dtype, columns: Sequence[int]) -> None:
    """Refuse inputs of so few bits that neighbouring codes are the same number.

    Raises:
        UserError: The dtype and the number of codes.
    """
    if not dtype.is_floating_point:
        return
    most = int(2 / torch.finfo(dtype).eps)
    if max(columns, default=0) > most + 1:
        raise UserError(
            f"precision: inputs in {dtype} tell {most} codes of a category apart, and a column has {max(columns)}; use "
            "precision 32-true or bf16-mixed"
        )


def _one_hot(x: Tensor, codes: int) -> Tensor:
    """`(M,)` to `(M, texts)` of the same dtype."""
    texts = torch.arange(FIRST, codes, device=x.device)
    return codes_of(x, codes).unsqueeze(1).eq(texts).to(x.dtype)
