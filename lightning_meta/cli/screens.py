"""The `--help` of `fit`, `test` and `predict`: one screen with the most used options and the available classes."""

from __future__ import annotations

import inspect
import textwrap
from abc import ABC
from types import ModuleType

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule

import lightning_meta
from lightning_meta import sources
from lightning_meta.data.source import Source, TaskGenerator, TaskSource
from lightning_meta.errors import UserError
from lightning_meta.import_paths import import_object, public_path
from lightning_meta.meta import MetaModule
from lightning_meta.multitask import MultiTaskModule

# Base classes of other packages, which are not useful in a configuration; those of this package inherit from `ABC`.
FRAMEWORK_BASES = (LightningModule, LightningDataModule, Callback, torch.optim.Optimizer)


def is_base(path: str) -> bool:
    """Whether a class is a base class, which a configuration cannot name."""
    try:
        cls = import_object(path)
    except UserError:  # a class without an import path
        return False
    return inspect.isclass(cls) and (cls in FRAMEWORK_BASES or ABC in cls.__bases__ or inspect.isabstract(cls))


def names_below(bases: tuple[type, ...], module: ModuleType) -> str:
    """List the public subclasses of some base classes.

    Args:
        bases: The base classes.
        module: The module with the subclasses, such as `lightning_meta.sources`.

    Returns:
        The names, `ANIL, MAML, ...`.
    """
    classes = (getattr(module, name) for name in module.__all__)
    subclasses = [c for c in classes if inspect.isclass(c) and issubclass(c, bases) and not is_base(public_path(c))]
    return ", ".join(sorted(c.__name__ for c in subclasses))


FIT = """usage: lightning-meta fit --config NAME|FILE [options]

Train a model, keep its best and last checkpoints, and test the best.

  --config NAME|FILE    Configuration; `lightning-meta configs` lists the names.
  --name NAME           Name of the run; by default the configuration's.
  --runs FOLDER         Folder of all runs; by default runs.
  --seed_everything N   Seed of all generators; by default 0.
  --ckpt_path RUN|last  Resume this run, or the newest run of this name.
  --threads N           Threads of the processor; by default torch's choice.
  --print_config        Print the whole configuration, and train nothing.

All options of the configuration can be set on the command line:
  --model.NAME          such as --model.inner_lr 0.1 or --model ProtoNet
  --data.NAME           such as --data.shots 5 or --data.source.root FOLDER
  --trainer.NAME        such as --trainer.max_steps 1000, --trainer.devices 2,
                        --trainer.accelerator cpu,
                        --trainer.precision bf16-mixed
  --checkpoint.NAME     such as --checkpoint.monitor val/loss

"""

TEST = """usage: lightning-meta test --ckpt_path RUN [options]

Test a trained model, on its own test tasks or on others.

  --ckpt_path RUN       A run (its best checkpoint) or a checkpoint.
  --ways N[,N...]       Classes in a test task; several give a table.
  --shots K[,K...]      Support examples of a class; several give a table.
  --queries Q           Query examples of a class.
  --tasks T             Test tasks, of each way and shot.
  --task_list FILE      Test on the tasks listed in this file, and draw none.
  --steps S             Inner steps, for methods with an inner loop.
  --batch_norm WHICH    transductive, inductive or running: the statistics that
                        normalise query examples.
  --calibrate SHARE     Instead of a test, calibrate the model on validation
                        tasks, or on the validation rows of a table: predict
                        can then write sets of labels that contain the true
                        label for this share of images or rows.
  --importance          Also measure how much each column of a table matters.
  --config NAME|FILE    Configuration with other data. Add --trust if the run
                        uses classes of your own.
  --seed_everything N   Seed of all generators; by default the run's.
  --threads N           Threads of the processor; by default torch's choice.
  --data.NAME, --trainer.NAME
                        such as --data.source.root FOLDER, --trainer.devices 1

"""

PREDICT = """usage: lightning-meta predict --ckpt_path RUN --table FILE [options]
       lightning-meta predict --ckpt_path RUN --support FOLDER --query FILE...
       lightning-meta predict --ckpt_path RUN [--support FOLDER] --export FILE

Predict for new rows of a table, or label images by a few labelled ones of each
class; the classes may be new to the model.

  --ckpt_path RUN       A run (its best checkpoint) or a checkpoint.
  --out FILE            The predictions; by default predictions.csv.
  --export FILE         Write the model, or with --support the learned task, to
                        FILE.pt2 or FILE.onnx; predictions are optional then.
  --calibrated          Also write sets of labels, or intervals of numbers; this
                        requires a `test --calibrate` of the run.
  --overwrite           Replace existing files.
  --batch_size N        Images or rows at a time; by default 256 images.
  --device DEVICE       cpu, cuda, ...; the default, auto, takes an accelerator.
  --threads N           Threads of the processor; by default torch's choice.
  --trust               Also import classes of your own that the run uses.

Only for tables:
  --table FILE          New rows, with the feature columns of training.
  --keep COLUMN...      Columns, such as IDs, to copy into the predictions.
  --delimiter C         Separator of the columns of a CSV file, such as ';'.
  --decimal C           Its decimal mark; by default both are as in training.

Only for images:
  --support FOLDER      Labelled images, in a folder for each class.
  --labels FILE         A table of their labels, instead of a folder per class;
                        --delimiter applies to it, too.
  --query FILE...       Images to label: files, or folders with images.
  --invert              Turn dark into light, for dark strokes on white.
  --skip_unreadable     Skip images that cannot be read.
  --steps S             Inner steps, for methods with an inner loop.
  --batch_norm WHICH    transductive, inductive or running: the statistics that
                        normalise query examples.

lightning-meta predict --help_all explains these options in full.
"""

MORE = """lightning-meta {command} --help_all lists all options, including the Trainer's.{of_model}
lightning-meta {command} --data.help EpisodicDataModule lists those of a data module.
"""


def screen(command: str) -> str:
    """The `--help` of `fit`, `test` or `predict`, for a screen of 80 columns."""
    if command == "predict":
        return PREDICT
    if command == "test":
        return f"{TEST}{MORE.format(command='test', of_model='')}"
    lists = {
        "Models": names_below((MetaModule, MultiTaskModule), lightning_meta),
        "Data": names_below((LightningDataModule,), lightning_meta),
        "Sources": names_below((Source, TaskGenerator, TaskSource), sources),
    }
    lines = [textwrap.fill(f"{name}: {names}", 80, subsequent_indent="  ") for name, names in lists.items()]
    of_model = "\nlightning-meta fit --model.help MAML lists those of a model."
    return f"{FIT}{chr(10).join(lines)}\n\n{MORE.format(command='fit', of_model=of_model)}"
