"""What `--help` of `fit` and `test` shows: one screen of what is used most, with the classes that there are."""

from __future__ import annotations

import inspect
import textwrap
from abc import ABC
from types import ModuleType

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule

import lightning_meta
from lightning_meta import sources
from lightning_meta.configuration import public_path
from lightning_meta.data.source import Source, TaskGenerator, TaskSource
from lightning_meta.errors import UserError
from lightning_meta.import_paths import import_object
from lightning_meta.meta import MetaModule
from lightning_meta.multitask import MultiTaskModule

# Nobody trains with one of these itself; this package's own are known by `ABC`.
FRAMEWORK_BASES = (LightningModule, LightningDataModule, Callback, torch.optim.Optimizer)


def is_base(path: str) -> bool:
    """Whether a class is there to be subclassed, and not to be named in a configuration."""
    try:
        cls = import_object(path)
    except UserError:  # a class of the user's that has no path
        return False
    return inspect.isclass(cls) and (cls in FRAMEWORK_BASES or ABC in cls.__bases__ or inspect.isabstract(cls))


def names_below(bases: tuple[type, ...], module: ModuleType) -> str:
    """The public classes of a module that a configuration may name in the place of one of these bases.

    Args:
        bases: What they inherit from.
        module: Such as `lightning_meta.sources`.

    Returns:
        Their names, `ANIL, MAML, ...`.
    """
    classes = (getattr(module, name) for name in module.__all__)
    found = [c for c in classes if inspect.isclass(c) and issubclass(c, bases) and not is_base(public_path(c))]
    return ", ".join(sorted(c.__name__ for c in found))


FIT = """usage: lightning-meta fit --config NAME|FILE [options]

Train a model, keep its best and last checkpoints, and test the best.

  --config NAME|FILE    What is trained; `lightning-meta configs` lists names.
  --name NAME           Name of the run; by default the configuration's.
  --runs FOLDER         Folder of all runs; by default runs.
  --seed_everything N   Seed of all generators; by default 0.
  --ckpt_path RUN|last  Resume this run, or the newest run of this name.
  --threads N           Threads of the processor; by default torch's choice.
  --print_config        Print the whole configuration, and train nothing.

Every option of the configuration can be given behind it:
  --model.NAME          such as --model.inner_lr 0.1 or --model ProtoNet
  --data.NAME           such as --data.shots 5 or --data.source.root FOLDER
  --trainer.NAME        such as --trainer.max_steps 1000, --trainer.devices 2,
                        --trainer.accelerator cpu, --trainer.precision 16
  --checkpoint.NAME     such as --checkpoint.monitor val/loss

"""

TEST = """usage: lightning-meta test --ckpt_path RUN [options]

Test a trained model, on its own test tasks or on others.

  --ckpt_path RUN       A run (its best checkpoint) or a checkpoint.
  --ways N[,N...]       Classes in a test task; several give a table.
  --shots K[,K...]      Support examples of a class; several give a table.
  --queries Q           Query examples of a class.
  --tasks T             Test tasks, of each way and shot.
  --task_list FILE      A file that lists the test tasks; none are drawn.
  --steps S             Inner steps, for methods with an inner loop.
  --batch_norm WHICH    transductive, inductive or running: the statistics that
                        normalise query examples.
  --calibrate SHARE     Do not test, but learn from validation tasks how sure it
                        is: sets of labels that hold the label of this share of
                        images, which predict can then write.
  --config FILE         Other data than the run's own; --trust if the run names
                        classes of yours.
  --seed_everything N   Seed of all generators; by default the run's.
  --threads N           Threads of the processor; by default torch's choice.
  --data.NAME, --trainer.NAME
                        such as --data.source.root FOLDER, --trainer.devices 1

"""

MORE = """lightning-meta {command} --help_all lists every option, the Trainer's too;{of_model}
lightning-meta {command} --data.help EpisodicDataModule what a data module takes.
"""


def screen(command: str) -> str:
    """What `--help` prints for `fit` or `test`: it fits on a screen of 80 columns."""
    if command == "test":
        return f"{TEST}{MORE.format(command='test', of_model='')}"
    lists = {
        "Models": names_below((MetaModule, MultiTaskModule), lightning_meta),
        "Data": names_below((LightningDataModule,), lightning_meta),
        "Sources": names_below((Source, TaskGenerator, TaskSource), sources),
    }
    lines = [textwrap.fill(f"{name}: {names}", 80, subsequent_indent="  ") for name, names in lists.items()]
    of_model = "\nlightning-meta fit --model.help MAML what a model takes,"
    return f"{FIT}{chr(10).join(lines)}\n\n{MORE.format(command='fit', of_model=of_model)}"
