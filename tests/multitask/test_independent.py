"""Independent learning is T separate trainings, number by number."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning
import pytest
import torch
from torch import Tensor, nn

import lightning_meta
from lightning_meta.errors import UserError
from lightning_meta.multitask import Independent
from lightning_meta.nn import MLP, Conv4
from lightning_meta.run import RunCheckpoint, RunLogger
from lightning_meta.tasks import Classification, Regression, TasksSpec
from tests.multitask.toys import TASKS, Toys, answer, backbone, data, results_of, train, trainer

NAMES = ("sum", "largest", "sign")


def own_weights(module: Independent, name: str) -> Tensor:
    return torch.cat(
        [p.detach().flatten() for m in module.own_modules(module.names.index(name)) for p in m.parameters()]
    )


class WithNorm(nn.Sequential):
    def __init__(self, dropout: float = 0.0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            super().__init__(nn.Linear(4, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(dropout), nn.Linear(12, 5))


@pytest.mark.parametrize(
    ("strategy", "network", "options"),
    [
        ("loop", backbone, {}),
        ("vmap", backbone, {}),
        ("vmap", WithNorm, {}),
        ("loop", partial(WithNorm, 0.5), {}),
        ("vmap", backbone, {"gradient_clip_val": 0.3}),
        ("loop", backbone, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
        ("vmap", backbone, {"accumulate_grad_batches": 2}),
    ],
)
def test_the_numbers_are_those_of_separate_trainings(strategy: str, network: Any, options: dict[str, Any]) -> None:
    def learned(names: tuple[str, ...]) -> Independent:
        given = data(names, batch_size=8)
        return train(Independent, given, 12, backbone=network(), strategy=strategy, trainer=options)

    together = learned(NAMES)
    scores = results_of(together, data(NAMES))
    for name in NAMES:
        alone = learned((name,))
        torch.testing.assert_close(own_weights(together, name), own_weights(alone, name), rtol=1e-11, atol=1e-12)
        i = together.names.index(name)
        assert together.best.scores[i] == pytest.approx(alone.best.scores[0], rel=1e-12)
        assert together.best.steps[i] == alone.best.steps[0]
        metric = f"test/{TASKS[name].selection}/{name}"
        assert scores[metric] == pytest.approx(results_of(alone, data((name,)))[metric], rel=1e-6)


def test_a_training_is_that_of_a_plain_loop_of_torch() -> None:
    """The loop uses only the network, the batches of its task and Adam."""
    given = data(NAMES)
    together = train(Independent, given, 9)
    lightning.seed_everything(3, verbose=False)
    network: nn.Module = backbone()
    torch.set_default_dtype(torch.float64)  # as Lightning does where heads are made
    try:
        start = Independent(network, tasks=given.spec)
    finally:
        torch.set_default_dtype(torch.float32)
    start.double()
    task, i = given.spec.tasks["largest"], 1  # type: ignore[union-attr]
    network = nn.Sequential(start._copies[i], start.heads[i])
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    batches = given.train_batches()
    for number in range(9):
        batch = batches[number]
        assert isinstance(batch.inputs, Tensor)
        optimizer.zero_grad()
        outputs = network(batch.inputs[batch.rows["largest"]].double())
        task.loss(outputs, batch.targets["largest"]).backward()
        optimizer.step()
    expected = torch.cat([p.detach().flatten() for p in network.parameters()])
    torch.testing.assert_close(own_weights(together, "largest"), expected, rtol=1e-11, atol=1e-12)


def test_a_task_that_is_absent_stands_still_as_in_its_own_training() -> None:
    """Each task's k-th batch moves it as its k-th batch would if there were no others."""
    given = data(NAMES, tasks_per_batch=2, batches_per_epoch=400)
    module = train(Independent, given, 30)
    batches = given.train_batches()
    for name in NAMES:
        state = module.optimizers().state  # type: ignore[union-attr]
        parameter = next(module.own_modules(module.names.index(name))[0].parameters())
        steps = sum(name in batches.ids(number) for number in range(30))
        assert 0 < steps < 30
        assert int(state[parameter]["step"]) == steps


