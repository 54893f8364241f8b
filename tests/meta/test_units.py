"""Tasks with a loss and a metric of their own report predictions and scores in the units of the targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor

import lightning_meta as lm
from lightning_meta.tasks import EpisodeSpec, Regression, StandardisedRegression

OPTIONS: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False}
STORED = EpisodeSpec("regression", (1,), 1, target_mean=(1200.0,), target_scale=(150.0,))
GENERATED = EpisodeSpec("regression", (1,), 1)


class Robust(StandardisedRegression):
    """As in `docs/extending.md`."""

    metric = "mean_absolute_error"

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().mean(-1)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.in_original_units(outputs - targets).abs().mean((-2, -1))


class RobustMAML(lm.MAML):
    @property
    def task(self) -> Robust:
        return Robust.of_episodes(self.spec)


class WithoutUnits(Regression):
    metric = "mean_absolute_error"


class WithoutUnitsMAML(lm.MAML):
    @property
    def task(self) -> WithoutUnits:
        return WithoutUnits(self.spec.outputs)


def pumps(file: Path) -> lm.EpisodicDataModule:
    """Stored tasks whose targets lie between 1000 and 1450."""
    rows = [f"p{p},{x / 8},{1000 + 100 * (p % 5) + 50 * x / 8}" for p in range(15) for x in range(8)]
    file.write_text("\n".join(["pump,x,flow", *rows]))
    source = lm.sources.RegressionTable(file, targets="flow", task_column="pump")
    sizes: dict[str, Any] = {"meta_batches_per_epoch": 2, "val_tasks": 4, "test_tasks": 8}
    return lm.EpisodicDataModule(source, shots=3, queries=3, **sizes)


def waves() -> lm.EpisodicDataModule:
    sizes: dict[str, Any] = {"meta_batches_per_epoch": 2, "val_tasks": 4, "test_tasks": 8}
    return lm.EpisodicDataModule(lm.sources.Sinusoid(), shots=3, queries=3, **sizes)


@pytest.mark.parametrize("stored", [True, False], ids=["stored tasks", "generated tasks"])
def test_scores_and_predictions_of_a_task_of_ones_own_are_in_the_units_of_the_targets(
    stored: bool, tmp_path: Path
) -> None:
    data = pumps(tmp_path / "pumps.csv") if stored else waves()
    module = RobustMAML(lm.nn.MLP(1, [8]), inner_lr=0.1)
    run = lm.fit(module, data, runs=tmp_path / "runs", max_steps=2, **OPTIONS)
    assert run.directory is not None
    with np.load(run.directory / "predictions.npz") as arrays:
        outputs, targets = arrays["output"], arrays["target"]
    assert stored == bool((targets > 900).all())
    error = np.abs(outputs - targets).mean()
    assert run.metrics["test/mean_absolute_error"] == pytest.approx(error, rel=1e-4)
    if stored:
        # Predictions are within the spread of the targets, so in standard units they would be far from them.
        assert (np.abs(outputs - 1225) < 900).all()
        loaded = lm.load(run.directory, allow=[RobustMAML])
        assert isinstance(loaded, lm.MetaModule)
        predicted = loaded.predictor(torch.rand(3, 1), [1100.0, 1200.0, 1300.0])(torch.rand(4, 1))
        assert isinstance(predicted, torch.Tensor)
        assert ((predicted - 1225).abs() < 900).all()


def _module(**attributes: Any) -> lm.MetaModule:
    """A module whose task differs from `Robust` in some attributes."""
    task: Any = type("Own", (Robust,), attributes)

    class Method(lm.MAML):
        @property
        def task(self) -> Any:
            return task.of_episodes(self.spec)

    return Method(lm.nn.MLP(1, [8]), inner_steps=1)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"metric": "loss"}, "Method.task: Own.metric is 'loss', by which something else is logged; choose another"),
        (
            {"metric": None},
            "Method.task: Own does not name its score; set the class attribute metric, such as metric =",
        ),
        (
            {"score": lambda self, outputs, targets: (outputs - targets).abs().mean(-1)},
            r"Own.score returned shape \(3,\) for outputs \(M, outputs\) of one task; expected a scalar tensor",
        ),
    ],
)
def test_a_score_without_a_name_of_its_own_or_of_several_numbers_is_refused(
    attributes: dict[str, Any], expected: str
) -> None:
    trainer = L.Trainer(max_steps=1, logger=False, enable_checkpointing=False, enable_model_summary=False, **OPTIONS)
    with pytest.raises(lm.UserError, match=expected):
        trainer.fit(_module(**attributes), datamodule=waves())


def test_a_score_may_be_called_score() -> None:
    trainer = L.Trainer(logger=False, enable_checkpointing=False, enable_model_summary=False, **OPTIONS)
    (logged,) = trainer.validate(_module(metric="score"), datamodule=waves(), verbose=False)
    assert {"val/score", "val/loss"} <= set(logged)


def test_differences_are_converted_by_dimension() -> None:
    task = StandardisedRegression((5.0, 7.0), (10.0, 100.0))
    standard = task.in_standard_units(torch.tensor([[15.0, 7.0], [5.0, 207.0]]), torch.float32)
    differences = task.in_original_units(standard[0] - standard[1])
    torch.testing.assert_close(differences, torch.tensor([10.0, -200.0]))


def test_a_task_that_keeps_standard_units_is_refused_for_stored_tasks(tmp_path: Path) -> None:
    expected = (
        r"^WithoutUnitsMAML.task: the targets of stored tasks are standardised, and WithoutUnits would give .* units; "
        r"derive WithoutUnits from lightning_meta.tasks.StandardisedRegression and return WithoutUnits.of_episodes"
    )
    with pytest.raises(lm.UserError, match=expected):
        WithoutUnitsMAML(lm.nn.MLP(1, [8]), episodes=STORED)
    module = WithoutUnitsMAML(lm.nn.MLP(1, [8]))
    with pytest.raises(lm.UserError, match=expected):
        lm.fit(module, pumps(tmp_path / "pumps.csv"), runs=tmp_path / "runs", max_steps=2, **OPTIONS)
    assert not list(tmp_path.glob("runs/*/*"))


def test_a_task_without_units_is_accepted_where_there_is_nothing_to_convert() -> None:
    for episodes in (GENERATED, EpisodeSpec("regression", (1,), 1, target_mean=(0.0,), target_scale=(1.0,))):
        assert WithoutUnitsMAML(lm.nn.MLP(1, [8]), episodes=episodes).task.outputs == 1


class OwnTargets(WithoutUnitsMAML):
    """Learns targets as they are."""

    def targets(self, y: Tensor) -> Tensor:
        return y.float()


def test_a_method_with_targets_of_its_own_has_its_own_units() -> None:
    assert OwnTargets(lm.nn.MLP(1, [8]), episodes=STORED).task.outputs == 1


@pytest.mark.parametrize("mean", [1200.0, 1.5e6])  # far from 0, predictions are float64
@pytest.mark.parametrize(("method", "inputs"), [(lm.MAML, 1), (lm.CNP, 2)])
def test_the_tasks_of_this_package_convert_back(method: Any, inputs: int, mean: float) -> None:
    """The task of `CNP` has two numbers for each dimension of the targets."""
    episodes = EpisodeSpec("regression", (1,), 1, target_mean=(mean,), target_scale=(150.0,))
    task = method(lm.nn.MLP(inputs, [8]), episodes=episodes).task
    assert float(task.readable(torch.zeros(1, task.numbers))[0, 0]) == mean
