"""The sha256 that identifies fixed test tasks, whether drawn or listed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

import lightning_meta as lm
from lightning_meta.data.episodes import EpisodeDataset


def episodes_sha256(data: lm.EpisodicDataModule, file: Path) -> str:
    """The hash of the test tasks that a data module draws.

    - Of stored classes it is that of their list, which is written to `file` for others: see `write_test_tasks`.
    - Of stored regression tasks it is that of the numbers of the drawn task, support and query rows.
    - Of tasks that are made it is that of all inputs as float32. Targets are left out: a sine differs in its last digit
      between processors.

    Args:
        data: The data module.
        file: Output file for the list of tasks, if there is one.
    """
    if not data.regression:
        data.write_test_tasks(file)
        return hashlib.sha256(file.read_bytes()).hexdigest()
    data.prepare_data()
    data.setup("test")
    tasks, sha = data.datasets["test"], hashlib.sha256()
    assert isinstance(tasks, EpisodeDataset)
    for start in range(0, len(tasks), tasks.meta_batch_size):
        numbers = range(start, min(start + tasks.meta_batch_size, len(tasks)))
        if data.makes_tasks:
            episode = tasks.__getitems__(numbers)
            of_tasks = torch.cat([episode.support.x, episode.query.x], 1).numpy().astype("<f4")
        else:
            draw = tasks.draw(numbers)
            of_tasks = torch.cat([draw.classes.unsqueeze(-1), draw.support, draw.query], -1).numpy().astype("<i8")
        sha.update(of_tasks.tobytes())
    return sha.hexdigest()
