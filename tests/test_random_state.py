"""A strategy that resets the random generators, as DDP does when it starts, changes no weights and no training."""

from __future__ import annotations

import random
from collections.abc import Callable
from inspect import isabstract
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn

import lightning_meta as lm
from lightning_meta import weightings
from lightning_meta.batches import SPLITS, Examples, Split
from lightning_meta.data.source import TaskSource
from lightning_meta.data.task_set import TaskSet
from lightning_meta.errors import UserError
from lightning_meta.nn import MLP, TabularMLP
from lightning_meta.tasks import Regression, Task
from lightning_meta.testing import toys
from tests.methods import META, MULTI_TASK, OF_SINES, sines, weighting
from tests.multitask.toys import trainer

COMPARED = 24  # random numbers: enough that independent ones never agree


class Resetting(SingleDeviceStrategy):
    """One process that begins as one rank of `DDPStrategy`."""

    def setup_environment(self) -> None:
        super().setup_environment()
        reset_seed()


class AtTheStart(Callback):
    """Records the tensors when the module has been set up, and the random numbers that the training would draw."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.tensors = tensors(pl_module)
        self.parameters = [name for name, _ in pl_module.named_parameters()]
        self.states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in module.state_dict().items() if isinstance(t, Tensor)}


def fitted(
    make: Callable[[], Any], data: Callable[[], LightningDataModule], strategy: Any
) -> tuple[AtTheStart, dict[str, Tensor]]:
    lightning.seed_everything(3, verbose=False)
    module, start = make(), AtTheStart()
    trainer(1, limit_val_batches=0, strategy=strategy, callbacks=[start]).fit(module, datamodule=data())
    return start, tensors(module)


def check_same_after_reset(make: Callable[[], Any], data: Callable[[], LightningDataModule]) -> dict[str, Tensor]:
    """Compare the tensors after set-up, what training draws, and the tensors after a step.

    Returns:
        The parameters after set-up.
    """
    plain, after = fitted(make, data, "auto")
    reset, after_too = fitted(make, data, Resetting("cpu"))
    assert differing(plain.tensors, reset.tensors) == []
    assert plain.states[1:] == reset.states[1:]
    assert torch.equal(plain.states[0], reset.states[0])
    assert differing(after, after_too) == []
    return {name: reset.tensors[name] for name in reset.parameters}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name].nan_to_num(), b[name].nan_to_num())]


def repeated(found: dict[str, Tensor]) -> list[tuple[str, str]]:
    """Weights outside of the backbone whose first numbers are those of weights in it, but for scale and offset."""
    first = {name: t.flatten()[:COMPARED].double() for name, t in found.items()}
    first = {name: t for name, t in first.items() if len(t) == COMPARED and t.std() > 0}
    pairs = [(a, b) for a in first for b in first if a.startswith("backbone.") and not b.startswith("backbone.")]
    return [(a, b) for a, b in pairs if torch.corrcoef(torch.stack([first[a], first[b]]))[0, 1].abs() > 0.99]


@pytest.mark.parametrize("name", [*META, *MULTI_TASK])
def test_every_method_has_the_same_weights_after_a_reset(name: str) -> None:
    data = toys.sums if name in MULTI_TASK else sines if name in OF_SINES else toys.pictures
    start = check_same_after_reset({**META, **MULTI_TASK}[name], data)
    assert repeated(start) == []


@pytest.mark.parametrize("name", [n for n in dir(weightings) if not isabstract(getattr(weightings, n))])
def test_every_weighting_is_the_same_after_a_reset(name: str) -> None:
    cls = getattr(weightings, name)
    check_same_after_reset(lambda: lm.MultiHead(MLP(4, (8,)), weighting=weighting(cls)), toys.sums)


def test_a_head_has_the_weights_that_one_process_always_gave_it() -> None:
    """They follow those of the backbone in torch's stream."""

    def made() -> lm.MAML:
        return lm.MAML(MLP(256, (8,)), inner_steps=1)

    start, _ = fitted(made, toys.pictures, Resetting("cpu"))
    lightning.seed_everything(3, verbose=False)
    made()
    assert torch.equal(start.tensors["head.weight"], nn.Linear(8, 3).weight)


