"""Run a command line and return its exit status."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jsonargparse import ArgumentError

from lightning_meta.cli import compare, curves, predict_options, test
from lightning_meta.cli.fit import fit, fit_options
from lightning_meta.cli.ladder import command as ladder
from lightning_meta.cli.messages import of_lightning, one_line, unknown_command
from lightning_meta.cli.parsing import option_names
from lightning_meta.cli.predict import predict
from lightning_meta.cli.shipped import configs, version, with_shipped
from lightning_meta.cli.sweep import command as sweep
from lightning_meta.cli.threads import using_threads
from lightning_meta.errors import NonFiniteLossError, UserError
from lightning_meta.fitting.disk import disk_trouble
from lightning_meta.fitting.quiet import quiet_lightning
from lightning_meta.run.memory import keep_freed_memory

COMMANDS = {
    "fit": fit,
    "test": test.test,
    "predict": predict,
    "compare": compare.compare,
    "curves": curves.curves,
    "ladder": ladder.ladder,
    "sweep": sweep.sweep,
    "configs": configs,
}
TAKE_SHIPPED = ("fit", "test", "ladder")
PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "test": test.make_parser,
    "compare": compare.make_parser,
    "ladder": ladder.make_parser,
    "sweep": sweep.make_parser,
    "predict": predict_options.make_parser,
    "curves": curves.make_parser,
}

USAGE = """usage: lightning-meta fit --config NAME|FILE [options]  train, keep the best checkpoint and test it
       lightning-meta test --ckpt_path RUN [options]    test a trained model
       lightning-meta predict --ckpt_path RUN ...       label images of new classes, or predict new rows; export
       lightning-meta compare RUN... --baseline RUN...  what sharing did to each task
       lightning-meta curves RUN... [options]           training curves of several runs in one picture
       lightning-meta ladder --config NAME|FILE ...     train several methods over several seeds, then compare them
       lightning-meta sweep --config FILE [options]     search options of fit, here or, by `wandb sweep`, anywhere
       lightning-meta configs [NAME]                    list the configurations that are shipped, or print one
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
    command, *options = [*(sys.argv[1:] if args is None else args), ""]
    if command not in COMMANDS:
        if command == "--version":
            print(version())
            return 0
        asked = command in ("-h", "--help")
        if command and not command.startswith("-"):
            return _fail(unknown_command(command, COMMANDS), 2)
        print(USAGE, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    _show_log()
    keep_freed_memory()
    if _may_import(command, options) and (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # a configuration may name classes in a file beside it, as with `python -m`
    try:
        with quiet_lightning(), using_threads(command, options[:-1]) as rest:
            COMMANDS[command](with_shipped(rest) if command in TAKE_SHIPPED else rest)
    except NonFiniteLossError as error:
        return _fail(str(error), 1)
    except ArgumentError as error:
        names = fit_options() if command == "fit" else option_names(PARSERS[command]())
        return _fail(one_line(error, names, command), 2)
    except UserError as error:
        return _fail(" ".join(str(error).split()), 2)
    except Exception as error:
        if trouble := disk_trouble(error):
            return _fail(f"cannot write ({trouble}); free disk space or fix it", 2)
        if refused := of_lightning(error, command):
            return _fail(refused, 2)
        raise
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as stop:
        if stop.code == 1 and isinstance(stop.__context__, KeyboardInterrupt):  # how Lightning ends a test on Ctrl-C
            return _interrupted()
        raise
    return 0


def _may_import(command: str, options: Sequence[str]) -> bool:
    """Whether to import modules of the working directory; not if only a stored run, maybe a stranger's, names them."""
    names = {option.partition("=")[0] for option in options}
    return command not in ("predict", "test") or bool(names & {"--trust", "--config"})


def _interrupted() -> int:
    print("\nlightning-meta: stopped by Ctrl-C", file=sys.stderr)
    return 130


def _fail(message: str, status: int) -> int:
    print(f"lightning-meta: error: {message}", file=sys.stderr)
    return status


def _show_log() -> None:
    """Print the log of this package to stderr."""
    logger = logging.getLogger("lightning_meta")
    logger.setLevel(logging.INFO)
    logger.handlers = [logging.StreamHandler(sys.stderr)]
