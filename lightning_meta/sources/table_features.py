"""Conversion of table columns to inputs: scaling, one-hot encoding and imputation, with training statistics only."""

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
from lightning_meta.sources.table_messages import say
from lightning_meta.tasks.table import FIRST, NumberFeature, TextFeature

_log = logging.getLogger(__name__)

Scaling = Literal["standard", "quantile_normal", "quantile_uniform"]
Categories = Literal["one_hot", "codes"]
Features = Sequence[NumberFeature | TextFeature]
CHUNK = 2048  # number of rows whose inputs stay in the processor's cache while they are filled column by column


def learn_features(
    columns: Mapping[str, Column],
    train: NDArray[np.bool_],
    categorical: Collection[str],
    max_categories: int,
    indicators: bool,
    scaling: Scaling = "standard",
    categories: Categories = "one_hot",
) -> Features:
    """Compute from the training rows how columns are converted to inputs.

    Args:
        columns: Columns by name, with n rows each.
        train: Mask of the training rows, `(n,)`; at least one.
        categorical: Names of columns to treat as text although they hold numbers.
        max_categories: Largest number of different texts of a column in the training rows.
        indicators: Whether a column with missing values in training gets an input that marks missing values.
        scaling: How numbers are scaled.
        categories: How text is converted to inputs.

    Returns:
        One feature per column, in the order of the columns.

    Raises:
        UserError: A column mixes numbers with text, has no value in the training rows, has too many texts, or has a
            standard deviation outside the range of float64.
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
            coded = categories == "codes"  # these need no indicator, as one code means missing
            features.append(TextFeature(name, texts, column.first_text is None, indicator and not coded, coded, missed))
        else:
            number = _number(name, column, train, indicator, scaling)
            features.append(replace(number, missed=missed, boolean=column.boolean))
            if (advice := column.grouped) is not None:
                say(_log, logging.WARNING, "%s: %s", column.where, advice)
    if constant := [f.name for f in features if isinstance(f, NumberFeature) and f.constant]:
        names = ", ".join(map(repr, constant))
        message = "Table: these columns are constant in the training rows, so their inputs are always 0: %s"
        say(_log, logging.WARNING, message, names)
    if constant := [f.name for f in features if isinstance(f, TextFeature) and len(f.texts) == 1 and not f.missed]:
        names = ", ".join(map(repr, constant))
        message = "Table: these columns have the same text in all training rows, so nothing is learned from them: %s"
        say(_log, logging.WARNING, message, names)
    return features


def encode(columns: Mapping[str, Column], features: Features) -> Tensor:
    """Convert all rows to inputs.

    Args:
        columns: Columns by name, with n rows each, including those of all features.
        features: Result of `learn_features`.

    Returns:
        Inputs `(n, D)`, float32.

    Raises:
        UserError: A numeric column holds text or infinity, or a number that is infinite after scaling.
    """
    (inputs,) = encode_parts(columns, features, [np.arange(len(columns[features[0].name].missing))])
    return inputs


def encode_parts(columns: Mapping[str, Column], features: Features, parts: Sequence[NDArray[np.int64]]) -> list[Tensor]:
    """Convert selected rows to inputs.

    It is equivalent to `encode` and a selection of rows, but does not hold the inputs of all rows as well.

    Args:
        columns: Columns by name, with n rows each, including those of all features.
        features: Result of `learn_features`.
        parts: Rows of each part, in the order of the result.

    Returns:
        Inputs of each part, `(n_i, D)`, float32.

    Raises:
        UserError: Any of the n rows cannot be converted, as in `encode`.
    """
    numbers = {f.name: _numbers(columns[f.name], f) for f in features if isinstance(f, NumberFeature)}
    places = {f.name: _places(columns[f.name], f) for f in features if isinstance(f, TextFeature)}
    width = sum(len(feature.inputs) for feature in features)
    inputs = [np.zeros((len(rows), width), np.float32) for rows in parts]
    for x, rows in zip(inputs, parts, strict=True):
        for start in range(0, len(rows), CHUNK):
            at, x_chunk, chunk = 0, x[start : start + CHUNK], rows[start : start + CHUNK]
            for feature in features:
                if isinstance(feature, NumberFeature):
                    if not feature.constant:
                        units = scaled(numbers[feature.name][chunk], feature)
                        x_chunk[:, at] = np.where(np.isnan(units), feature.missing_input, units)
                else:
                    place = places[feature.name][chunk]
                    if feature.coded:  # FIRST and more for a known text, 1 for a missing one, 0 for an unseen one
                        x_chunk[:, at] = np.where(place >= 0, place + FIRST, columns[feature.name].missing[chunk])
                    else:
                        known = np.flatnonzero(place >= 0)
                        x_chunk[known, at + place[known]] = 1.0
                at += len(feature.inputs)
                if feature.indicator:  # the last input of the feature
                    x_chunk[:, at - 1] = columns[feature.name].missing[chunk]
    return [torch.from_numpy(x) for x in inputs]


def numbers_rows(column: Column) -> bool:
    """Whether a column seems to number the rows: 100 or more whole numbers, all different, close to each other.

    If n numbers were drawn at random from 10 n, all would be different with a probability of about exp(−n / 20).
    """
    if len(column.missing) < 100 or column.first_text is not None or column.whole is None or column.missing.any():
        return False
    numbers = column.centred
    return bool(np.ptp(numbers) < 10 * len(numbers)) and len(np.unique(numbers)) == len(numbers)


def _number(name: str, column: Column, train: NDArray[np.bool_], indicator: bool, scaling: Scaling) -> NumberFeature:
    present = torch.from_numpy(column.centred[train & ~column.missing]).unsqueeze(1)
    if bool((present == present[0]).all()):  # a network cannot learn from training rows what other numbers mean
        return NumberFeature(name, constant=True, indicator=indicator)
    standardiser = Standardiser(present)
    mean, scale = float(standardiser.mean), float(standardiser.scale)
    if not (np.isfinite(mean) and np.isfinite(scale) and scale > 0):  # squares overflow or underflow in float64
        distances = np.abs(column.centred)
        advice = TOO_SMALL if scale == 0 else TOO_LARGE
        raise column.wrong(int((distances == np.nanmax(distances)).argmax()), advice)
    if scaling == "standard":
        return NumberFeature(name, mean, scale, column.offset, indicator=indicator)
    quantiles, normal = quantiles_of(present[:, 0].numpy(), int(train.sum())), scaling == "quantile_normal"
    return NumberFeature(name, offset=column.offset, indicator=indicator, quantiles=quantiles, normal=normal)


TOO_SMALL = "the column varies too little to be scaled; give it in another unit, or leave it out"
TOO_LARGE = "after scaling it is larger than float32 can hold; correct it, or leave out the column"


def _numbers(column: Column, feature: NumberFeature) -> NDArray[np.float64]:
    """Return the numbers minus the offset, `(n,)`, NaN where missing; all are checked to be finite after scaling."""
    column = column.flags if feature.boolean else column
    numbers = column.less(feature.offset)  # raises for text, even if the feature is constant
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
        problem = "other rows hold numbers; correct it (empty if it is missing), or name the column in `categorical`"
        raise column.wrong(column.first_text, f"{problem}{column.hint}")
    coded = column.coded
    counts = np.bincount(coded.codes[train] + 1, minlength=len(coded.texts) + 1)[1:]  # without the missing texts
    texts = sorted(text for text, count in zip(coded.texts, counts, strict=True) if count)
    if len(texts) > max_categories:
        raise UserError(
            f"{column.where} has {len(texts)} different texts in training rows, such as {texts[0]!r}; leave it out of "
            f"the features, or raise max_categories ({max_categories}){column.hint}"
        )
    if not stated and (hint := column.hint):
        say(_log, logging.WARNING, "%s is text, such as %r%s", column.where, texts[0], hint)
    return texts


def _places(column: Column, feature: TextFeature) -> NDArray[np.int64]:
    """Return the index of each row's text among the texts of the feature, `(n,)`; -1 if it is unseen or missing."""
    index_of = {text: i for i, text in enumerate(feature.texts)}
    texts, codes = column.texts(feature.of_numbers, feature.texts)
    return np.array([*(index_of.get(text, -1) for text in texts), -1])[codes]