def test_a_seed_set_between_the_constructor_and_the_fit_is_kept() -> None:
    heads = []
    for seed in (3, 4):
        lightning.seed_everything(3, verbose=False)
        module = lm.MAML(MLP(256, (8,)), inner_steps=1)
        torch.manual_seed(seed)
        start = AtTheStart()
        trainer(1, limit_val_batches=0, callbacks=[start]).fit(module, datamodule=toys.pictures())
        heads.append(start.tensors["head.weight"])
    torch.manual_seed(4)
    assert torch.equal(heads[1], nn.Linear(8, 3).weight)
    assert not torch.equal(heads[0], heads[1])


@pytest.mark.parametrize("built", [False, True])
def test_dropout_draws_the_same_after_a_reset(built: bool) -> None:
    """Also in a module that was built before it is trained."""
    data = toys.pictures()
    data.setup("fit")
    episodes = data.spec if built else None
    check_same_after_reset(
        lambda: lm.ProtoNet(nn.Sequential(MLP(256, (8,)), nn.Dropout(0.5)), episodes=episodes), toys.pictures
    )


class Drawn(TaskSource):
    """Tasks whose examples come from the global generators."""

    def tasks(self) -> dict[str, Task]:
        return {"a": Regression(1), "b": Regression(1)}

    def sets(self) -> dict[Split, TaskSet]:
        def examples() -> Examples:
            return Examples(torch.rand(12, 4), torch.as_tensor(np.random.rand(12, 1)).float())  # noqa: NPY002

        return {split: TaskSet.of_examples({name: examples() for name in self.tasks()}) for split in SPLITS}


class DrawsInBuild(lm.MultiHead):
    """A user's module that draws in `build`, from each of the generators."""

    def build(self, spec: Any) -> None:
        super().build(spec)
        numbers = [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002
        self.numbers = nn.Parameter(torch.tensor(numbers))


def test_sources_and_modules_of_users_draw_the_same_after_a_reset() -> None:
    """From the global generators of torch, NumPy and Python, in `setup` of the data and in `build`."""
    check_same_after_reset(
        lambda: DrawsInBuild(MLP(4, (COMPARED,))), lambda: lm.MultiTaskDataModule(Drawn(), batch_size=4, seed=0)
    )


def test_layers_made_for_a_table_are_the_same_after_a_reset(tmp_path: Any) -> None:
    file = tmp_path / "table.csv"
    file.write_text("\n".join(["a,town,y", *(f"{i % 7},{'pqr'[i % 3]},{i * i % 11}" for i in range(60))]))
    source = lm.sources.Table(file, {"y": "regression"}, categories="codes")
    check_same_after_reset(
        lambda: lm.MultiHead(TabularMLP((8,))), lambda: lm.MultiTaskDataModule(source, batch_size=6, seed=0)
    )


def test_a_module_that_replaces_the_hook_is_refused() -> None:
    class Replaces(lm.ProtoNet):
        def configure_callbacks(self) -> list[Callback]:
            return []

    with pytest.raises(UserError, match=r"Replaces.configure_callbacks must call super\(\).configure_callbacks"):
        Replaces(MLP(4, (8,)))


def test_a_module_that_extends_the_hook_has_its_callbacks() -> None:
    class Extends(lm.ProtoNet):
        def configure_callbacks(self) -> Any:
            return [*super().configure_callbacks(), Counts()]

    class Counts(Callback):
        steps = 0

        def on_train_batch_end(self, *args: Any) -> None:
            Counts.steps += 1

    check_same_after_reset(lambda: Extends(MLP(256, (8,))), toys.pictures)
    assert Counts.steps == 2


def test_a_seed_in_the_environment_that_is_no_number_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    module = lm.ProtoNet(MLP(256, (8,)))
    monkeypatch.setenv("PL_GLOBAL_SEED", "abc")
    trainer(1, limit_val_batches=0).fit(module, datamodule=toys.pictures())
