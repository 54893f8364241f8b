"""Tasks derived from the built-in ones keep their class, and are fitted as their base is."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor

import lightning_meta as lm
from lightning_meta import UserError
from lightning_meta.multitask import MultiHead
from lightning_meta.tasks import (
    Binary,
    Classification,
    GaussianRegression,
    Multilabel,
    Regression,
    StandardisedRegression,
    Task,
)
from tests.multitask.test_custom_tasks import Targets, given, labels, numbers, train
from tests.multitask.toys import backbone, results_of, trainer


def pinball(outputs: Tensor, wanted: Tensor, q: float) -> Tensor:
    errors = wanted - outputs
    return torch.maximum(q * errors, (q - 1) * errors).mean(-1)


class Quantile(Regression):
    """The quantile q; its constructor takes no fitted value."""

    def __init__(self, q: float = 0.9) -> None:
        super().__init__(1)
        self.q = q

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return pinball(outputs, self.standardised(targets, outputs.dtype), self.q)


class OptionalQuantile(Regression):
    """The quantile q; its constructor passes further arguments on."""

    def __init__(self, q: float = 0.9, **options: Any) -> None:
        super().__init__(**options)
        self.q = q

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return pinball(outputs, self.standardised(targets, outputs.dtype), self.q)


class Median(Regression):
    """The median; it has the constructor of `Regression`."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return pinball(outputs, self.standardised(targets, outputs.dtype), 0.5)


class Focal(Classification):
    """The focal loss; its constructor takes no fitted value."""

    def __init__(self, outputs: int, gamma: float = 2.0) -> None:
        super().__init__(outputs, class_weight="balanced")
        self.gamma = gamma

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (1 - outputs.softmax(-1).gather(1, targets[:, None])[:, 0]) ** self.gamma * super().losses(
            outputs, targets
        )


class PlainFocal(Classification):
    """The focal loss; it has the constructor of `Classification`."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().losses(outputs, targets) * (1 - outputs.softmax(-1).gather(1, targets[:, None])[:, 0]) ** 2


class HalfBinary(Binary):
    """Half of the loss."""

    def __init__(self, factor: float = 0.5) -> None:
        super().__init__(class_weight="balanced")
        self.factor = factor

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.factor * super().losses(outputs, targets)


class HalfMultilabel(Multilabel):
    """Half of the loss."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * super().losses(outputs, targets)


def rare(x: Tensor, generator: torch.Generator) -> Tensor:
    return (x[:, 0] > 1.3).long()


def several(x: Tensor, generator: torch.Generator) -> Tensor:
    return (x[:, :3] > 1.3).long()


SUBCLASSES: dict[str, tuple[Task, Task, Targets]] = {  # a subclass, what it derives from, and targets
    "Quantile": (Quantile(q=0.8), Regression(1), numbers),
    "OptionalQuantile": (OptionalQuantile(q=0.8), Regression(1), numbers),
    "Median": (Median(1), Regression(1), numbers),
    "Focal": (Focal(3, gamma=5.0), Classification(3, class_weight="balanced"), labels),
    "PlainFocal": (PlainFocal(3, class_weight="balanced"), Classification(3, class_weight="balanced"), labels),
    "HalfBinary": (HalfBinary(0.25), Binary(class_weight="balanced"), rare),
    "HalfMultilabel": (HalfMultilabel(3, pos_weight="balanced"), Multilabel(3, pos_weight="balanced"), several),
}
OWN = ("q", "gamma", "factor")
FITTED = ("mean", "scale", "median", "frequencies", "_weights", "selection", "selection_mode", "chosen", "outputs")


def values(task: Task, names: tuple[str, ...] = FITTED) -> dict[str, Any]:
    return {name: getattr(task, name) for name in names if hasattr(task, name)}


