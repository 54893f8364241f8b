"""The callback's figures against separate computations, and a run that does not notice it."""

from __future__ import annotations

import csv
import multiprocessing
import os
import random
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from sklearn.metrics.pairwise import cosine_similarity
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import lightning_meta as lm
from lightning_meta.batches import TaskBatch
from lightning_meta.errors import UserError
from lightning_meta.functional.ranks import mean_over_ranks
from lightning_meta.functional.task_gradients import task_gradients
from lightning_meta.multitask.gradient_conflict import GradientConflict
from lightning_meta.report.gradients import write_conflict_figures
from lightning_meta.run import RunCheckpoint, RunLogger
from lightning_meta.run.gradient_table import PAIRS, SHARES, gradient_shares
from lightning_meta.tasks import Regression, TasksSpec
from lightning_meta.testing import toys
from tests.waiting import LIMIT

NAMES = ["left", "right, upper", "λ"]


class Toy(LightningModule):
    """Three regressions on one network, with everything that a forward pass can change."""

    calls: Tensor

    def __init__(self, plain: bool = False, shares: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
        if not plain:
            self.shared.extend([nn.BatchNorm1d(6), nn.Dropout(0.5)])
        self.heads = nn.ModuleDict({str(i): nn.Linear(6, 1) for i in range(3)})
        self.register_buffer("calls", torch.zeros(()))
        self.spec = TasksSpec({name: Regression() for name in NAMES})
        self.plain, self.shares = plain, shares

    def shared_parameters(self) -> list[nn.Parameter]:
        return list(self.shared.parameters()) if self.shares else []

    def task_losses(self, batch: TaskBatch) -> dict[str, Tensor]:
        assert isinstance(batch.inputs, Tensor)
        features = self.shared(batch.inputs.to(self.dtype))
        if not self.plain:
            features = features + random.random() * 0.01 + float(np.random.rand()) * 0.01  # noqa: NPY002
            self.calls = self.calls + 1  # a new tensor
        losses = {}
        for i, name in enumerate(NAMES):
            if name in batch.targets:
                outputs = self.heads[str(i)](features[batch.rows[name]])
                losses[name] = F.mse_loss(outputs, batch.targets[name].to(outputs.dtype))
        return losses

    def task_gradients(self, batch: TaskBatch) -> Tensor:
        losses = self.task_losses(batch)
        gradients = task_gradients([losses.get(name) for name in NAMES], self.shared_parameters()).rows
        return mean_over_ranks(gradients)

    def training_step(self, batch: TaskBatch, batch_idx: int) -> Tensor:
        loss = torch.stack(list(self.task_losses(batch).values())).sum()
        self.log("train/loss", loss, batch_size=1)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), 0.01)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9), "interval": "step"}]


def batch(number: int, names: list[str] = NAMES, rows: slice = slice(None)) -> TaskBatch:
    generator = torch.Generator().manual_seed(number)
    inputs = torch.randn(8, 4, generator=generator)[rows]
    targets = {name: torch.randn(8, 1, generator=generator)[rows] + NAMES.index(name) for name in NAMES}
    every = torch.arange(len(inputs))
    return TaskBatch(inputs, {n: targets[n] for n in names}, dict.fromkeys(names, every), dict.fromkeys(names, every))


