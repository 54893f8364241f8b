"""Run a command line and return its exit status.

Importing torch and Lightning takes seconds, so only light modules are imported before a command runs: the general help,
versions, the list of configurations and wrong names are printed at once. The help of a command needs its imports.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path

from lightning_meta.cli.shipped import FOLDER, SWEEPS, configs, version, with_shipped
from lightning_meta.cli.threads import using_threads
from lightning_meta.errors import NonFiniteLossError, UserError, reason_of, similar

MODULES = {name: name for name in ("fit", "test", "predict", "compare")}
MODULES |= {"curves": "compare", "ladder": "ladder.command", "sweep": "sweep.command"}


def _run(command: str, options: list[str]) -> None:
    """Run a command. This imports torch and Lightning, which takes seconds."""
    getattr(import_module(f"lightning_meta.cli.{MODULES[command]}"), command)(options)


COMMANDS: dict[str, Callable[[list[str]], None]] = {name: partial(_run, name) for name in MODULES}
COMMANDS["configs"] = configs
SHIPPED = {"fit": FOLDER, "test": FOLDER, "ladder": FOLDER, "sweep": SWEEPS}  # where `--config NAME` is looked up
USAGE = """usage: lightning-meta fit --config NAME|FILE [options]  train, keep the best checkpoint and test it
       lightning-meta test --ckpt_path RUN [options]    test a trained model
       lightning-meta predict --ckpt_path RUN ...       label images of new classes, or predict new rows; export
       lightning-meta compare RUN... --baseline RUN...  what sharing did to each task
       lightning-meta curves RUN... [options]           training curves of several runs in one picture
       lightning-meta ladder --config NAME|FILE ...     train several methods over several seeds, then compare them
       lightning-meta sweep --config NAME|FILE ...      search options of fit, here or, by `wandb sweep`, anywhere
       lightning-meta configs [NAME|WORD]               list the configurations that are shipped, or print one
       lightning-meta --version                         print the versions of the package, torch and lightning

lightning-meta COMMAND --help explains the options. All commands take --threads N, the number of processor threads;
the last digits of results depend on it."""


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; mistakes of the user are reported in one line on stderr.

    Args:
        args: The command and its options; by default those of the process.

    Returns:
        The exit status: 0, 1 if training failed, 2 after a mistake of the user, 130 after Ctrl-C.
    """
    command, *options = (sys.argv[1:] if args is None else args) or [""]
    if command == "--version":
        print(version())
        return 0
    if command not in COMMANDS and command and not command.startswith("-"):
        meant = similar(command, COMMANDS)
        hint = f"did you mean {meant}?" if meant else f"expected {', '.join(COMMANDS)}, see lightning-meta --help"
        return _fail(f"there is no command {command}; {hint}", 2)
    if command not in COMMANDS:
        asked = command in ("-h", "--help")
        print(USAGE, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    _show_log()
    if _may_import(command, options) and (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # a configuration may name classes in a file beside it, as with `python -m`
    try:
        with using_threads(command, options) as rest:
            if command in SHIPPED:
                rest = with_shipped(rest, SHIPPED[command])
            with _pipe_may_close() if command == "configs" else _prepared():
                COMMANDS[command](rest)
    except UserError as error:
        return _fail(reason_of(error), 2)
    except NonFiniteLossError as error:
        return _fail(str(error), 1)
    except Exception as error:
        if message := _explained(error, command):
            return _fail(message, 2)
        raise
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning ends a test on Ctrl-C with status 1.
        interrupt = stop.__context__ if isinstance(stop, SystemExit) and stop.code == 1 else stop
        if not isinstance(interrupt, KeyboardInterrupt):
            raise
        print("\nlightning-meta: stopped by Ctrl-C", file=sys.stderr)
        return 130
    return 0


@contextmanager
def _pipe_may_close() -> Iterator[None]:
    """Allow what reads the output to end early, as `head` does."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes when it ends


def _prepared() -> AbstractContextManager[None]:
    """Import torch with the memory of steps kept, and silence Lightning while a command runs."""
    from lightning_meta.fitting.quiet import quiet_lightning
    from lightning_meta.run.memory import keep_freed_memory

    keep_freed_memory()
    return quiet_lightning()


def _explained(error: Exception, command: str) -> str | None:
    """The line for an error of the disk or of Lightning; None for any other."""
    from lightning_meta.cli.messages import of_lightning
    from lightning_meta.fitting.disk import disk_trouble

    if trouble := disk_trouble(error):
        return f"cannot write ({trouble}); free disk space or fix it"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{error.filename}: {error.strerror}"
    return of_lightning(error, command)


def _may_import(command: str, options: Sequence[str]) -> bool:
    """Whether to import modules of the working directory; not if only a stored run, maybe a stranger's, names them."""
    names = {option.partition("=")[0] for option in options}
    return command not in ("predict", "test") or bool(names & {"--trust", "--config"})


def _fail(message: str, status: int) -> int:
    print(f"lightning-meta: error: {message}", file=sys.stderr)
    return status


def _show_log() -> None:
    """Print the log of this package to stderr."""
    logger = logging.getLogger("lightning_meta")
    logger.setLevel(logging.INFO)
    logger.handlers = [logging.StreamHandler(sys.stderr)]
