"""Objects as plain data, `{"class_path": ..., "init_args": {...}}`, and back.

A checkpoint stores how its module was constructed, so that it loads by its path alone. `Described` remembers
a constructor's arguments, `describe` turns them into plain data, `build` makes the object again:

>>> from functools import partial
>>> import torch
>>> spec = describe(partial(torch.optim.Adam, lr=0.01))
>>> spec
{'class_path': 'torch.optim.adam.Adam', 'init_args': {'lr': 0.01}}
>>> build(spec)
functools.partial(<class 'torch.optim.adam.Adam'>, lr=0.01)

The forms are:

- `{"class_path": p, "init_args": {...}}`: an object of a class; of an optimiser or a schedule, what makes one. With
  `fitted` the object also has values that were computed from data, and that its constructor does not take.
- `{"function_path": p, "init_args": {...}}`: what a function returns, such as `torchvision.models.resnet18`.
- `{"import_path": p}`: a class or a function itself; with `init_args` a `functools.partial` of it, with `member` a
  member of an enumeration.
- `{"instance": name}`: an object whose constructor call is unknown.

Only what a model is made of is built: modules, optimisers, schedules and tasks of `TRUSTED`, plus what the caller
allows; functions are called only if the caller allows them. Every path of a specification is checked before anything is
imported, and every class and function before it is called.
"""

from lightning_meta.building import build
from lightning_meta.describing import (
    Described,
    RemembersArguments,
    describe,
    options_of,
    refuse_unknown,
    remember,
    unknown_option,
)
from lightning_meta.import_paths import (
    TRUSTED,
    Allow,
    UntrustedClassError,
    import_class,
    lies_in,
    public_path,
    real_path,
)
from lightning_meta.specifications import class_paths, unknown_parts

__all__ = [
    "TRUSTED",
    "Allow",
    "Described",
    "RemembersArguments",
    "UntrustedClassError",
    "build",
    "class_paths",
    "describe",
    "import_class",
    "lies_in",
    "options_of",
    "public_path",
    "real_path",
    "refuse_unknown",
    "remember",
    "unknown_option",
    "unknown_parts",
]