class Loader:
    """Batch b of the run; it resumes, and may leave tasks out."""

    def __init__(self, length: int = 6, absent: bool = False, rows: slice = slice(None)) -> None:
        self.length, self.absent, self.rows, self.next = length, absent, rows, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[TaskBatch]:
        for b in range(self.next, (self.next // self.length + 1) * self.length):
            self.next += 1
            yield batch(b, NAMES[: 1 + b % 3] if self.absent else NAMES, self.rows)

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


def fit(
    folder: Path,
    callbacks: list[Callback],
    module: Toy | None = None,
    loader: Any = None,
    steps: int = 10,
    ckpt_path: Path | None = None,
    **options: Any,
) -> Trainer:
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=callbacks,
        logger=options.pop("logger", RunLogger(folder)),
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )
    trainer.fit(module or Toy(), loader or Loader(), ckpt_path=ckpt_path)
    return trainer


def table(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as rows:
        return list(csv.DictReader(rows))


def seed(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002


def matrix(file: Path, step: int, column: str) -> np.ndarray:
    found = np.full((3, 3), np.nan)
    for row in table(file):
        if int(row["step"]) == step:
            found[NAMES.index(row["task_i"]), NAMES.index(row["task_j"])] = float(row[column])
    return found


def separately(module: Toy, data: TaskBatch, rate: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients by `backward`, one task at a time, and affinities on copies of the weights."""
    state = {name: value.clone() for name, value in module.state_dict().items()}
    gradients = []
    for name in NAMES:
        module.zero_grad()
        module.task_losses(data)[name].backward()
        gradients.append([p.grad.clone() for p in module.shared_parameters() if p.grad is not None])
    flat = np.stack([torch.cat([g.flatten() for g in row]).numpy() for row in gradients])
    affinity = np.zeros((3, 3))
    before = module.task_losses(data)
    for i, row in enumerate(gradients):
        other = Toy(plain=True).to(module.dtype)
        other.load_state_dict(state)
        for p, g in zip(other.shared_parameters(), row, strict=True):
            p.data = p.data - rate * g
        after = other.task_losses(data)
        affinity[i] = [1 - (after[n] / before[n]).item() for n in NAMES]
    return cosine_similarity(flat), np.linalg.norm(flat, axis=1), affinity


# What it records


def test_the_figures_of_a_step_are_those_of_separate_backward_passes(tmp_path: Path) -> None:
    fit(tmp_path, [GradientConflict(2)], Toy(plain=True), steps=3, precision="64-true")
    run = tmp_path / "run" / "0"
    fresh = Toy(plain=True).double()
    cosines, norms, affinity = separately(fresh, batch(0), 0.01)
    assert matrix(run / "gradient_conflict.csv", 0, "cosine") == pytest.approx(cosines, rel=1e-5)
    assert matrix(run / "gradient_conflict.csv", 0, "affinity") == pytest.approx(affinity, rel=1e-5)
    shares = table(run / "gradient_share.csv")
    assert [row["task"] for row in shares] == 2 * NAMES
    assert [float(row["norm"]) for row in shares[:3]] == pytest.approx(norms, rel=1e-5)
    assert [float(row["share"]) for row in shares[:3]] == pytest.approx(norms / norms.sum(), rel=1e-5)
    assert {row["step"] for row in shares} == {"0", "2"}
    conflicts = (cosines[np.triu_indices(3, 1)] < 0).mean()
    assert float(table(run / "metrics.csv")[0]["train/conflict_share"]) == pytest.approx(conflicts)


def test_the_learning_rate_is_the_present_one(tmp_path: Path) -> None:
    class Weights(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 4:
                self.state = {name: value.clone() for name, value in pl_module.state_dict().items()}

    weights = Weights()
    fit(tmp_path, [GradientConflict(4), weights], Toy(plain=True), steps=5, precision="64-true")
    module = Toy(plain=True).double()
    module.load_state_dict(weights.state)
    _, _, affinity = separately(module, batch(4), 0.01 * 0.9**4)
    assert matrix(tmp_path / "run/0/gradient_conflict.csv", 4, "affinity") == pytest.approx(affinity, rel=1e-5)


def test_absent_tasks_leave_gaps(tmp_path: Path) -> None:
    fit(tmp_path, [GradientConflict(1)], loader=Loader(absent=True), steps=3)
    run = tmp_path / "run" / "0"
    for step in range(3):
        there = np.zeros((3, 3), dtype=bool)
        there[: step + 1, : step + 1] = True
        for column in ("cosine", "affinity"):
            assert (np.isfinite(matrix(run / "gradient_conflict.csv", step, column)) == there).all()
    logged = [row["train/conflict_share"] for row in table(run / "metrics.csv")]
    assert logged[0] == ""  # one task has nobody to disagree with
    assert all(logged[1:])
    shares = gradient_shares(run)
    assert list(shares) == NAMES
    assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
    third = [float(row["share"]) for row in table(run / "gradient_share.csv") if row["task"] == NAMES[2]]
    assert third[:2] == [0, 0]
    assert shares[NAMES[2]] == pytest.approx(third[2] / 3)


def test_without_affinity_there_is_no_second_pass(tmp_path: Path) -> None:
    class Counting(Toy):
        passes = 0

        def task_losses(self, batch: TaskBatch) -> dict[str, Tensor]:
            self.passes += 1
            return super().task_losses(batch)

    for affinity, expected in ((False, 2), (True, 6)):
        module = Counting()
        folder = tmp_path / str(affinity)
        fit(folder, [GradientConflict(1, affinity=affinity)], module, steps=1)
        assert module.passes == expected
        assert np.isfinite(matrix(folder / "run/0/gradient_conflict.csv", 0, "affinity")).all() == affinity
        assert (folder / "run/0/figures/affinity.png").exists() == affinity


def test_a_planted_conflict_shows(tmp_path: Path) -> None:
    """Two tasks with opposite targets and one head pull apart; each harms the other."""

    class Opposite(Toy):
        def task_losses(self, batch: TaskBatch) -> dict[str, Tensor]:
            assert isinstance(batch.inputs, Tensor)
            y = self.heads["0"](self.shared(batch.inputs))
            return {name: (y - target).square().mean() for name, target in zip(NAMES, (9.0, -9.0, 9.0), strict=True)}

    fit(tmp_path, [GradientConflict(1)], Opposite(plain=True), steps=1)
    run = tmp_path / "run" / "0"
    signs = np.array([[1, -1, 1], [-1, 1, -1], [1, -1, 1]])
    for column in ("cosine", "affinity"):
        assert (np.sign(matrix(run / "gradient_conflict.csv", 0, column)) == signs).all()
    assert float(table(run / "metrics.csv")[0]["train/conflict_share"]) == pytest.approx(2 / 3)


# What it leaves alone


class Ended(Callback):
    """Everything that a step depends on, as training ends; gradients as each step begins."""

    def __init__(self) -> None:
        self.gradients: list[list[Tensor | None]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.gradients.append([None if p.grad is None else p.grad.clone() for p in pl_module.parameters()])

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}
        self.optimizer = trainer.optimizers[0].state_dict()
        self.random = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index] # noqa: NPY002


@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}])
def test_a_run_ends_bit_for_bit_as_without_it(tmp_path: Path, options: dict[str, Any]) -> None:
    ended = {}
    for every in (None, 1, 3):
        conflict: list[Callback] = [] if every is None else [GradientConflict(every)]
        ended[every] = Ended()
        module = Toy()
        seed(1)
        fit(tmp_path / str(every), [*conflict, ended[every]], module, loader=Loader(absent=True), **options)
    without = ended[None]
    assert without.weights["shared.2.num_batches_tracked"] > 0
    for every in (1, 3):
        with_it = ended[every]
        assert with_it.weights.keys() == without.weights.keys()
        assert all(torch.equal(with_it.weights[name], without.weights[name]) for name in without.weights)
        states = (with_it.optimizer["state"], without.optimizer["state"])
        assert all(torch.equal(states[0][p][k], states[1][p][k]) for p in states[1] for k in states[1][p])
        assert torch.equal(with_it.random[0], without.random[0])
        assert with_it.random[1:] == without.random[1:]
        assert all(
            a is b if a is None or b is None else torch.equal(a, b)
            for one, other in zip(with_it.gradients, without.gradients, strict=True)
            for a, b in zip(one, other, strict=True)
        )


def test_accumulated_batches_are_measured_once_a_step(tmp_path: Path) -> None:
    fit(tmp_path, [GradientConflict(1)], accumulate_grad_batches=2, steps=3)
    assert [int(row["step"]) for row in table(tmp_path / "run/0/gradient_share.csv")] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_weights_are_back_after_a_failure() -> None:
    class Failing(Toy):
        def task_losses(self, batch: TaskBatch) -> dict[str, Tensor]:
            if not torch.equal(self.shared[0].weight, start):  # type: ignore[arg-type]
                raise KeyError("no second pass")
            return super().task_losses(batch)

    module = Failing()
    start = module.shared[0].weight.detach().clone()  # type: ignore[operator]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(KeyError, match="no second pass"):
        fit(Path("unused"), [GradientConflict(1)], module, logger=False, fast_dev_run=True)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


# Resuming


def test_a_resumed_run_records_every_step_once(tmp_path: Path) -> None:
    def callbacks() -> list[Callback]:
        return [RunCheckpoint(every_n_steps=4), GradientConflict(2)]

    for name, steps in (("whole", 10), ("cut", 8)):
        module = Toy()
        seed(1)
        fit(tmp_path / name, callbacks(), module, steps=steps)
    run = tmp_path / "cut" / "run" / "0"
    files = ("gradient_conflict.csv", "gradient_share.csv")
    for name in files:  # killed after measurements that the checkpoint does not know, in the midst of the last one
        text = (run / name).read_text(encoding="utf-8")
        (run / name).write_text(text + text.splitlines()[-1].replace("6,", "8,", 1) + "\n10,le", encoding="utf-8")
    logger = RunLogger(tmp_path / "cut", version=0)
    fit(tmp_path, callbacks(), ckpt_path=run / "checkpoints" / "last.ckpt", logger=logger)
    for name in (*files, "metrics.csv"):
        assert (run / name).read_bytes() == (tmp_path / "whole/run/0" / name).read_bytes()


def test_a_torn_last_row_is_not_read(tmp_path: Path) -> None:
    fit(tmp_path, [GradientConflict(1)], steps=2)
    run = tmp_path / "run" / "0"
    expected = gradient_shares(run)
    shutil.rmtree(run / "figures")
    for name in ("gradient_conflict.csv", "gradient_share.csv"):
        with (run / name).open("a") as file:
            file.write("2,le")
    assert gradient_shares(run) == expected
    assert len(write_conflict_figures(run)) == 3


# Mistakes, and nothing to record


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="every_n_steps: expected at least 1, got 0"):
        GradientConflict(0)

    class Single(LightningModule):
        training_step = Toy.training_step
        configure_optimizers = Toy.configure_optimizers

    with pytest.raises(UserError, match=r"needs a module of lightning_meta.multitask, got Single"):
        fit(tmp_path, [GradientConflict()], Single())  # type: ignore[arg-type]


def test_what_another_run_recorded_in_the_same_folder_stays(tmp_path: Path) -> None:
    fit(tmp_path, [GradientConflict(1)], steps=2, logger=False)
    before = {file: file.read_bytes() for file in sorted(tmp_path.glob("*.csv"))}
    assert len(before) == 2
    with pytest.raises(UserError, match="was recorded by another run"):
        fit(tmp_path, [GradientConflict(1)], steps=2, logger=False)
    assert {file: file.read_bytes() for file in sorted(tmp_path.glob("*.csv"))} == before


def test_a_module_that_shares_nothing_leaves_no_file(tmp_path: Path) -> None:
    fit(tmp_path, [GradientConflict(1)], Toy(shares=False))
    run = tmp_path / "run" / "0"
    assert [file.name for file in run.iterdir()] == ["metrics.csv"]
    assert gradient_shares(run) == {}


# Pictures


@pytest.mark.parametrize("tasks", [2, 12, 50])
def test_pictures_show_groups(tmp_path: Path, tasks: int) -> None:
    """Tasks of two kinds that come in turn stand apart in the picture, light where they agree and dark where not."""
    names = [f"Alphabet of {i}" for i in range(tasks)]
    rows = ["step,task_i,task_j,cosine,affinity"]
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            cosine = 1.0 if i == j else 0.3 if i % 2 == j % 2 else -0.3
            rows += [f"{step},{a},{b},{cosine},{cosine / 1000}" for step in (0, 100)]
    (tmp_path / "gradient_conflict.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "gradient_share.csv").write_text(
        "step,task,norm,share\n" + "".join(f"0,{name},1,{1 / tasks}\n" for name in names)
    )
    drawn = write_conflict_figures(tmp_path)
    assert [file.name for file in drawn] == ["gradient_cosine.png", "affinity.png", "conflict_share.png"]
    picture = np.asarray(Image.open(drawn[1]).convert("L")).astype(int)
    dark, light = np.abs(picture - 29) < 3, np.abs(picture - 218) < 3  # the ends of the colours in greyscale
    assert min(dark.mean(), light.mean()) > 0.1
    if tasks == 50:  # two blocks, not a chequered order; no figures are printed in the cells
        heatmap = dark[:, dark.any(0)][dark.any(1)]
        edges = np.abs(np.diff(heatmap[:, : heatmap.shape[1] * 3 // 4].astype(int), axis=1)).sum(1)
        assert np.median(edges) <= 2


def test_no_picture_without_two_tasks(tmp_path: Path) -> None:
    assert write_conflict_figures(tmp_path) == []
    (tmp_path / "gradient_conflict.csv").write_text("step,task_i,task_j,cosine,affinity\n0,a,a,1,0.1\n")
    (tmp_path / "gradient_share.csv").write_text("step,task,norm,share\n0,a,1,1\n0,b,nan,0\n")
    assert write_conflict_figures(tmp_path) == []
    assert not (tmp_path / "figures").exists()


# Two ranks


def _rank(rank: int, port: int, folder: Path) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2"
    )
    torch.set_num_threads(1)
    batches: Any = [batch(b, rows=slice(rank, None, 2)) for b in range(4)]
    loader: Any = DataLoader(batches, batch_size=None)
    ended = Ended()
    options: dict[str, Any] = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
    fit(folder, [GradientConflict(1), ended], Toy(plain=True), loader, steps=3, precision="64-true", **options)
    torch.save(ended.weights, folder / f"rank_{rank}.pt")


def test_two_ranks_record_what_one_process_does_on_both_batches(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_rank, args=(rank, port, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(LIMIT)
    assert [process.exitcode for process in ranks] == [0, 0]
    alone = Ended()
    fit(tmp_path / "one", [GradientConflict(1), alone], Toy(plain=True), Loader(4), steps=3, precision="64-true")
    for name in ("gradient_conflict.csv", "gradient_share.csv"):
        one, two = table(tmp_path / "one/run/0" / name), table(tmp_path / "run/0" / name)
        assert len(one) == len(two)
        for expected, found in zip(one, two, strict=True):
            for column, value in expected.items():
                if "task" in column:
                    assert found[column] == value
                else:
                    assert float(found[column]) == pytest.approx(float(value), rel=2e-5, abs=1e-12)
    for rank in range(2):
        weights = torch.load(tmp_path / f"rank_{rank}.pt", weights_only=True)
        assert all(torch.allclose(weights[name], alone.weights[name], atol=1e-10) for name in weights)


class Counting(lm.MultiHead):
    """Counts the forward passes of training, and draws random numbers in each."""

    def forward(self, x: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.passes = getattr(self, "passes", 0) + self.training
        return super().forward(nn.functional.dropout(x, 0.3, self.training), rows)


class Seeded(Callback):
    """Every step of any run draws the same numbers."""

    def on_train_batch_start(self, *args: Any) -> None:
        seed(5)


def measured(folder: Path, callback: GradientConflict | None, **options: Any) -> Counting:
    """A run of two steps, with batch normalisation."""
    seed(3)
    backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
    module = Counting(backbone, **options)
    off: dict[str, Any] = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    callbacks: list[Callback] = [Seeded()] if callback is None else [Seeded(), callback]
    trainer = L.Trainer(
        max_steps=2,
        logger=False,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        callbacks=callbacks,
        **off,
    )
    trainer.fit(module, toys.sums())
    return module


@pytest.mark.parametrize("affinity", [False, True])
def test_the_gradients_of_an_aggregator_are_used_again(tmp_path: Path, affinity: bool) -> None:
    """The first step's figures are those of a run that measures for itself; later weights differ."""
    callback = {name: GradientConflict(1, affinity) for name in ("PCGrad", "Equal")}
    modules = {
        name: measured(tmp_path / name, one, weighting=getattr(lm.weightings, name)()) for name, one in callback.items()
    }
    plain = measured(tmp_path / "plain", None, weighting=lm.weightings.PCGrad())
    for file in (PAIRS, SHARES):
        rows = [[r for r in table(tmp_path / name / file) if r["step"] == "0"] for name in callback]
        assert rows[0]
        for a, b in zip(*rows, strict=True):
            numbers = [[float(row[k]) for k in row if k not in ("step", "task", "task_i", "task_j")] for row in (a, b)]
            np.testing.assert_allclose(numbers[0], numbers[1], rtol=1e-5, atol=1e-7)
    for (name, p), of_plain in zip(modules["PCGrad"].state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(p, of_plain), name  # the run is as without the callback
    per_step = modules["PCGrad"].passes - plain.passes
    assert per_step == 2 * (4 if affinity else 0)  # of two steps: once before, and after the step of each of 3 tasks
