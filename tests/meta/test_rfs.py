"""RFS: its classifier against scikit-learn, its training and its distillation against plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import lightning_meta as lm
from lightning_meta.batches import Episode, Examples
from lightning_meta.errors import UserError
from lightning_meta.functional import TaskMap
from lightning_meta.nn import Conv4
from lightning_meta.tasks import EpisodeSpec
from lightning_meta.testing import toys
from tests.meta.test_baseline import episode

SPEC = EpisodeSpec("classification", (1, 28, 28), 3, 10)


def rfs(**options: Any) -> lm.RFS:
    torch.manual_seed(0)
    return lm.RFS(Conv4(1, width=4), **{"episodes": SPEC, **options}).double()


def first_task(batch: Episode) -> tuple[Examples, Examples]:
    support, query = (Examples(part.x[0], part.y[0]) for part in (batch.support, batch.query))
    return support, query


def unit_features(module: lm.RFS, x: Tensor) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        features = module.network(x).numpy()
    return features / np.linalg.norm(features, axis=1, keepdims=True)


@pytest.mark.parametrize("views", [1, 5])
def test_a_task_gets_the_authors_classifier(views: int) -> None:
    """As `meta_eval.py` of the authors fits it to the features that it scales."""
    module = rfs(augmentation=lm.Augmentation(4), support_views=views).eval()
    support, query = first_task(episode())
    ours = module.predict(module.adapt(support, 3), query.x).softmax(-1)

    augmented = module.views(support)
    assert len(augmented.x) == views * len(support.x)
    oracle = LogisticRegression(C=1, tol=1e-12, max_iter=10_000)
    oracle.fit(unit_features(module, augmented.x), augmented.y.numpy())
    expected = oracle.predict_proba(unit_features(module, query.x))
    np.testing.assert_allclose(ours.detach().numpy(), expected, atol=1e-6)


def test_views_are_augmentations_of_each_image_with_its_label() -> None:
    """With crops alone every view is a shifted copy; no two views of an image are bound to be the same."""
    module = rfs(augmentation=lm.Augmentation(2, flip=False, jitter=0), support_views=6)
    support, _ = first_task(episode())
    views = module.views(support)
    padded = nn.functional.pad(support.x, (2, 2, 2, 2))
    crops = padded.unfold(2, 28, 1).unfold(3, 28, 1).flatten(1, 3)  # (M, 25, 28, 28)
    places = []
    for i, (x, y) in enumerate(zip(views.x, views.y, strict=True)):
        assert y == support.y[i // 6]
        (place,) = [k for k in range(25) if torch.equal(crops[i // 6, k], x[0])]
        places.append(place)
    assert len(set(places)) > 10


def test_views_depend_on_the_image_alone() -> None:
    """Neither on its class's number nor on what else is in the support set; and the images are left as they were."""
    module = rfs(augmentation=lm.Augmentation(4), support_views=3)
    support, _ = first_task(episode())
    before = support.x.clone()
    views = module.views(support).x.unflatten(0, (-1, 3))
    alone = module.views(Examples(support.x[2:3], 1 - support.y[2:3])).x
    torch.testing.assert_close(views[2], alone, rtol=0, atol=0)
    assert torch.equal(support.x, before)
    assert not torch.equal(views[2, 0], views[2, 1])


def test_without_augmentation_the_support_set_is_as_it_is() -> None:
    support, _ = first_task(episode())
    assert rfs(support_views=5).views(support) is support


def test_training_classifies_every_image_among_all_training_classes() -> None:
    module, batch = rfs(), episode()
    outcome = module.meta_batch_loss(batch)
    x, y = every_image(batch)
    expected = nn.functional.cross_entropy(module.classifier(module.network(x)), y)  # features are not scaled here
    torch.testing.assert_close(outcome.loss.squeeze(), expected)


def every_image(batch: Episode) -> tuple[Tensor, Tensor]:
    assert batch.classes is not None
    images, labels = [], []
    for task in range(len(batch.tasks)):
        images += [batch.support.x[task], batch.query.x[task]]
        labels += [batch.classes[task][part.y[task]] for part in (batch.support, batch.query)]
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_tasks_do_not_depend_on_how_they_are_visited_and_leave_no_trace(strategy: str) -> None:
    module = rfs(augmentation=lm.Augmentation(4)).eval()
    before, random = {n: t.clone() for n, t in module.state_dict().items()}, torch.get_rng_state()
    batch = episode()
    support, query = first_task(batch)
    expected = module.predict(module.adapt(support, 3), query.x)
    module.task_map = TaskMap(strategy)  # type: ignore[arg-type]
    with torch.inference_mode():
        outputs = module.predict_step(batch, 0)
    torch.testing.assert_close(outputs[0], expected, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


# Distillation.


def data(seed: int = 0) -> lm.EpisodicDataModule:
    return toys.pictures()


def small(**options: Any) -> lm.RFS:
    torch.manual_seed(1)
    return lm.RFS(Conv4(1, width=4, blocks=2), **options)


def trained(folder: Path, name: str, steps: int = 2, **options: Any) -> Path:
    fit: dict[str, Any] = {"runs": folder, "name": name, "max_steps": steps, "accelerator": "cpu"}
    quiet = {"enable_progress_bar": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
    module = options.pop("module", None) or small(**options)
    return Path(lm.fit(module, toys.pictures(), seed=0, **fit, **quiet).directory)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("teacher"), "teacher")


def test_a_student_learns_labels_and_predictions_in_equal_shares(teacher: Path) -> None:
    """The loss of `train_distillation.py -r 0.5 -a 0.5` of the authors, written with plain torch."""
    pictures = data()
    pictures.prepare_data()
    pictures.setup("fit")
    student = small(teacher=str(teacher), episodes=pictures.spec)
    batch = student.inputs(pictures.datasets["train"].__getitems__(range(pictures.meta_batch_size)))
    attach(student, pictures)
    loss = student.meta_batch_loss(batch).loss.mean()
    x, y = every_image(batch)
    model = lm.load(teacher)
    with torch.no_grad():
        taught = model.classifier(model.network(x))
    outputs = student.classifier(student.network(x))
    divergence = (taught / 4).softmax(1) * ((taught / 4).log_softmax(1) - (outputs / 4).log_softmax(1))
    expected = 0.5 * nn.functional.cross_entropy(outputs, y) + 0.5 * 16 * divergence.sum() / len(y)
    torch.testing.assert_close(loss, expected)
    assert student.teacher is not None
