"""The predictions of a test, as written to `predictions.npz`."""

from __future__ import annotations

from math import nan

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_meta.batches import SPLITS, Examples, TaskBatch
from lightning_meta.data import MultiTaskDataModule
from lightning_meta.data.task_set import TaskSet
from lightning_meta.multitask import MultiHead
from lightning_meta.tasks import Binary, Classification, Multilabel, Regression, Task
from tests.multitask.toys import Given, backbone, trainer


class OftenNan(MultiHead):
    """The last output is NaN where the first input is positive, as if it had overflowed."""

    def selected_outputs(self, batch: TaskBatch) -> dict[str, Tensor]:
        outputs = super().selected_outputs(batch)["a"].clone()
        assert isinstance(batch.inputs, Tensor)
        outputs[batch.inputs[batch.rows["a"], 0] > 0, -1] = nan
        return {"a": outputs}


@pytest.mark.parametrize(
    ("task", "label"), [(Classification(3), 0), (Binary(), 0), (Multilabel(2), [0, 1]), (Regression(1), [0.5])]
)
def test_the_prediction_of_outputs_that_are_nan_is_nan(task: Task, label: object) -> None:
    x, y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([label] * 12)
    sets = {split: TaskSet.of_examples({"a": Examples(x, y)}) for split in SPLITS}
    data, module, runner = MultiTaskDataModule(Given({"a": task}, sets)), OftenNan(backbone()), trainer(1)
    runner.fit(module, datamodule=data)
    runner.test(module, datamodule=data, verbose=False)
    *others, last = module.test_report["predictions"]["prediction"].T
    assert np.isnan(last).tolist() == (x[:, 0] > 0).tolist()
    assert len(others) == (1 if isinstance(task, Multilabel) else 0)
    assert not np.isnan(others).any()
