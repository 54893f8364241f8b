"""The features of a table as numbers: standardised, one-hot, imputed, all learned on training rows alone."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta.errors import UserError
from lightning_meta.sources.columns import Column
from lightning_meta.sources.scaling import Standardiser, quantiles_of, scaled
from lightning_meta.tasks.table import FIRST, NumberFeature, TextFeature

_log = logging.getLogger(__name__)

Scaling = Literal["standard", "quantile_normal", "quantile_uniform"]
Categories = Literal["one_hot", "codes"]
Features = Sequence[NumberFeature | TextFeature]
CHUNK = 2048  # rows whose inputs stay in the processor's cache while they are filled column by column


def learn_features(
    columns: Mapping[str, Column],
    train: NDArray[np.bool_],
    categorical: Collection[str],
    max_categories: int,
    indicators: bool,
    scaling: Scaling = "standard",
    categories: Categories = "one_hot",
) -> Features:
    """Learn on training rows how columns become inputs.

    Args:
        columns: By name, n rows each.
        train: `(n,)` which rows are for training; one at least.
        categorical: Names of columns that are text although they hold numbers.
        max_categories: The most different training texts of a column.
        indicators: Whether a column that misses training values gets an input that says where.
        scaling: How numbers become inputs.
        categories: How texts become inputs.

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
        missed = bool(missing.any())
        indicator = indicators and missed
        if name in categorical or column.first_text is not None:
            texts = _texts(column, train, name in categorical, max_categories)
            coded = categories == "codes"  # of which one says that a text is missing
            features.append(TextFeature(name, texts, column.first_text is None, indicator and not coded, coded, missed))
        else:
            features.append(replace(_number(name, column, train, indicator, scaling), missed=missed))
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
    (inputs,) = encode_parts(columns, features, [np.arange(len(columns[features[0].name].missing))])
    return inputs


def encode_parts(columns: Mapping[str, Column], features: Features, parts: Sequence[NDArray[np.int64]]) -> list[Tensor]:
    """Turn some rows into inputs; as `encode` and a selection, without holding the inputs of all rows beside it.

    Args:
        columns: By name, n rows each; those of all features are among them.
        features: What `learn_features` said.
        parts: The rows of each part, in order.

    Returns:
        `(n_i, D)` float32 for each part.

    Raises:
        UserError: As `encode`, of any of the n rows.
    """
    numbers = {f.name: _numbers(columns[f.name], f) for f in features if isinstance(f, NumberFeature)}
    places = {f.name: _places(columns[f.name], f) for f in features if isinstance(f, TextFeature)}
    width = sum(len(feature.inputs) for feature in features)
    inputs = [np.zeros((len(rows), width), np.float32) for rows in parts]
    for x, rows in zip(inputs, parts, strict=True):
        for start in range(0, len(rows), CHUNK):
            at, here, of_chunk = 0, x[start : start + CHUNK], rows[start : start + CHUNK]
            for feature in features:
                if isinstance(feature, NumberFeature):
                    if not feature.constant:
                        units = scaled(numbers[feature.name][of_chunk], feature)
                        here[:, at] = np.where(np.isnan(units), feature.missing_input, units)
                else:
                    place = places[feature.name][of_chunk]
                    if feature.coded:
                        here[:, at] = np.where(place >= 0, place + FIRST, columns[feature.name].missing[of_chunk])
                    else:
                        known = np.flatnonzero(place >= 0)
                        here[known, at + place[known]] = 1.0
                at += len(feature.inputs)
                if feature.indicator:
                    here[:, at - 1] = columns[feature.name].missing[of_chunk]
    return [torch.from_numpy(x) for x in inputs]


def _number(name: str, column: Column, train: NDArray[np.bool_], indicator: bool, scaling: Scaling) -> NumberFeature:
    known = torch.from_numpy(column.centred[train & ~column.missing]).unsqueeze(1)
    if bool((known == known[0]).all()):  # what a network does with another number was never trained
        return NumberFeature(name, constant=True, indicator=indicator)
    learned = Standardiser(known)
    mean, scale = float(learned.mean), float(learned.scale)
    if not (np.isfinite(mean) and np.isfinite(scale) and scale > 0):  # squares are more or less than float64 holds
        apart = np.abs(column.centred)
        raise column.wrong(int((apart == np.nanmax(apart)).argmax()), TOO_LARGE)
    if scaling == "standard":
        return NumberFeature(name, mean, scale, column.offset, indicator=indicator)
    quantiles, normal = quantiles_of(known[:, 0].numpy(), int(train.sum())), scaling == "quantile_normal"
    return NumberFeature(name, offset=column.offset, indicator=indicator, quantiles=quantiles, normal=normal)


TOO_LARGE = "in units of the training rows it is more than float32 holds; mend it, or leave the column out"


def _numbers(column: Column, feature: NumberFeature) -> NDArray[np.float64]:
    """The numbers less the offset, `(n,)`, NaN where missing; all are finite in units of the training rows."""
    numbers = column.less(feature.offset)  # refuses text, whatever becomes of the numbers
    if feature.constant or column.missing.all():
        return numbers
    with np.errstate(over="ignore"):
        extremes = np.array([np.nanmin(numbers), np.nanmax(numbers)])
        if not np.isfinite(scaled(extremes, feature).astype(np.float32)).all():
            wrong = ~np.isfinite(scaled(numbers, feature).astype(np.float32)) & ~column.missing
            raise column.wrong(int(wrong.argmax()), TOO_LARGE)
    return numbers


def _texts(column: Column, train: NDArray[np.bool_], stated: bool, max_categories: int) -> list[str]:
    if column.mixed and not stated:
        assert column.first_text is not None
        said = f"other rows hold numbers; mend it, or name the column in `categorical`{column.hint}"
        raise column.wrong(column.first_text, said)
    coded = column.coded
    used = np.bincount(coded.codes[train] + 1, minlength=len(coded.texts) + 1)[1:]
    texts = sorted(text for text, count in zip(coded.texts, used, strict=True) if count)
    if len(texts) > max_categories:
        raise UserError(
            f"{column.where} has {len(texts)} different texts in training rows, such as {texts[0]!r}; leave it out of "
            f"the features, or raise max_categories ({max_categories}){column.hint}"
        )
    if not stated and (hint := column.hint):
        _log.warning("%s is text, such as %r%s", column.where, texts[0], hint)
    return texts


def _places(column: Column, feature: TextFeature) -> NDArray[np.int64]:
    """`(n,)` which input of the feature is 1; -1 for none."""
    place = {text: i for i, text in enumerate(feature.texts)}
    texts, codes = column.texts(feature.of_numbers)
    return np.array([*(place.get(text, -1) for text in texts), -1])[codes]
