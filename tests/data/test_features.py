"""Features of a frozen backbone are computed once, and give what the images give."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lightning_meta as lm
from lightning_meta.data.cache import read_cached
from lightning_meta.data.features import PROBED
from lightning_meta.errors import UserError
from lightning_meta.meta.teachers import Teacher
from lightning_meta.nn import MLP, Frozen
from lightning_meta.run import read_checkpoint
from lightning_meta.testing import toys
from tests.methods import conv4

QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False}
OF_RUNS: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}
IMAGES = 40  # of the test split of `toys.pictures`


class Counting(nn.Module):
    """Counts the images that it sees; `factor` is nothing that its weights or its layers tell."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.network, self.factor, self.seen = conv4(), factor, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        features: Tensor = self.network(x) * self.factor
        return features


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIGHTNING_META_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


def protonet(seed: int = 0, factor: float = 1.0) -> tuple[lm.ProtoNet, Counting]:
    torch.manual_seed(seed)
    network = Counting(factor)
    return lm.ProtoNet(Frozen(network), distance="cosine", temperature=0.1), network


def outputs_of(
    module: lm.MetaModule, data: lm.EpisodicDataModule | None = None, **options: Any
) -> np.ndarray[Any, Any]:
    """Predictions for all test tasks."""
    lightning.Trainer(enable_checkpointing=False, **{**QUIET, **options}).test(
        module, data or toys.pictures(), verbose=False
    )
    outputs: np.ndarray[Any, Any] = module.test_report["predictions"]["output"]
    return outputs


def without_cache(module: lm.MetaModule) -> lm.MetaModule:
    module.needs_images = True
    return module


@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}, {"precision": "64-true"}], ids=str)
def test_a_test_on_features_is_that_on_images(options: dict[str, Any]) -> None:
    expected = outputs_of(without_cache(protonet()[0]), **options)
    tolerance = 0.05 if "bf16-mixed" in options.values() else 1e-5
    for _ in range(2):  # computed, and read
        np.testing.assert_allclose(outputs_of(protonet()[0], **options), expected, atol=tolerance)


def test_turned_classes_have_features_of_turned_images() -> None:
    def data() -> lm.EpisodicDataModule:
        return lm.EpisodicDataModule(
            toys.NoisyPictures(), ways=12, shots=2, queries=3, test_tasks=8, rotations=["test"]
        )

    expected = outputs_of(without_cache(protonet()[0]), data())
    np.testing.assert_allclose(outputs_of(protonet()[0], data()), expected, atol=1e-5)


def test_images_are_run_once() -> None:
    module, network = protonet()
    network.seen = 0
    outputs_of(module)
    assert network.seen == IMAGES
    again, network = protonet()
    outputs_of(again)
    assert network.seen == PROBED


