"""Check that the hooks of a user's module or data module call those of this package, which they replace."""

from __future__ import annotations

from inspect import unwrap
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from lightning_meta.errors import UserError

_HOOKS = (  # besides `on_...` and those that a class names in `needs_super`
    "setup",
    "configure_callbacks",
    "configure_model",
    "optimizer_step",
    "backward",
    "validation_step",
    "test_step",
)


class CalledInPart(NamedTuple):
    """A method that its class does not call everywhere, so that an override of it alone would be left out there.

    Attributes:
        where: Where the class does not call it, such as "in training".
        remedy: What to override instead or as well.
        partners: Methods that decide whether it is called; a user who overrides one of them may override it.
    """

    where: str
    remedy: str
    partners: tuple[str, ...]


def check_overrides(cls: type) -> None:
    """Check that methods which override a hook of this package mention it by name, as in `super().on_train_start()`.

    `getattr(super(), "on_train_start", ...)` counts as well. Lightning's own hooks do nothing, so its users seldom call
    them. Methods that a class of this package lists in `called_in_part` must not be overridden without a partner.

    Args:
        cls: Class of a module or data module.

    Raises:
        UserError: A hook is overridden without calling it, or a method where it would be left out; the message names
            it and the class that needs it.
    """
    _check_partners(cls)
    needs_super: dict[str, str] = getattr(cls, "needs_super", {})
    own: dict[str, type] = {}  # the class whose hook does not call the next one, by name of the hook
    for base in cls.__mro__:
        for name, hook in vars(base).items():
            if not (name.startswith("on_") or name in _HOOKS or name in needs_super):
                continue
            if _is_users(base):
                if not _mentions(hook, name):
                    own.setdefault(name, base)
            elif name in own and _does_something(hook):
                raise UserError(
                    f"{own[name].__name__}.{name} must call super().{name}(...): otherwise what {base.__name__} does "
                    f"there is left out{needs_super.get(name, '')}"
                )


def _check_partners(cls: type) -> None:
    """Refuse methods of a user's class that the class of this package calls in some places and not in others."""
    owners = {name: base for base in reversed(cls.__mro__) for name in vars(base)}
    for family in cls.__mro__:
        called: dict[str, CalledInPart] = vars(family).get("called_in_part", {})
        for name, part in called.items():
            if _is_users(owners[name]) and not any(_is_users(owners[partner]) for partner in part.partners):
                raise UserError(
                    f"{owners[name].__name__}.{name}: {family.__name__} does not call it {part.where}; {part.remedy}"
                )


def _is_users(base: type) -> bool:
    return not base.__module__.startswith("lightning_meta.")


def _mentions(hook: Any, name: str) -> bool:
    code = _code(hook)
    return code is None or _uses(code, name)


def _does_something(hook: Any) -> bool:
    code = _code(hook)
    return code is not None and bool(code.co_names)


def _code(hook: Any) -> CodeType | None:
    function = unwrap(hook) if callable(hook) else None
    return function.__code__ if isinstance(function, FunctionType) else None


def _uses(code: CodeType, name: str) -> bool:
    nested = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return name in code.co_names or name in code.co_consts or any(_uses(part, name) for part in nested)
