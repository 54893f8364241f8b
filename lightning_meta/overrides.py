"""Check that the hooks of a user's module or data module call those of this package, which they replace."""

from __future__ import annotations

from inspect import unwrap
from types import CodeType, FunctionType
from typing import Any

from lightning_meta.errors import UserError

_HOOKS = ("setup", "configure_callbacks", "configure_model", "optimizer_step", "backward")  # besides `on_...`


def check_overrides(cls: type) -> None:
    """Check that methods which override a hook of this package mention it by name, as in `super().on_train_start()`.

    `getattr(super(), "on_train_start", ...)` counts as well. Lightning's own hooks do nothing, so its users seldom call
    them.

    Args:
        cls: Class of a module or data module.

    Raises:
        UserError: A hook is overridden without calling it; the message names it and the class that needs it.
    """
    own: dict[str, type] = {}  # the class whose hook does not call the next one, by name of the hook
    for base in cls.__mro__:
        for name, hook in vars(base).items():
            if not (name.startswith("on_") or name in _HOOKS):
                continue
            if not base.__module__.startswith("lightning_meta."):
                if not _mentions(hook, name):
                    own.setdefault(name, base)
            elif name in own and _does_something(hook):
                raise UserError(
                    f"{own[name].__name__}.{name} must call super().{name}(...): otherwise what {base.__name__} does "
                    "there is left out"
                )


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
