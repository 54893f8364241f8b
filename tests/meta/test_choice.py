"""How tasks are visited is chosen once, said, and kept."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

import lightning_meta
from lightning_meta.batches import Examples
from lightning_meta.data import EpisodicDataModule
from lightning_meta.describing import Described
from lightning_meta.errors import UserError
from lightning_meta.functional import TaskMap
from lightning_meta.meta import MAML, Baseline, MetaModule, ProtoNet, base
from lightning_meta.meta.choice import by_measurement, by_rule
from lightning_meta.nn import MLP, Conv4
from lightning_meta.sources import Sinusoid
from lightning_meta.tasks import EpisodeSpec
from lightning_meta.testing import toys
from tests.meta.oracles import IMAGES, episodes


def fit(steps: int, folder: Path, resume: Path | None = None, **options: Any) -> MAML:
    """Train MAML on sinusoids, and write `last.ckpt`."""
    L.seed_everything(3)
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    data = EpisodicDataModule(Sinusoid(), shots=5, queries=5, meta_batch_size=10, meta_batches_per_epoch=4)
    module = MAML(MLP(hidden=(8,)), **options)
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    trainer.save_checkpoint(folder / "last.ckpt")
    return module


def weights(module: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach()


@pytest.mark.parametrize("strategy", ["auto", "measured"])
def test_the_choice_is_said_and_changes_nothing_else(
    strategy: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lightning_meta")
    chosen = fit(3, tmp_path, strategy=strategy)
    assert chosen.task_map is not None
    assert f"10 tasks per meta-batch, computed by {chosen.task_map} (strategy {strategy})" in caplog.text
    asked: dict[str, Any] = {"strategy": chosen.task_map.strategy, "chunk_size": chosen.task_map.chunk_size}
    assert torch.equal(weights(chosen), weights(fit(3, tmp_path, **asked)))


def test_the_choice_survives_a_resume_and_a_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "by_measurement", lambda seconds, tasks: TaskMap("vmap", 3))
    fit(2, tmp_path, strategy="measured")
    monkeypatch.setattr(base, "by_measurement", lambda seconds, tasks: pytest.fail("it is measured again"))
    resumed = fit(4, tmp_path, resume=tmp_path / "last.ckpt", strategy="measured")
    assert resumed.task_map == TaskMap("vmap", 3)
    assert lightning_meta.load(tmp_path / "last.ckpt").task_map == TaskMap("vmap", 3)
    overruled = fit(5, tmp_path, resume=tmp_path / "last.ckpt", strategy="loop")
    assert overruled.task_map == TaskMap("loop")


def test_the_fastest_is_taken_by_its_median() -> None:
    slow_once = {"loop": [9.0, 2.0, 2.0, 2.0], "vmap": [1.0, 1.5, 9.0, 1.4], "vmap, 8 tasks at a time": [0.1, 3, 3, 3]}
    left = {way: iter(times) for way, times in slow_once.items()}
    assert by_measurement(lambda way: next(left[str(way)]), tasks=20) == TaskMap("vmap")
    assert by_measurement(lambda way: 1.0, tasks=1) == TaskMap("loop")


def maml(network: nn.Module) -> MetaModule:
    return MAML(network, episodes=IMAGES)


@pytest.mark.parametrize(
    ("module", "queries", "tasks", "expected"),
    [
        (maml(nn.Sequential(nn.Flatten(), nn.Linear(128, 4))), 300, 2, "vmap"),
        (maml(Conv4(2, 4, blocks=2)), 600, 2, "loop"),
        (maml(Conv4(2, 4, blocks=2)), 50, 2, "vmap"),
        (ProtoNet(Conv4(2, 4, blocks=2), episodes=IMAGES), 2, 2, "loop"),
        (ProtoNet(nn.Flatten(), episodes=IMAGES), 300, 2, "vmap"),
        (ProtoNet(nn.Flatten(), episodes=IMAGES), 300, 1, "loop"),
    ],
)
def test_the_rule(module: MetaModule, queries: int, tasks: int, expected: str) -> None:
    batch = episodes(IMAGES, tasks=tasks, queries=queries)
    assert by_rule(module.network, module.inner_gradients, batch).strategy == expected


def test_measuring_leaves_gradients_and_random_state_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before: list[Tensor] = []
    whole = by_measurement

    def watched(seconds: Any, tasks: int) -> TaskMap:
        before.append(torch.get_rng_state())
        how = whole(seconds, tasks)
        before.append(torch.get_rng_state())
        return how

    monkeypatch.setattr(base, "by_measurement", watched)
    fit(1, tmp_path, strategy="measured")
    assert torch.equal(*before)


class Recurrent(Described, nn.Module):
    """A layer that `vmap` cannot run."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layer = nn.GRU(256, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(2))[0][:, -1]


@pytest.mark.parametrize("method", [MAML, ProtoNet, Baseline])
def test_a_model_that_was_visited_in_a_loop_loads_and_evaluates(
    method: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, data = method(Recurrent()), toys.pictures()
    trainer = L.Trainer(max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert caplog.text.count("tasks are visited in a loop, as vmap cannot run the network") == 1
    before = trainer.test(module, datamodule=data, verbose=False)
    loaded = lightning_meta.load(tmp_path / "last.ckpt", allow=[Recurrent])
    assert trainer.test(loaded, datamodule=data, verbose=False) == before


def test_vmap_by_name_is_refused_where_it_cannot_run() -> None:
    module, data = MAML(Recurrent(), strategy="vmap"), toys.pictures()
    trainer = L.Trainer(max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match=r"strategy: vmap cannot visit the tasks: .*; use strategy loop, or auto"):
        trainer.fit(module, datamodule=data)


class Attentive(Described, nn.Module):
    """Attention, whose fused kernel has no second derivative."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.inputs, self.attention = nn.Linear(64, width), nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inputs(x.reshape(len(x), 4, 64))
        return self.attention(h, h, h, need_weights=False)[0].mean(1)


class OwnInnerStep(MetaModule):
    """A user's own inner loop."""

    def build(self, episodes: EpisodeSpec) -> None:
        self.head = nn.Linear(self.feature_size, episodes.outputs)

    def adapt(self, support: Examples, ways: int) -> dict[str, Tensor]:
        start: dict[str, Tensor] = dict(self.backbone.named_parameters())

        def loss(parameters: dict[str, Tensor]) -> Tensor:
            features: Tensor = functional_call(self.backbone, parameters, (support.x,))
            return self.task.loss(self.head(features), support.y)

        return {name: start[name] - 0.1 * g for name, g in grad(loss)(start).items()}

    def predict(self, state: dict[str, Tensor], x: Tensor) -> Tensor:
        outputs: Tensor = self.head(functional_call(self.backbone, state, (x,)))
        return outputs


@pytest.mark.parametrize("strategy", ["vmap", "auto"])
def test_a_users_own_inner_loop_over_attention_runs_by_vmap(strategy: Any) -> None:
    module = OwnInnerStep(Attentive(), strategy=strategy)
    trainer = L.Trainer(max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(module, datamodule=toys.pictures())
    assert module.task_map == TaskMap("vmap")