def test_vectorised_convolutions_give_the_numbers_of_the_loop() -> None:
    lightning.seed_everything(0, verbose=False)
    given = data(NAMES)
    given.setup("fit")
    assert given.spec is not None
    shapes = dict.fromkeys(NAMES, (1, 16, 16))
    spec = type(given.spec)(given.spec.tasks, shapes, given.spec.train_examples)
    modules = []
    for strategy in ("loop", "vmap"):
        lightning.seed_everything(0, verbose=False)
        modules.append(Independent(Conv4(width=8, blocks=3), strategy=strategy, tasks=spec))
        modules[-1].configure_model()
        modules[-1].double().train()
    x = torch.randn(30, 1, 16, 16, dtype=torch.float64)
    rows = {name: torch.arange(i, 30, 3) for i, name in enumerate(NAMES)}
    for mode in (True, False):
        one, other = (m.train(mode)(x, rows) for m in modules)
        for name in NAMES:
            torch.testing.assert_close(one[name], other[name], rtol=1e-11, atol=1e-12)
        grads = [
            torch.autograd.grad(sum(y.square().sum() for y in o.values()), list(m.parameters()))
            for o, m in zip((one, other), modules, strict=True)
        ]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    for (name, a), (_, b) in zip(modules[0].named_buffers(), modules[1].named_buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12, msg=name)


def test_each_task_is_tested_with_its_own_best_weights_and_jointly() -> None:
    """A rate so high that the last weights are not the best ones."""
    given = data(NAMES)
    module = train(Independent, given, 60, optimizer=partial(torch.optim.SGD, lr=0.2))
    assert len(set(module.best.steps)) > 1, "the tasks should peak at different steps"
    per_task = results_of(module, given)
    rows = {row["task"]: row for row in module.test_report["per_task"]}
    for i, name in enumerate(NAMES):
        assert rows[name]["val"] == pytest.approx(module.best.scores[i], rel=1e-6)
        assert rows[name]["best_step"] == module.best.steps[i]
    joint = sum(row["joint"] for row in rows.values()) / 3
    assert per_task["test/joint_score"] == pytest.approx(joint, rel=1e-6)
    assert any(row["joint"] != row["test"] for row in rows.values())


@pytest.mark.parametrize("seed", [0, 4])
def test_the_best_checkpoint_of_a_run_holds_all_that_was_selected(seed: int, tmp_path: Path) -> None:
    """A task with the same score and a lower loss gets its new weights, although `val/score` does not rise."""
    lightning.seed_everything(seed, verbose=False)
    module = Independent(backbone(), optimizer=partial(torch.optim.SGD, lr=0.2))
    checkpoint = RunCheckpoint("val/score")
    runner = trainer(25, callbacks=[checkpoint], logger=RunLogger(tmp_path, "run"))
    runner.fit(module, datamodule=data(NAMES))
    loaded = lightning_meta.load(tmp_path / "run" / "0")
    assert (loaded.best.steps, loaded.best.mean_step) == (module.best.steps, module.best.mean_step)


def test_the_best_weights_survive_a_checkpoint(tmp_path: Path) -> None:
    given = data(NAMES)
    lightning.seed_everything(3, verbose=False)
    module = Independent(backbone(), optimizer=partial(torch.optim.SGD, lr=0.2))
    runner = trainer(40)
    runner.fit(module, datamodule=given)
    runner.save_checkpoint(tmp_path / "a.ckpt")
    loaded = lightning_meta.load(tmp_path / "a.ckpt")
    assert loaded.best.steps == module.best.steps
    assert loaded.best.scores == module.best.scores
    assert results_of(loaded, given) == results_of(module, given)


def test_testing_leaves_the_weights_alone() -> None:
    given = data(NAMES)
    module = train(Independent, given, 20)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    results_of(module, given)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_dropout_under_vmap_is_refused() -> None:
    with pytest.raises(UserError, match="strategy: networks with dropout run in a loop"):
        train(Independent, data(NAMES), backbone=WithNorm(0.5), strategy="vmap")


def test_predictions_are_in_the_units_of_the_targets() -> None:
    given = data(NAMES)
    module = train(Independent, given, 400)
    batch: Any = cast(list[Any], trainer().predict(module, datamodule=given))[0]
    x = Toys().examples("test")["sum"].x
    assert (batch["sum"] - answer("sum", x)).abs().mean() < 1


class Padded(nn.Module):
    """Ids, whose row 0 is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(5, 4, padding_idx=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(x.abs().long().clamp(max=4)).mean(1)


class Noise(nn.Module):
    """Randomness that is no dropout module."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.linear(x), 0.3, self.training)


