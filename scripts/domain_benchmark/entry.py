"""An entry of the benchmark: one Python file with `build(domain)`."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning_meta as lm
from domain_benchmark.domains import Domain
from lightning_meta.errors import UserError

STEPS = 2000
TRAINING = (
    *("ways", "shots", "queries", "meta_batch_size", "rotations", "augmentation", "support_dirichlet"),
    *("small_classes", "num_workers", "pool_on"),
)
"""Options of training tasks that a method may set; test tasks are fixed."""


@dataclass(frozen=True)
class Entry:
    """An imported method file.

    Attributes:
        file: Path of the file.
        module: The imported module.
    """

    file: Path
    module: ModuleType

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.file.stem

    @property
    def steps(self) -> int:
        """Training steps in each domain; 0 for a method without training."""
        return int(getattr(self.module, "STEPS", STEPS))

    def version(self, domain: Domain, steps: int, seed: int) -> str:
        """Eight hexadecimal digits that identify the file and its imports, the domain, the steps and the seed."""
        content = f"{domain.version} {steps} {seed}\n".encode() + self.file.read_bytes()
        return hashlib.sha256(content + b"".join(file.read_bytes() for file in self._beside())).hexdigest()[:8]

    def _beside(self) -> list[Path]:
        """Files of the modules that were imported from the folder of the method, without other methods."""
        folder, found = self.file.resolve().parent, set[Path]()
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if (
                file
                and Path(file).is_file()
                and not name.startswith("entry_")
                and Path(file).resolve().parent == folder
            ):
                found.add(Path(file).resolve())
        return sorted(found - {self.file.resolve()})

    def build(self, domain: Domain) -> lm.MetaModule | None:
        """A new module for a domain; None if the method does not apply to it.

        Raises:
            UserError: The function fails, or returns something else.
        """
        made = self._called("build", domain)
        if made is not None and not isinstance(made, lm.MetaModule):
            raise UserError(
                f"{self.file}: build returned a {type(made).__name__} for {domain.name}; expected a "
                "lightning_meta.MetaModule, or None if the method does not apply to the domain"
            )
        return made

    def training(self, domain: Domain) -> Mapping[str, Any]:
        """The method's options of `EpisodicDataModule` for training tasks.

        Raises:
            UserError: The function fails, or changes something else.
        """
        if not hasattr(self.module, "training"):
            return {}
        options = self._called("training", domain)
        if not isinstance(options, Mapping):
            raise UserError(f"{self.file}: training returned {options!r:.60} for {domain.name}; expected a dict")
        if unknown := [name for name in options if name not in TRAINING]:
            known = ", ".join(TRAINING)
            raise UserError(f"{self.file}: training sets {unknown[0]} for {domain.name}; a method may set {known}")
        if set(options.get("rotations", ())) - {"train"}:
            raise UserError(f"{self.file}: rotations for {domain.name} may name the split train alone")
        return options

    def _called(self, name: str, domain: Domain) -> Any:
        try:
            return getattr(self.module, name)(domain)
        except UserError as error:
            raise UserError(f"{self.file}: {name} fails for {domain.name}: {error}") from error
        except Exception as error:
            raise UserError(
                f"{self.file}{_line(self.file, error)}: {name} fails for {domain.name}: {_said(error)}"
            ) from error


def read_entry(file: Path) -> Entry:
    """Import a method file.

    Raises:
        UserError: There is no such file, it cannot be imported, or it lacks `build`.
    """
    if not file.is_file() or file.suffix != ".py":
        raise UserError(f"{file}: a method is entered as a Python file; there is no such file")
    name = f"entry_{file.stem}"  # does not hide modules of other packages
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # for code that looks up the module of a class
    if (folder := str(file.resolve().parent)) not in sys.path:
        sys.path.append(folder)  # it may import files in its folder
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{file}{_line(file, error)}: it cannot be imported: {_said(error)}") from error
    if not callable(getattr(module, "build", None)):
        raise UserError(f"{file}: it has no function build(domain) that returns a lightning_meta.MetaModule")
    steps = getattr(module, "STEPS", STEPS)
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
        raise UserError(f"{file}: STEPS is {steps!r}; expected a number of training steps, or 0 for none")
    return Entry(file, module)


def _line(file: Path, error: Exception) -> str:
    """Line of the error in the file, such as `:12`."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f":{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).name == file.name]
    return f":{lines[-1]}" if lines else ""


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {getattr(error, 'msg', error)}".split())
