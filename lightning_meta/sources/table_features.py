"""The features of a table as numbers: standardised, one-hot, imputed, all learned on training rows alone."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta.errors import UserError
from lightning_meta.sources.columns import Column
from lightning_meta.sources.scaling import Standardiser

_log = logging.getLogger(__name__)


def encode_features(
    columns: Mapping[str, Column],
    train: NDArray[np.bool_],
    categorical: Collection[str],
    max_categories: int,
    indicators: bool,
) -> tuple[list[str], Tensor]:
    """Turn columns into inputs, column by column in their order.

    Args:
        columns: By name, n rows each.
        train: `(n,)` which rows are for training; one at least.
        categorical: Names of columns that are text although they hold numbers.
        max_categories: The most different training texts of a column.
        indicators: Whether a column that misses training values gets an input that says where.

    Returns:
        The name of each input, and `(n, D)` float32.

    Raises:
        UserError: A column mixes numbers with text, has no training value, too many texts, or a number that is
            infinite or becomes so.
    """
    names: list[str] = []
    inputs: list[Tensor] = []
    constant: list[str] = []
    for name, column in columns.items():
        if column.missing[train].all():
            raise UserError(f"{column.where} has no value in any training row; leave it out of the features")
        if name in categorical or column.first_text is not None:
            texts, x = _one_hot(column, train, name in categorical, max_categories)
            names += [f"{name}={text}" for text in texts]
        else:
            x = _standardised(column, train)
            names.append(name)
            if not x.any():
                constant.append(name)
        inputs.append(x)
        if indicators and column.missing[train].any():
            names.append(f"{name} is missing")
            inputs.append(torch.from_numpy(column.missing).float().unsqueeze(1))
    if constant:
        told = ", ".join(map(repr, constant))
        _log.warning("Table: the same number in every training row, so an input of 0 in all rows: %s", told)
    return names, torch.cat(inputs, 1)


def _standardised(column: Column, train: NDArray[np.bool_]) -> Tensor:
    """In units of the training rows, `(n, 1)`; 0, their mean, where missing, and everywhere if they are all equal."""
    numbers = torch.from_numpy(column.centred).unsqueeze(1)
    known = torch.from_numpy(train & ~column.missing)
    if bool((numbers[known] == numbers[known][0]).all()):
        return torch.zeros(len(numbers), 1)  # what a network does with another number was never trained
    standardise = Standardiser(numbers[known])
    standardised = standardise(numbers)
    wrong = ~torch.isfinite(standardised[:, 0]) & torch.from_numpy(~column.missing)
    if not torch.isfinite(standardise.scale).all():  # the square of the largest is more than float64 holds
        wrong = numbers[:, 0].abs() == np.nanmax(np.abs(column.centred))
    if wrong.any():
        problem = "in units of the training rows it is more than float32 holds; mend it, or leave the column out"
        raise column.wrong(int(wrong.int().argmax()), problem)
    return standardised.nan_to_num(nan=0.0)


def _one_hot(column: Column, train: NDArray[np.bool_], stated: bool, max_categories: int) -> tuple[list[str], Tensor]:
    if column.mixed and not stated:
        assert column.first_text is not None
        raise column.wrong(column.first_text, "other rows hold numbers; mend it, or name the column in `categorical`")
    known = train & ~column.missing
    texts = sorted({label for label, there in zip(column.labels, known, strict=True) if there})
    if len(texts) > max_categories:
        raise UserError(
            f"{column.where} has {len(texts)} different texts in training rows, such as {texts[0]!r}; leave it out of "
            f"the features, or raise max_categories ({max_categories})"
        )
    place = {text: i for i, text in enumerate(texts)}
    at = torch.tensor([place.get(label, len(texts)) for label in column.labels])
    at[torch.from_numpy(column.missing)] = len(texts)
    return texts, torch.nn.functional.one_hot(at, len(texts) + 1)[:, :-1].float()
