"""RFS: its classifier against scikit-learn, its training and its distillation against plain torch."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import lightning_meta as lm
from lightning_meta.batches import Episode, Examples, Split
from lightning_meta.data import Pool
from lightning_meta.errors import UserError
from lightning_meta.functional import TaskMap
from lightning_meta.nn import MLP, Conv4
from lightning_meta.run.differences import differences
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
    """The authors' `meta_eval.py` fits this classifier to scaled features."""
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
    """Views do not depend on the number of the class or on other support images, and images are not changed."""
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


def small(**options: Any) -> lm.RFS:
    torch.manual_seed(1)
    return lm.RFS(Conv4(1, width=4, blocks=2), **options)


def trained(folder: Path, name: str, steps: int = 2, module: lm.MetaModule | None = None, **options: Any) -> Path:
    """The directory of a run on `toys.pictures`."""
    quiet: dict[str, Any] = {"enable_progress_bar": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
    run = lm.fit(
        small() if module is None else module,
        options.pop("data", None) or toys.pictures(),
        **{"runs": folder, "name": name, "seed": 0, "max_steps": steps, "accelerator": "cpu", **quiet, **options},
    )
    assert run.directory is not None
    return run.directory


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("teacher"), "teacher")


def test_a_student_learns_labels_and_predictions_in_equal_shares(teacher: Path) -> None:
    """The loss of the authors' `train_distillation.py -r 0.5 -a 0.5 --kd_T 4`, written with plain torch."""
    data = toys.pictures()
    data.prepare_data()
    data.setup("fit")
    student = small(teacher=str(teacher), episodes=data.spec)
    assert student.teacher is not None
    student.teacher.load(student)
    batch = student.inputs(data.datasets["train"].__getitems__(range(data.meta_batch_size)))
    loss = student.meta_batch_loss(batch).loss.mean()

    x, y = every_image(batch)
    model = lm.load(teacher)
    with torch.no_grad():
        taught = model.classifier(model.network(x)) / 4  # in evaluation mode
    outputs = student.classifier(student.network(x))
    divergence = taught.softmax(1) * (taught.log_softmax(1) - (outputs / 4).log_softmax(1))
    expected = 0.5 * nn.functional.cross_entropy(outputs, y) + 0.5 * 4**2 * divergence.sum() / len(y)
    torch.testing.assert_close(loss, expected)


@pytest.mark.slow
def test_a_student_does_without_its_teacher_once_it_is_trained(teacher: Path, tmp_path: Path) -> None:
    """Its checkpoint has no weights of the teacher; without the teacher it can be loaded, predict and teach."""
    copy = tmp_path / "teacher"
    shutil.copytree(teacher, copy)
    first = trained(tmp_path, "first", module=small(teacher=str(copy)))
    shutil.rmtree(copy)
    module = lm.load(first)
    assert module.state_dict().keys() == lm.load(teacher).state_dict().keys()
    assert module.predictor(torch.rand(4, 1, 16, 16), ["a", "a", "b", "b"])(torch.rand(2, 1, 16, 16))
    second = trained(tmp_path, "second", module=small(teacher=str(first)))
    assert not torch.equal(lm.load(second).classifier.weight, module.classifier.weight)


@pytest.mark.slow
def test_a_resumed_student_is_exact_and_needs_the_same_teacher(teacher: Path, tmp_path: Path) -> None:
    def student() -> lm.RFS:
        return small(teacher=str(tmp_path / "teacher"))

    shutil.copytree(teacher, tmp_path / "teacher")
    whole = trained(tmp_path, "whole", 4, student())
    part = trained(tmp_path, "part", 2, student())
    shutil.move(tmp_path / "teacher", tmp_path / "away")
    with pytest.raises(
        UserError, match=r"^teacher: no checkpoint at .*teacher: .*; training needs it, also when it is"
    ):
        trained(tmp_path, "part", 4, student(), resume=part)
    trained(tmp_path, "teacher_of_later", 4)
    shutil.move(tmp_path / "teacher_of_later" / "0", tmp_path / "teacher")
    with pytest.raises(
        UserError, match=r"teacher: .*teacher is not the model that the run has learned from so far; res"
    ):
        trained(tmp_path, "part", 4, student(), resume=part)
    shutil.rmtree(tmp_path / "teacher")
    shutil.move(tmp_path / "away", tmp_path / "teacher")
    resumed = trained(tmp_path, "part", 4, student(), resume=part)
    weights = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (whole, resumed)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