def test_a_grid_reads_them_once_and_still_finds_out_another_network(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def noting(path: Path, checked: Any) -> Any:
        read.append(path)
        return read_cached(path, checked)

    monkeypatch.setattr("lightning_meta.data.features.read_cached", noting)
    network, data = protonet()[1], toys.pictures()
    module = lm.ProtoNet(Frozen(network))
    lm.evaluate(module, data, ways=[2, 3], shots=[1, 2], accelerator="cpu")
    assert len(read) == 1
    network.factor = 2.0
    changed = outputs_of(module, data)
    assert len(read) == 2
    np.testing.assert_allclose(changed, outputs_of(without_cache(lm.ProtoNet(Frozen(network)))), rtol=1e-4)


def test_other_weights_have_other_features(cache: Path) -> None:
    first, second = outputs_of(protonet(0)[0]), outputs_of(protonet(1)[0])
    np.testing.assert_allclose(second, outputs_of(without_cache(protonet(1)[0])), atol=1e-5)
    assert not np.allclose(first, second, atol=1e-3)
    assert len(list(cache.iterdir())) == 2


def test_features_that_no_run_opens_are_removed(cache: Path) -> None:
    for seed in (0, 1):
        outputs_of(protonet(seed)[0])
    files = list(cache.iterdir())
    for file in files:
        os.utime(file, (time.time() - 61 * 24 * 3600,) * 2)
    outputs_of(protonet(1)[0])
    outputs_of(protonet(2)[0])
    assert sorted(file.exists() for file in files) == [False, True]


def test_a_network_that_computes_something_else_is_found_out(caplog: pytest.LogCaptureFixture) -> None:
    euclidean = lm.ProtoNet(Frozen(protonet()[1]))
    outputs_of(euclidean)
    changed = lm.ProtoNet(Frozen(protonet(factor=2.0)[1]))
    outputs = outputs_of(changed)
    assert "no longer match this backbone" in caplog.text
    np.testing.assert_allclose(
        outputs, outputs_of(without_cache(lm.ProtoNet(Frozen(protonet(factor=2.0)[1])))), rtol=1e-4
    )


def test_a_damaged_file_is_made_again(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = outputs_of(protonet()[0])
    (file,) = cache.iterdir()
    content = bytearray(file.read_bytes())
    content[-5] ^= 255
    file.write_bytes(content)
    np.testing.assert_array_equal(outputs_of(protonet()[0]), expected)
    assert "is damaged" in caplog.text


def test_a_layer_over_it_learns_the_same_from_features_and_images(tmp_path: Path) -> None:
    def trained(on_images: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        sgd = partial(torch.optim.SGD, lr=0.1)  # Adam makes much of rounding
        module = lm.ProtoNet(nn.Sequential(Frozen(conv4()), MLP(64, (8,))), optimizer=sgd)
        module.needs_images = on_images
        lm.fit(
            module, toys.pictures(), runs=tmp_path, seed=0, max_steps=4, accelerator="cpu", enable_progress_bar=False
        )
        return module.state_dict()

    by_features, by_images = trained(False), trained(True)
    for name, tensor in by_images.items():
        torch.testing.assert_close(by_features[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_resumed_run_ends_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    def run(name: str, steps: int, **options: Any) -> lm.Run:
        torch.manual_seed(0)
        module = lm.ProtoNet(nn.Sequential(Frozen(conv4()), MLP(64, (8,))))
        return lm.fit(module, toys.pictures(), name=name, runs=tmp_path, max_steps=steps, **OF_RUNS, **options)

    whole = run("whole", 5, seed=0)
    run("parts", 2, seed=0)
    parts = run("parts", 5, resume=tmp_path / "parts" / "0")
    folders = [r.directory for r in (whole, parts) if r.directory is not None]
    weights = [read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"] for folder in folders]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_frozen_weights_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    """In a resumed run they are restored after `setup`, so features are computed later than that."""
    torch.manual_seed(0)
    run = lm.fit(protonet_of(conv4()), toys.pictures(), runs=tmp_path, max_steps=0, **OF_RUNS)
    torch.manual_seed(1)
    module = protonet_of(conv4())
    assert run.directory is not None
    trainer = lightning.Trainer(enable_checkpointing=False, **QUIET)
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
        trainer.test(module, toys.pictures(), ckpt_path=run.directory / "checkpoints" / "last.ckpt", verbose=False)
    np.testing.assert_allclose(
        module.test_report["predictions"]["output"], np.load(run.directory / "predictions.npz")["output"], atol=1e-6
    )


def protonet_of(network: nn.Module) -> lm.ProtoNet:
    return lm.ProtoNet(Frozen(network))


def test_where_training_images_are_augmented_only_they_stay_images() -> None:
    data = toys.pictures()
    data.augmentation = nn.Identity()
    trainer = lightning.Trainer(max_steps=1, enable_checkpointing=False, limit_val_batches=1, **QUIET)
    module = lm.ProtoNet(nn.Sequential(Frozen(conv4()), MLP(64, (8,))))
    with pytest.warns(UserWarning, match="in eval mode"):
        trainer.fit(module, data)
    assert next(iter(trainer.train_dataloader)).support.x.shape[2:] == (1, 16, 16)  # type: ignore[arg-type]
    assert next(iter(trainer.val_dataloaders)).support.x.shape[2:] == (64,)  # type: ignore[arg-type]


def test_after_a_test_on_features_it_predicts_images() -> None:
    module, _ = protonet()
    outputs_of(module)
    pool = toys.NoisyPictures().pools()["test"]
    images, labels = pool.x.view(5, 8, 1, 16, 16), [0] * 4 + [1] * 4
    support, query = (torch.cat([images[0, part], images[1, part]]) for part in (slice(4), slice(4, 8)))
    assert module.predictor(support, labels)(query) == labels


# A method that looks at pixels.


def rfs(augmented: bool, **options: Any) -> lm.RFS:
    torch.manual_seed(0)
    augmentation = lm.Augmentation(2) if augmented else None
    return lm.RFS(Frozen(conv4()), augmentation, support_views=2, **options)


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    torch.manual_seed(1)
    run = lm.fit(lm.RFS(conv4()), toys.pictures(), name="teacher", runs=tmp_path, seed=0, max_steps=1, **OF_RUNS)
    return str(run.directory)


@pytest.mark.parametrize("reason", ["augmentation", "teacher"])
def test_support_images_that_are_augmented_and_images_for_a_teacher_stay_images(
    reason: str, request: pytest.FixtureRequest, tmp_path: Path, cache: Path
) -> None:
    options = {"teacher": request.getfixturevalue("teacher")} if reason == "teacher" else {}
    module = rfs(augmented=reason == "augmentation", **options)
    run = lm.fit(module, toys.pictures(), name="frozen", runs=tmp_path, seed=0, max_steps=2, **OF_RUNS)
    assert run.directory is not None
    assert not cache.exists()
    loaded = lm.load(run.directory)
    (found,) = lm.evaluate(loaded, toys.pictures(), accelerator="cpu")
    assert found.score == pytest.approx(run.metrics["test/accuracy"])
    pool = toys.NoisyPictures().pools()["test"]
    images = pool.x.view(5, 8, 1, 16, 16)[:2].flatten(0, 1)
    labels = [0] * 8 + [1] * 8
    predictor = loaded.predictor(images, labels)
    x = loaded.inputs(images)
    with torch.no_grad():
        state = loaded.adapt(lm.Examples(x, torch.tensor(labels)), 2)
    torch.testing.assert_close(predictor.state, state)
    assert set(predictor(images)) == {0, 1}


def test_without_both_it_is_given_features(cache: Path) -> None:
    features, images = rfs(augmented=False), without_cache_of_rfs(rfs(augmented=False))
    np.testing.assert_allclose(outputs_of(features), outputs_of(images), atol=1e-4)
    assert len(list(cache.iterdir())) == 1


def without_cache_of_rfs(module: lm.RFS) -> lm.RFS:
    module.teacher = Teacher("none", lm.RFS)  # nobody asks it in a test
    return module


class Unfreezing(lightning.Callback):
    """Trains the backbone, too, from the second epoch on."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            frozen = pl_module.backbone[0].requires_grad_(True)
            trainer.optimizers[0].add_param_group({"params": list(frozen.parameters())})


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
def test_a_backbone_that_is_unfrozen_in_between_is_not_left_untrained_in_silence() -> None:
    def fit(module: lm.MetaModule) -> None:
        trainer = lightning.Trainer(max_epochs=2, callbacks=[Unfreezing()], enable_checkpointing=False, **QUIET)
        trainer.fit(module, toys.pictures())

    def module() -> lm.MetaModule:
        torch.manual_seed(0)
        return lm.ProtoNet(nn.Sequential(Frozen(conv4()), nn.Linear(64, 8)), optimizer=partial(torch.optim.SGD, lr=0.1))

    with pytest.raises(
        UserError, match=r"^backbone: it was unfrozen, but .* precomputed features.*needs_images = True"
    ):
        fit(module())
    on_images = without_cache(module())
    before = {name: tensor.clone() for name, tensor in on_images.backbone[0].named_parameters()}  # type: ignore[index]
    fit(on_images)
    after = dict(on_images.backbone[0].named_parameters())  # type: ignore[index]
    assert not all(torch.equal(tensor, after[name]) for name, tensor in before.items())
