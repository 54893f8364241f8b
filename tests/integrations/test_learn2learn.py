"""What a learn2learn user brings along (built by `scripts/build_learn2learn.py`; not a dependency)."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # an unmaintained gym, a torchvision without its image library
    l2l = pytest.importorskip("learn2learn")

import lightning_meta
from lightning_meta.data import EpisodicDataModule
from lightning_meta.errors import UserError
from lightning_meta.integrations.learn2learn import GBML, FromTasksets, convert_maml
from lightning_meta.meta import MAML, ProtoNet
from lightning_meta.nn import MLP, Conv4
from lightning_meta.tasks import EpisodeSpec
from lightning_meta.testing import EpisodicDataModuleTests, MetaModuleTests
from tests.meta.oracles import IMAGES, KINDS, episodes, gradient, loss_of, relative_error, roughen, task

TRANSFORMS = ["meta_sgd", "kronecker", "meta_curvature", "linear"]


def meta_dataset() -> Any:
    """12 classes of 10 images, 16x16."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(12, 1, 1, 16, 16, generator=generator)
    x = (0.6 * picture + 0.4 * torch.rand(12, 10, 1, 16, 16, generator=generator)).flatten(0, 1)
    return l2l.data.MetaDataset(TensorDataset(x, torch.arange(12).repeat_interleave(10)))


def tasksets(leak: bool) -> list[Any]:
    """As its benchmarks are made: a filtered data set a split; leaking ones draw from the whole."""
    whole = meta_dataset()
    made = []
    for classes in (range(6), range(6, 9), range(9, 12)):
        own = l2l.data.FilteredMetaDataset(whole, labels=list(classes))
        bound = whole if leak else own
        transforms = l2l.data.transforms
        chosen = [
            transforms.FusedNWaysKShots(bound, n=3, k=5),
            transforms.LoadData(bound),
            transforms.RemapLabels(bound),
            transforms.ConsecutiveLabels(bound),
        ]
        made.append(l2l.data.Taskset(own, task_transforms=chosen, num_tasks=-1))
    return made


def data() -> EpisodicDataModule:
    return EpisodicDataModule(
        FromTasksets(*tasksets(leak=False)),
        ways=3,
        shots=1,
        queries=4,
        meta_batch_size=4,
        meta_batches_per_epoch=20,
        val_tasks=10,
        test_tasks=40,
        seed=0,
    )


class TestTasksets(EpisodicDataModuleTests):
    def make(self) -> EpisodicDataModule:
        return data()


def test_every_class_is_served_under_its_own_label() -> None:
    pools = FromTasksets(*tasksets(leak=False)).pools()
    assert [pools[split].names for split in ("train", "val", "test")] == [
        tuple("012345"),
        tuple("678"),
        ("9", "10", "11"),
    ]
    x, y = meta_dataset()[93]
    assert int(y) == 9
    assert torch.equal(pools["test"].x[3], x)


def test_leaking_splits_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"train: FusedNWaysKShots draws from another data set \(120 examples\).*own \(60\).* leak"
    ):
        FromTasksets(*tasksets(leak=True))
    whole = meta_dataset()
    with pytest.raises(UserError, match="class '0'"):
        FromTasksets(whole, whole, whole).pools()


class TestMetaSGD(MetaModuleTests):
    def make(self) -> GBML:
        return GBML(Conv4(width=4, blocks=2), "meta_sgd", inner_lr=0.1, inner_steps=2)


class TestKronecker(MetaModuleTests):
    def make(self) -> GBML:
        return GBML(MLP(256, (8,)), "kronecker", inner_lr=0.1, inner_steps=2)