def test_a_teacher_may_move(teacher: Path, tmp_path: Path) -> None:
    """Equal weights are enough: no `allow_changes` is needed."""
    shutil.copytree(teacher, tmp_path / "moved")
    part = trained(tmp_path, "part", 1, small(teacher=str(teacher)))
    trained(tmp_path, "part", 2, small(teacher=str(tmp_path / "moved")), resume=part)


class OtherPictures(toys.NoisyPictures):
    """Training classes in another order."""

    def pools(self) -> dict[Split, Pool]:
        pools = super().pools()
        return {**pools, "train": pools["train"].select(range(7, -1, -1))}


class Fewer(toys.NoisyPictures):
    def pools(self) -> dict[Split, Pool]:
        pools = super().pools()
        return {**pools, "train": pools["train"].select(range(6))}


@pytest.mark.slow
def test_refuses_a_teacher_that_knows_other_classes(teacher: Path, tmp_path: Path) -> None:
    for source, message in (
        (OtherPictures(), "was trained on other images or classes; give one that learned from these$"),
        (Fewer(), "was trained on classes 8, these data have 6$"),
    ):
        data = toys.pictures()
        data.source = source
        with pytest.raises(UserError, match=f"^teacher: .*last.ckpt {message}"):
            trained(tmp_path, "student", module=small(teacher=str(teacher)), data=data)
    baseline = trained(tmp_path, "baseline", module=lm.Baseline(Conv4(1, width=4, blocks=2)))
    with pytest.raises(UserError, match=r"^teacher: a run of RFS is needed, .*last.ckpt is of Baseline$"):
        trained(tmp_path, "student", module=small(teacher=str(baseline)))
    assert not (tmp_path / "student").exists()


class Own(nn.Module):
    """A network of a user's, of which a stranger's checkpoint may not make one."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def test_a_teacher_may_be_made_of_what_the_student_is_made_of_and_of_nothing_else(tmp_path: Path) -> None:
    own = trained(tmp_path, "own", module=lm.RFS(Own()))
    trained(tmp_path, "student", module=lm.RFS(Own(), teacher=str(own)))
    with pytest.raises(UserError, match=r"^teacher: .*last.ckpt: .*test_rfs.Own is not trusted"):
        trained(tmp_path, "other", module=small(teacher=str(own)))


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(UserError, match="support_views: at least 1 is needed, got 0"):
        lm.RFS(Conv4(), support_views=0)
    with pytest.raises(UserError, match="augmentation: an Augmentation is needed, got Sequential"):
        lm.RFS(Conv4(), augmentation=nn.Sequential())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="teacher: a str is needed, got the class RFS"):
        lm.RFS(Conv4(), teacher=lm.RFS)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"augmentation: images \(channels, height, width\)"):
        lm.RFS(MLP(8, (4,)), lm.Augmentation(), episodes=EpisodeSpec("classification", (8,), 3, 10))
    with pytest.raises(UserError, match="RFS classifies"):
        lm.RFS(MLP(), episodes=EpisodeSpec("regression", (1,), 1))


def test_a_teacher_neither_comes_nor_goes_on_a_resume() -> None:
    def model(teacher: str | None) -> dict[str, Any]:
        return {"model": {"class_path": "lightning_meta.RFS", "init_args": {"teacher": teacher}}}

    for before, now in (("runs/a/0", None), (None, "runs/a/0")):
        (difference,) = differences(model(before), model(now))
        assert (difference.option, difference.kind) == ("model.teacher", "meaning")
    (moved,) = differences(model("runs/a/0"), model("elsewhere/a/0"))
    assert moved.kind == "harmless"
