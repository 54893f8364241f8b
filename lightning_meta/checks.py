"""Checks of numbers that users give; each names the argument, says what was received and what is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from lightning_meta.errors import UserError


def whole(least: int, **values: Any) -> None:
    """Refuse what is no whole number of at least `least`.

    Args:
        least: The smallest.
        **values: By name of the argument; None is one that was left out.
    """
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise UserError(f"{name}: a whole number of at least {least} is needed, got {value!r}")
        if value < least:
            raise UserError(f"{name}: at least {least} is needed, got {value}")


def switch(**values: Any) -> None:
    """Refuse what is neither true nor false, such as the word "no", which counts as true.

    Args:
        **values: By name of the argument.
    """
    for name, value in values.items():
        if not isinstance(value, bool | np.bool_):
            raise UserError(f"{name}: True or False is needed, got {value!r}")


def widths(**values: Any) -> None:
    """Refuse what is no sequence of widths of layers.

    Args:
        **values: By name of the argument.
    """
    for name, value in values.items():
        numbers = value if isinstance(value, Sequence) and not isinstance(value, str) else [None]
        if any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in numbers):
            raise UserError(f"{name}: whole numbers of at least 1 are needed, one a layer, got {value!r}")


def positive(**values: Any) -> None:
    """Refuse what is no finite number above 0.

    Args:
        **values: By name of the argument.
    """
    for name, value in values.items():
        if not _is_number(value) or not value > 0:
            raise UserError(f"{name}: a positive number is needed, got {value!r}")


def not_negative(**values: Any) -> None:
    """Refuse what is no finite number of at least 0.

    Args:
        **values: By name of the argument.
    """
    for name, value in values.items():
        if not _is_number(value) or value < 0:
            raise UserError(f"{name}: a number of at least 0 is needed, got {value!r}")


def below_one(**values: Any) -> None:
    """Refuse what is no number in [0, 1), such as a share of units to drop.

    Args:
        **values: By name of the argument.
    """
    for name, value in values.items():
        if not _is_number(value) or not 0 <= value < 1:
            raise UserError(f"{name}: a number from 0 to below 1 is needed, got {value!r}")


def instance(name: str, value: Any, kinds: type | tuple[type, ...]) -> None:
    """Refuse what is no object of a class, such as the class itself or its name.

    Args:
        name: Of the argument.
        value: What was given.
        kinds: The class, or those to choose from.
    """
    if isinstance(value, kinds):
        return
    expected = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
    article = "an" if expected[0] in "AEIOU" else "a"
    if value is None:
        raise UserError(f"{name}: {article} {expected} is needed, got None")
    if isinstance(value, type):
        given = value.__name__
        hint = f"give an instance, {given}(...)"
        raise UserError(f"{name}: {article} {expected} is needed, got the class {given}; {hint}")
    raise UserError(f"{name}: {article} {expected} is needed, got {type(value).__name__} {str(value)[:80]!r}")


def factory(name: str, value: Any, example: str) -> None:
    """Refuse what cannot be called to make an optimiser or a schedule, such as one that is made already.

    Args:
        name: Of the argument.
        value: What was given.
        example: What to give.
    """
    if not callable(value):
        raise UserError(f"{name}: expected what makes one, such as {example}, got {type(value).__name__}")


def numbers(**values: Any) -> None:
    """Refuse what is no sequence of finite numbers, or an empty one.

    Args:
        **values: By name of the argument.
    """
    for name, value in values.items():
        if not isinstance(value, Sequence) or isinstance(value, str) or not value or not all(map(_is_number, value)):
            raise UserError(f"{name}: a list of numbers is needed, got {value!r}")


def some_names(**values: Any) -> None:
    """Refuse what is no list of names, or an empty one.

    Args:
        **values: By name of the argument.
    """
    for name, value in values.items():
        if not isinstance(value, list | tuple) or not value or not all(isinstance(one, str) for one in value):
            raise UserError(f"{name}: a name or a list of names is needed, got {value!r}")


def names_in_list(**values: Any) -> None:
    """Refuse one name where a list of names is needed; each of its letters would be taken for a name.

    Args:
        **values: By name of the argument.
    """
    for name, value in values.items():
        if isinstance(value, str):
            raise UserError(f"{name}: a list of names is needed, got {value!r}; give [{value!r}]")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