def theirs(network: nn.Module, ours: GBML, name: str, batch: Any, steps: int, first_order: bool, spec: Any) -> Tensor:
    """Losses by learn2learn's GBML with the same transforms."""
    pieces = iter(copy.deepcopy(ours.transforms))
    peer = l2l.algorithms.GBML(network, lambda p: next(pieces), lr=0.1, first_order=first_order)
    losses = []
    for t in range(len(batch.tasks)):
        support, query = task(batch, t)
        clone = peer.clone()
        for _ in range(steps):
            clone.adapt(loss_of(spec, clone(support.x), support.y))
        losses.append(loss_of(spec, clone(query.x), query.y))
    return gradient(torch.stack(losses).mean(), peer)


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
@pytest.mark.parametrize("first_order", [False, True], ids=["second order", "first order"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_meta_gradients_of_weights_and_transforms_are_theirs(transform: Any, first_order: bool, strategy: Any) -> None:
    spec = KINDS["mlp"].spec
    options: dict[str, Any] = {"inner_lr": 0.1, "inner_steps": 2, "first_order": first_order, "strategy": strategy}
    torch.manual_seed(0)
    ours = GBML(MLP(6, (8, 5)), transform, episodes=spec, **options)
    roughen(ours.network)
    with torch.no_grad():
        for p in ours.transforms.parameters():
            p.add_(0.05 * torch.randn_like(p))
    ours.double()
    batch = episodes(spec, tasks=3)
    found = gradient(ours.meta_batch_loss(batch).loss.mean(), ours)
    expected = theirs(copy.deepcopy(ours.network), ours, transform, batch, 2, first_order, spec)
    assert relative_error(found, expected) < 1e-10
    transforms = torch.cat([p.flatten() for p in ours.transforms.parameters()])
    assert found[-len(transforms) :].norm() > 0


def backbone() -> nn.Module:
    return l2l.vision.models.ConvBase(hidden=8, channels=1, layers=2)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "make",
    [
        lambda: ProtoNet(nn.Sequential(backbone(), nn.Flatten())),
        lambda: GBML(nn.Sequential(backbone(), nn.Flatten()), "meta_curvature", inner_lr=0.1, inner_steps=1),
    ],
    ids=["ProtoNet", "GBML"],
)
def test_vision_models_train_validate_and_test(make: Callable[[], Any], tmp_path: Path) -> None:
    L.seed_everything(1)
    trainer = L.Trainer(
        max_steps=40,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    module, given = make(), data()
    trainer.fit(module, datamodule=given)
    (validated,) = trainer.validate(module, datamodule=given, verbose=False)
    (before,) = trainer.test(module, datamodule=given, verbose=False)
    assert 0 <= validated["val/accuracy"] <= 1
    assert before["test/accuracy"] > 0.6  # chance is a third
    assert not any(isinstance(m, nn.BatchNorm2d) for m in module.modules())


CONFIG = """
model:
  class_path: lightning_meta.integrations.learn2learn.GBML
  init_args:
    transform: meta_sgd
    inner_steps: 1
    inner_lr: 0.1
    backbone:
      class_path: learn2learn.vision.models.CNN4Backbone
      init_args: {hidden_size: 4, layers: 2, channels: 1, max_pool: true}
data:
  class_path: EpisodicDataModule
  init_args:
    source: {class_path: lightning_meta.testing.toys.NoisyPictures}
    ways: 3
    shots: 1
    queries: 3
    val_tasks: 4
    test_tasks: 4
trainer: {max_steps: 2, limit_val_batches: 1, accelerator: cpu}
"""


def test_from_the_command_line_and_back(tmp_path: Path) -> None:
    """A configuration names its network and this package's GBML; the checkpoint loads by its path."""
    config = tmp_path / "gbml.yaml"
    config.write_text(CONFIG)
    command = [sys.executable, "-W", "ignore", "-m", "lightning_meta.cli", "fit", "--config", str(config)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr[-2000:]
    module = lightning_meta.load(tmp_path / "runs/gbml/0", allow=["learn2learn"])
    assert isinstance(module, GBML)
    assert len(module.transforms) == len(list(module.network.parameters()))
    with pytest.raises(UserError, match="allow"):
        lightning_meta.load(tmp_path / "runs/gbml/0")


def test_a_maml_checkpoint_converts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    peer = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).double()
    learner = l2l.algorithms.MAML(peer, lr=0.1)
    batch = episodes(IMAGES, tasks=1)
    support, query = task(batch, 0)
    path = tmp_path / "maml.pt"
    torch.save(learner.state_dict(), path)
    clone = learner.clone()
    for _ in range(3):
        clone.adapt(nn.functional.cross_entropy(clone(support.x), support.y))
    expected = clone(query.x)

    def fresh(width: int = 4) -> MAML:
        network = nn.Sequential(nn.Conv2d(2, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten())
        return MAML(network, 0.1, 3, episodes=IMAGES).double()

    module = convert_maml(path, fresh())
    torch.testing.assert_close(module.predict(module.adapt(support, 3), query.x), expected, rtol=1e-10, atol=1e-10)
    with pytest.raises(UserError, match=r"module.0.weight \(4, 2, 3, 3\) does not fit .* \(6, 2, 3, 3\)"):
        convert_maml(path, fresh(6))
    torch.save(learner, tmp_path / "pickled.pt")
    with pytest.raises(UserError, match="save the state_dict alone"):
        convert_maml(tmp_path / "pickled.pt", fresh())
    shallow = MAML(MLP(128, (4,)), episodes=EpisodeSpec("classification", (2, 8, 8), 3))
    with pytest.raises(UserError, match="it holds 8 weights, the module has 4"):
        convert_maml(path, shallow)
