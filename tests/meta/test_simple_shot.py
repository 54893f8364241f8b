"""SimpleShot against scikit-learn's nearest centroid, and its centre against the training images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestCentroid
from torch.utils.data import DataLoader

import lightning_meta as lm
from lightning_meta.batches import Examples
from lightning_meta.errors import UserError
from lightning_meta.meta.centred import MOST_IMAGES
from lightning_meta.nn import MLP, Conv4, Frozen
from lightning_meta.tasks import EpisodeSpec
from lightning_meta.testing import toys
from tests.meta.oracles import episodes, roughen, task

SPEC = EpisodeSpec("classification", (6,), 3, 10)
SILENT: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False}


def centred_and_scaled(features: Any, centre: Any) -> Any:
    apart = features - centre
    return apart / np.linalg.norm(apart, axis=1, keepdims=True)


@pytest.mark.parametrize("shots", [1, 4])
def test_it_is_the_nearest_centroid_of_scikit_learn_on_centred_unit_features(shots: int) -> None:
    torch.manual_seed(3)
    module = lm.SimpleShot(MLP(6, (8, 5)), episodes=SPEC).double()
    roughen(module.backbone)
    module.centre.copy_(torch.randn(5))
    support, query = task(episodes(SPEC, shots=shots, queries=30), 0)

    def of_numpy(x: torch.Tensor) -> Any:
        return centred_and_scaled(module.backbone(x).detach().numpy(), module.centre.numpy())

    features, y = of_numpy(support.x), support.y.numpy()
    # Two about each: it warns of classes of one example, whose variance is none.
    peer = NearestCentroid().fit(np.concatenate([features - 0.1, features + 0.1]), np.concatenate([y, y]))
    found = module.predict(module.adapt(support, 3), query.x).detach().numpy()
    distances = ((of_numpy(query.x)[:, None] - peer.centroids_) ** 2).sum(-1)
    np.testing.assert_allclose(-found, distances, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found.argmax(-1), peer.predict(of_numpy(query.x)))


def mean_feature(module: lm.SimpleShot) -> torch.Tensor:
    """The mean feature of all training images, computed one by one in evaluation mode."""
    pool = toys.pictures().source.pools()["train"]  # type: ignore[union-attr]
    backbone = module.backbone.eval()
    with torch.no_grad():
        return torch.cat([backbone(image[None].float() / 255) for image in pool.x]).mean(0)


def test_the_centre_is_that_of_the_training_classes_and_of_the_weights_in_the_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = lm.SimpleShot(Conv4(1, width=4, blocks=2))
    run = lm.fit(module, toys.pictures(), name="a", runs=tmp_path, seed=0, max_steps=6, **SILENT)
    assert run.directory is not None
    for checkpoint in ("best.ckpt", "last.ckpt"):
        again = lm.load(run.directory / "checkpoints" / checkpoint)
        assert isinstance(again, lm.SimpleShot)
        assert again.centre.abs().max() > 0.01
        torch.testing.assert_close(again.centre, mean_feature(again), rtol=1e-4, atol=1e-5)


def test_a_frozen_network_that_is_never_trained_has_a_centre_too(tmp_path: Path) -> None:
    module = lm.SimpleShot(Frozen(Conv4(1, width=4, blocks=2)))
    run = lm.fit(module, toys.pictures(), name="a", runs=tmp_path, seed=0, max_steps=0, **SILENT)
    assert run.directory is not None
    again = lm.load(run.directory)
    assert isinstance(again, lm.SimpleShot)
    torch.testing.assert_close(again.centre, mean_feature(again), rtol=1e-4, atol=1e-5)


def test_training_images_are_of_all_classes_evenly_turned_ones_included() -> None:
    data = lm.EpisodicDataModule(toys.NoisyPictures(), ways=3, shots=1, queries=1, rotations=["train"])
    data.setup("fit")
    pool = toys.NoisyPictures().pools()["train"]
    found = data.training_images(64)
    quarters = [torch.rot90(pool.x, turn, dims=(-2, -1)) for turn in range(4)]
    of_turn = [sum(any(torch.equal(image, x) for x in turned) for image in found) for turned in quarters]
    assert of_turn == [16, 16, 16, 16]
    assert len(data.training_images(MOST_IMAGES)) == 4 * len(pool.x)


def test_without_a_data_module_it_says_what_is_missing() -> None:
    data = toys.pictures()
    data.setup("fit")
    loader = DataLoader(data.datasets["train"], batch_size=4, collate_fn=lambda batch: batch)
    module = lm.SimpleShot(MLP(256, (8,)), episodes=data.spec)
    trainer = lightning.Trainer(
        max_steps=1, logger=False, enable_checkpointing=False, enable_model_summary=False, **SILENT
    )
    with pytest.raises(UserError, match="fit it with an EpisodicDataModule"):
        trainer.fit(module, train_dataloaders=loader, val_dataloaders=loader)


def test_centring_changes_what_is_predicted() -> None:
    """Features that share a large part are told apart by the rest."""
    module = lm.SimpleShot(torch.nn.Flatten(), episodes=SPEC)
    common = torch.tensor([50.0, 0, 0, 0, 0, 0])
    x = torch.eye(6)[1:4]
    support = Examples(x + common, torch.tensor([0, 1, 2]))
    queries = 0.2 * x + common  # along the same directions from the centre
    module.centre.copy_(common)
    found = module.predict(module.adapt(support, 3), queries)
    torch.testing.assert_close(found.diagonal(), torch.zeros(3), atol=1e-4, rtol=0)
    assert found[0, 1] < -1.9


def test_a_checkpoint_between_validations_holds_the_centre_of_its_own_weights(tmp_path: Path) -> None:
    module = lm.SimpleShot(Conv4(1, width=4, blocks=2))
    options: dict[str, Any] = {**SILENT, "limit_val_batches": 0, "checkpoint": lm.RunCheckpoint(monitor=None)}
    run = lm.fit(module, toys.pictures(), name="a", runs=tmp_path, seed=0, max_steps=6, **options)
    assert run.directory is not None
    again = lm.load(run.directory / "checkpoints" / "last.ckpt")
    assert isinstance(again, lm.SimpleShot)
    torch.testing.assert_close(again.centre, mean_feature(again), rtol=1e-4, atol=1e-5)