@pytest.mark.parametrize("strategy", ["vmap", "loop", "auto"])
def test_the_padding_row_of_an_embedding_stays(strategy: str) -> None:
    module = train(Independent, data(), 5, backbone=Padded(), strategy=strategy)
    for copied in module._copies:
        rows = copied.get_parameter("rows.weight")
        assert torch.equal(rows[0], torch.zeros(4, dtype=torch.float64))
        assert rows[1:].abs().sum() > 0


@pytest.mark.parametrize("strategy", ["loop", "auto"])
def test_randomness_of_any_kind_does_not_depend_on_the_other_tasks(strategy: str) -> None:
    start = Noise()
    together = train(Independent, data(), 5, backbone=copy.deepcopy(start), strategy=strategy)
    alone = train(Independent, data(("largest",)), 5, backbone=copy.deepcopy(start), strategy=strategy)
    for a, b in zip(together._copies[1].parameters(), alone._copies[0].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("monitor", "metric"), [("val/loss", "loss"), ("val/f1", "f1"), ("val/loss/sign", "loss")])
def test_each_task_is_selected_by_what_is_monitored(monitor: str, metric: str, tmp_path: Path) -> None:
    """The steps that a plain look at every validation gives; the checkpoint of the run holds them."""
    history: list[dict[str, float]] = []

    class Notes(lightning.pytorch.Callback):
        def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
            history.append({"step": trainer.global_step} | {k: float(v) for k, v in trainer.callback_metrics.items()})

    lightning.seed_everything(1, verbose=False)
    module = Independent(backbone(), optimizer=partial(torch.optim.Adam, lr=0.05))
    checkpoint = RunCheckpoint(monitor)
    folder = RunLogger(tmp_path, "run")
    runner = trainer(60, callbacks=[checkpoint, Notes()], logger=folder)
    runner.fit(module, datamodule=data(NAMES))
    for name, step in zip(NAMES, module.best.steps, strict=True):
        own = metric if f"val/{metric}/{name}" in history[0] else "r2"
        sign = -1 if own == "loss" else 1
        ranked = [(sign * h[f"val/{own}/{name}"], -h[f"val/loss/{name}"], -h["step"]) for h in history]
        assert step == -max(ranked)[2], name
    names = [name for name in NAMES if f"{monitor}/{name}" in history[0]] or ["sign"]
    bests = [module.best.scores[NAMES.index(name)] for name in names]
    assert history[-1][monitor] == pytest.approx(abs(sum(bests)) / len(bests), rel=1e-6)
    loaded = lightning_meta.load(tmp_path / "run" / "0")
    assert loaded.best.steps == module.best.steps


def test_a_monitored_task_is_not_taken_for_another_whose_name_ends_alike() -> None:
    module = Independent(backbone())
    names = ["sum", "my/sum"]
    spec = TasksSpec({n: Regression(1) for n in names}, dict.fromkeys(names, (4,)), dict.fromkeys(names, 9))
    module.tasks = spec
    module.make_parts()
    module.best.update(torch.tensor([0.5, 0.25]), torch.zeros(2), 1)
    monitor = "val/r2/my/sum"
    module.trainer = trainer(callbacks=[RunCheckpoint(monitor)])
    logged = {"val/r2/sum": 0.0, monitor: 0.0}
    assert module.kept(torch.zeros(2), logged) == {monitor: 0.25}


@pytest.mark.parametrize(
    ("network", "shape", "tasks", "count", "expected"),
    [
        (lambda: Conv4(width=8, downsample="stride"), (1, 28, 28), 10, 16, "vmap"),
        (lambda: Conv4(width=8, downsample="stride"), (1, 28, 28), 2, 16, "loop"),
        (lambda: Conv4(width=8, downsample="stride"), (1, 28, 28), 10, 512, "loop"),
        (lambda: Conv4(width=64, downsample="stride"), (1, 28, 28), 10, 16, "loop"),
        (lambda: MLP(4, (8,)), (4,), 50, 8, "loop"),
    ],
)
def test_auto_on_a_cpu_is_vmap_for_many_small_convolutions(
    network: Any, shape: tuple[int, ...], tasks: int, count: int, expected: str
) -> None:
    """`auto` follows the measurements of scripts/benchmark_independent.py."""
    names = [f"task_{i}" for i in range(10)]
    spec = TasksSpec(dict.fromkeys(names, Classification(2)), dict.fromkeys(names, shape), dict.fromkeys(names, 0))
    assert Independent(network(), tasks=spec)._strategy_for(tasks, count) == expected