@pytest.mark.parametrize("name", SUBCLASSES)
def test_a_subclass_is_fitted_as_its_base_and_keeps_its_class(name: str) -> None:
    task, base, targets = SUBCLASSES[name]
    before = copy.deepcopy(task.__dict__)
    data = given({"own": task, "base": base}, {"own": targets, "base": targets})
    data.setup("fit")
    assert data.spec is not None
    fitted, of_base = data.spec.tasks["own"], data.spec.tasks["base"]
    assert type(fitted) is type(task)
    assert type(of_base) is type(base)
    assert values(fitted) == values(of_base)
    assert values(fitted, OWN) == values(task, OWN)
    constant, expected = fitted.constant(), of_base.constant()
    assert constant is not None
    assert expected is not None
    assert torch.equal(constant, expected)
    assert task.__dict__ == before  # it may be fitted to other data


@pytest.mark.parametrize("name", SUBCLASSES)
def test_a_subclass_survives_its_checkpoint(name: str, tmp_path: Path) -> None:
    task, _, targets = SUBCLASSES[name]
    data = given({"own": task}, {"own": targets})
    lightning.seed_everything(0, verbose=False)
    module = MultiHead(backbone(), optimizer=partial(torch.optim.Adam, lr=0.01))
    runner = trainer(5)
    runner.fit(module, datamodule=data)
    runner.save_checkpoint(tmp_path / "a.ckpt")
    fitted = module.spec.tasks["own"]
    loaded = lm.load(tmp_path / "a.ckpt", allow=[type(task)])
    again = loaded.spec.tasks["own"]
    assert type(again) is type(task)
    assert values(again, (*FITTED, *OWN)) == values(fitted, (*FITTED, *OWN))
    batch = next(iter(data.val_dataloader()))
    outputs = module.outputs(batch)["own"]
    assert torch.equal(again.losses(outputs, batch.targets["own"]), fitted.losses(outputs, batch.targets["own"]))
    assert torch.equal(loaded.predict("own", batch.inputs), module.predict("own", batch.inputs))
    assert results_of(loaded, data) == results_of(module, data)
    second = trainer(5)
    second.fit(loaded, datamodule=data)
    second.save_checkpoint(tmp_path / "b.ckpt")  # what was loaded is described as well
    twice = lm.load(tmp_path / "b.ckpt", allow=[type(task)]).spec.tasks["own"]
    assert values(twice, (*FITTED, *OWN)) == values(fitted, (*FITTED, *OWN))
    resumed = MultiHead(backbone(), optimizer=partial(torch.optim.Adam, lr=0.01))
    trainer(9).fit(resumed, datamodule=data, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert resumed.global_step == 9
    assert values(resumed.spec.tasks["own"], (*FITTED, *OWN)) == values(fitted, (*FITTED, *OWN))


def test_training_minimises_the_loss_of_the_subclass() -> None:
    data = given({"high": Quantile(0.9), "low": Quantile(0.1)}, {"high": numbers, "low": numbers}, batch_size=160)
    module = train(data, 250)
    batch = next(iter(data.val_dataloader()))
    predictions = {n: module.spec.tasks[n].readable(y) for n, y in module.outputs(batch).items()}
    below = {n: float((batch.targets[n] <= y).float().mean()) for n, y in predictions.items()}
    assert below["high"] > 0.7
    assert below["low"] < 0.3


class OwnScore(Classification):
    """Its own score, of another scale and direction."""

    selection, selection_mode = "surprise", "min"

    def example_scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 100 * self.plain_losses(outputs, targets)


class OwnError(Regression):
    """Its own score, in the units of the targets."""

    selection, selection_mode = "error", "min"

    def example_scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (self.readable(outputs) - targets).abs().mean(-1)


def test_a_subclass_keeps_its_own_score() -> None:
    targets: dict[str, Targets] = {"labels": rare, "numbers": numbers}
    data = given({"labels": OwnScore(2), "numbers": OwnError(1)}, targets)
    module = train(data)
    logged = results_of(module, data)
    for name, task in module.spec.tasks.items():
        # Not by AUROC although one class is rare, and without the bound and the constant of another metric.
        batch = next(iter(data.predict_dataloader()))
        outputs = module.outputs(batch)[name].detach()
        expected = task.example_scores(outputs.double(), batch.targets[name]).mean()
        assert logged[f"test/{task.selection}/{name}"] == pytest.approx(float(expected), rel=1e-5)
        assert task.constant() is None
    mean = -(logged["test/surprise"] + logged["test/error"]) / 2
    assert logged["test/score"] == pytest.approx(mean)
    assert mean < -2


@pytest.mark.parametrize("selection", ["rmse", "auroc"])
def test_a_score_that_is_only_named_is_refused(selection: str) -> None:
    base = Regression if selection == "rmse" else Binary
    task = type("Named", (base,), {"selection": selection})()
    data = given({"a": task}, {"a": numbers if selection == "rmse" else rare})
    with pytest.raises(UserError, match=f"Named has no {selection}"):
        results_of(train(data), data)


def test_a_subclass_that_cannot_be_fitted_is_refused() -> None:
    class Fixed(Regression):
        @property
        def mean(self) -> tuple[float, ...]:
            return (0.0,)

        @mean.setter
        def mean(self, value: tuple[float, ...]) -> None:
            if value:
                raise AttributeError("mean is fixed")

    with pytest.raises(UserError, match=r"task 'a': Fixed cannot hold .*\(mean is fixed\); let it override `fitted`"):
        given({"a": Fixed(1)}, {"a": numbers}).setup("fit")


def test_tasks_of_episodes() -> None:
    with pytest.raises(UserError, match="task 'a': GaussianRegression is a task of episodes"):
        given({"a": GaussianRegression(1)}, {"a": numbers}).setup("fit")
    standardised = StandardisedRegression([50.0], [4.0])
    data = given({"a": standardised}, {"a": lambda x, g: (numbers(x, g) - 50) / 4})
    data.setup("fit")
    assert data.spec is not None
    assert data.spec.tasks["a"] is standardised
    assert float(data.spec.tasks["a"].readable(torch.ones(1, 1))) == 54.0


@pytest.mark.parametrize("task", [HalfBinary(0.25), type("Same", (Binary,), {"__module__": __name__})()])
def test_a_subclass_of_an_earlier_version_keeps_its_metric_when_resumed(task: Task, tmp_path: Path) -> None:
    data = given({"a": task}, {"a": rare})
    runner = trainer(3)
    runner.fit(MultiHead(backbone()), datamodule=data)
    runner.save_checkpoint(tmp_path / "new.ckpt")
    checkpoint = torch.load(tmp_path / "new.ckpt", weights_only=True)
    stored = checkpoint["lightning_meta"]["init_args"]["tasks"]["init_args"]["tasks"]["a"]
    stored.pop("fitted", None)  # it was not fitted
    if "frequencies" in stored["init_args"]:
        stored["init_args"] |= {"metric": None, "frequencies": []}
    torch.save(checkpoint, tmp_path / "old.ckpt")
    for file, selection in (("new", "auroc"), ("old", "accuracy")):
        module = MultiHead(backbone())
        trainer(6).fit(module, datamodule=data, ckpt_path=tmp_path / f"{file}.ckpt", weights_only=True)
        assert type(module.spec.tasks["a"]) is type(task)
        assert module.spec.tasks["a"].selection == selection


@pytest.mark.parametrize("damage", [{"unknown": 1}, {"frequencies": 3}, {"class_weight": [1.0]}])
def test_damaged_fitted_values_of_a_checkpoint_are_refused(damage: dict[str, Any], tmp_path: Path) -> None:
    data = given({"a": HalfBinary()}, {"a": rare})
    runner = trainer(1)
    runner.fit(MultiHead(backbone()), datamodule=data)
    runner.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    checkpoint["lightning_meta"]["init_args"]["tasks"]["init_args"]["tasks"]["a"]["fitted"] |= damage
    torch.save(checkpoint, tmp_path / "damaged.ckpt")
    with pytest.raises(UserError):
        lm.load(tmp_path / "damaged.ckpt", allow=[HalfBinary])
