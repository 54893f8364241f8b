"""The features of a table as numbers: standardised, one-hot, imputed, all learned on training rows alone."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta.errors import UserError
from lightning_meta.sources.columns import Column
from lightning_meta.sources.scaling import Standardiser
from lightning_meta.tasks.table import NumberFeature, TextFeature

_log = logging.getLogger(__name__)

Features = Sequence[NumberFeature | TextFeature]


def learn_features(
    columns: Mapping[str, Column],
    train: NDArray[np.bool_],
    categorical: Collection[str],
    max_categories: int,
    indicators: bool,
) -> Features:
    """Learn on training rows how columns become inputs.

    Args:
        columns: By name, n rows each.
        train: `(n,)` which rows are for training; one at least.
        categorical: Names of columns that are text although they hold numbers.
        max_categories: The most different training texts of a column.
        indicators: Whether a column that misses training values gets an input that says where.

    Returns:
        One for each column, in their order.

    Raises:
        UserError: A column mixes numbers with text, has no training value, too many texts, or a spread that is more
            than float64 holds.
    """
    features: list[NumberFeature | TextFeature] = []
    for name, column in columns.items():
        missing = column.missing[train]
        if missing.all():
            raise UserError(f"{column.where} has no value in any training row; leave it out of the features")
        indicator = indicators and bool(missing.any())
        if name in categorical or column.first_text is not None:
            texts = _texts(column, train, name in categorical, max_categories)
            features.append(TextFeature(name, texts, column.first_text is None, indicator))
        else:
            features.append(_number(name, column, train, indicator))
    if constant := [f.name for f in features if isinstance(f, NumberFeature) and f.constant]:
        told = ", ".join(map(repr, constant))
        _log.warning("Table: the same number in every training row, so an input of 0 in all rows: %s", told)
    return features


def encode(columns: Mapping[str, Column], features: Features) -> Tensor:
    """Turn rows into inputs, as learned.

    Args:
        columns: By name, n rows each; those of all features are among them.
        features: What `learn_features` said.

    Returns:
        `(n, D)` float32.

    Raises:
        UserError: A number is text, infinite, or becomes so in units of the training rows.
    """
    inputs: list[Tensor] = []
    for feature in features:
        column = columns[feature.name]
        inputs.append(
            _standardised(column, feature) if isinstance(feature, NumberFeature) else _one_hot(column, feature)
        )
        if feature.indicator:
            inputs.append(torch.from_numpy(column.missing).float().unsqueeze(1))
    return torch.cat(inputs, 1)


def _number(name: str, column: Column, train: NDArray[np.bool_], indicator: bool) -> NumberFeature:
    known = torch.from_numpy(column.centred[train & ~column.missing]).unsqueeze(1)
    if bool((known == known[0]).all()):  # what a network does with another number was never trained
        return NumberFeature(name, constant=True, indicator=indicator)
    learned = Standardiser(known)
    mean, scale = float(learned.mean), float(learned.scale)
    if not (np.isfinite(mean) and np.isfinite(scale) and scale > 0):  # squares are more or less than float64 holds
        apart = np.abs(column.centred)
        raise column.wrong(int((apart == np.nanmax(apart)).argmax()), TOO_LARGE)
    return NumberFeature(name, mean, scale, column.offset, indicator=indicator)


TOO_LARGE = "in units of the training rows it is more than float32 holds; mend it, or leave the column out"


def _standardised(column: Column, feature: NumberFeature) -> Tensor:
    """In units of the training rows, `(n, 1)`; 0, their mean, where missing, and everywhere if they are all equal."""
    numbers = column.less(feature.offset)  # refuses text, whatever becomes of the numbers
    if feature.constant:
        return torch.zeros(len(numbers), 1)
    with np.errstate(over="ignore"):
        standardised = ((numbers - feature.mean) / feature.scale).astype(np.float32)
    wrong = ~np.isfinite(standardised) & ~column.missing
    if wrong.any():
        raise column.wrong(int(wrong.argmax()), TOO_LARGE)
    return torch.from_numpy(np.nan_to_num(standardised, nan=0.0)).unsqueeze(1)


def _texts(column: Column, train: NDArray[np.bool_], stated: bool, max_categories: int) -> list[str]:
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
    return texts


def _one_hot(column: Column, feature: TextFeature) -> Tensor:
    place = {text: i for i, text in enumerate(feature.texts)}
    other = len(place)
    at = torch.tensor([place.get(text, other) for text in column.texts(feature.of_numbers)])
    at[torch.from_numpy(column.missing)] = other
    return torch.nn.functional.one_hot(at, other + 1)[:, :-1].float()
