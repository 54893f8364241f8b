"""Checks of arguments. Each raises `UserError` with the name, the expected kind of value and the received one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeGuard

import numpy as np

from lightning_meta.errors import UserError


def whole(least: int, **values: Any) -> None:
    """Check that values are whole numbers of at least `least`.

    Args:
        least: Smallest allowed number.
        **values: Values by name of the argument; None is accepted as an argument that was left out.
    """
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise UserError(f"{name}: a whole number of at least {least} is needed, got {value!r}")
        if value < least:
            raise UserError(f"{name}: at least {least} is needed, got {value}")


def needed(**values: Any) -> None:
    """Check that values are not None.

    Args:
        **values: Values by name of the argument.
    """
    _check(values, lambda value: value is not None, "a value")


def switch(**values: Any) -> None:
    """Check that values are booleans; the string "no", for example, would count as true.

    Args:
        **values: Values by name of the argument.
    """
    _check(values, lambda value: isinstance(value, bool | np.bool_), "True or False")


def widths(**values: Any) -> None:
    """Check that values are sequences of layer widths, whole numbers of at least 1.

    Args:
        **values: Values by name of the argument.
    """
    for name, value in values.items():
        numbers = value if isinstance(value, Sequence) and not isinstance(value, str) else [None]
        if any(isinstance(v, bool) or not isinstance(v, Integral) or v < 1 for v in numbers):
            raise UserError(f"{name}: whole numbers of at least 1 are needed, one a layer, got {value!r}")


def positive(**values: Any) -> None:
    """Check that values are finite numbers above 0.

    Args:
        **values: Values by name of the argument.
    """
    _check(values, lambda value: is_number(value) and value > 0, "a positive number")


def not_negative(**values: Any) -> None:
    """Check that values are finite numbers of at least 0.

    Args:
        **values: Values by name of the argument.
    """
    _check(values, lambda value: is_number(value) and value >= 0, "a number of at least 0")


def below_one(**values: Any) -> None:
    """Check that values are numbers in [0, 1), such as dropout rates.

    Args:
        **values: Values by name of the argument.
    """
    _check(values, lambda value: is_number(value) and 0 <= value < 1, "a number from 0 to below 1")


def share(example: float, **values: Any) -> None:
    """Check that values are shares in (0, 1), and not per cent.

    Args:
        example: Share that the error message gives as an example.
        **values: Values by name of the argument.
    """
    for name, value in values.items():
        if is_number(value) and 0 < value < 1:
            continue
        meant = f"; for {value:g} % give {value / 100:g}" if is_number(value) and 1 < value < 100 else ""
        raise UserError(f"{name}: a share above 0 and below 1 is needed, such as {example}; got {value!r}{meant}")


def probability(**values: Any) -> None:
    """Check that values are probabilities, in [0, 1].

    Args:
        **values: Values by name of the argument.
    """
    _check(values, lambda value: is_number(value) and 0 <= value <= 1, "a probability in [0, 1]")


def instance(name: str, value: Any, kinds: type | tuple[type, ...]) -> None:
    """Check that a value is an instance of a class, and not the class itself or its name.

    Args:
        name: Name of the argument.
        value: Value that the user passed.
        kinds: The class, or several accepted classes.
    """
    if isinstance(value, kinds):
        return
    expected = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
    article = "an" if expected[0] in "AEIOU" else "a"
    if value is None:
        raise UserError(f"{name}: {article} {expected} is needed, got None")
    if isinstance(value, type):
        cls = value.__name__
        raise UserError(f"{name}: {article} {expected} is needed, got the class {cls}; give an instance, {cls}(...)")
    raise UserError(f"{name}: {article} {expected} is needed, got {type(value).__name__} {str(value)[:80]!r}")


def factory(name: str, value: Any, example: str) -> None:
    """Check that a value is a factory of optimisers or schedules, and not an optimiser or schedule.

    Args:
        name: Name of the argument.
        value: Value that the user passed.
        example: Example of a factory, for the error message.
    """
    if not callable(value):
        raise UserError(f"{name}: a class or function is needed, such as {example}, got {type(value).__name__}")


def numbers(**values: Any) -> None:
    """Check that values are non-empty sequences of finite numbers.

    Args:
        **values: Values by name of the argument.
    """
    for name, value in values.items():
        if not isinstance(value, Sequence) or isinstance(value, str) or not value or not all(map(is_number, value)):
            raise UserError(f"{name}: a list of numbers is needed, got {value!r}")


def some_names(**values: Any) -> None:
    """Check that values are non-empty lists of names.

    Args:
        **values: Values by name of the argument.
    """
    for name, value in values.items():
        if not isinstance(value, list | tuple) or not value or not all(isinstance(one, str) for one in value):
            raise UserError(f"{name}: a name or a list of names is needed, got {value!r}")


def names_in_list(**values: Any) -> None:
    """Check that values are not single strings, whose letters would be taken for a list of names.

    Args:
        **values: Values by name of the argument.
    """
    for name, value in values.items():
        if isinstance(value, str):
            raise UserError(f"{name}: a list of names is needed, got {value!r}; give [{value!r}]")


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a finite number, and not a boolean."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_missing(value: Any) -> bool:
    """Whether a label is None, NaN, or the missing value of pandas."""
    nan = isinstance(value, float | np.floating) and bool(np.isnan(value))
    return value is None or nan or type(value).__name__ in ("NAType", "NaTType")


def _check(values: Mapping[str, Any], holds: Callable[[Any], bool], expected: str) -> None:
    for name, value in values.items():
        if not holds(value):
            raise UserError(f"{name}: {expected} is needed, got {value!r}")
