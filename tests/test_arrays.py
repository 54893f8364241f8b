"""Arrays in any byte order and layout, at each place where a user's array becomes a tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lightning_meta as lm
from lightning_meta.arrays import plain_numbers, tensor_of
from lightning_meta.data import Pool
from lightning_meta.tasks import EpisodeSpec

STORED = {
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "longer than float64": lambda array: array.astype(np.longdouble),
    "read-only": lambda array: np.broadcast_to(array, array.shape),
    "reversed": lambda array: array[::-1].copy()[::-1],
    "a field of packed records": lambda array: _field(array),
}
X = np.random.default_rng(0).random((8, 1, 4, 4))
Y = np.array([0, 1] * 4)


def _field(array: Any) -> Any:
    records = np.zeros(array.shape, [("odd", "u1"), ("value", array.dtype)])
    records["value"] = array
    return records["value"]


@pytest.fixture(params=STORED)
def stored(request: pytest.FixtureRequest) -> Any:
    """A function that stores the values of an array in another way."""
    return STORED[request.param]


def test_tensors_have_the_values_of_the_array(stored: Any) -> None:
    for array in (X, X.astype(np.float32), Y, X > 0.5):
        assert torch.equal(tensor_of(stored(array)), torch.from_numpy(array).to(tensor_of(stored(array)).dtype))
    assert tensor_of(stored(X)).dtype == torch.float64
    ours = X.copy()
    assert tensor_of(ours).data_ptr() == ours.ctypes.data


def test_examples_of_a_data_set(stored: Any) -> None:
    train, val, test = ([(stored(x), label + 2 * part) for x, label in zip(X, Y, strict=True)] for part in range(3))
    pools = lm.sources.FromDataset(train, val, test).pools()
    assert torch.equal(pools["test"].x, torch.from_numpy(X[Y.argsort(kind="stable")]))


def test_labels_of_a_pool(stored: Any) -> None:
    pool = Pool.from_examples(torch.from_numpy(X), stored(Y), ["a", "b"])
    assert torch.equal(pool.x, torch.from_numpy(X[Y.argsort(kind="stable")]))


def test_images_of_an_estimator(stored: Any) -> None:
    own, plain = (lm.estimators.FewShotClassifier(nn.Flatten()).fit(x, Y) for x in (stored(X), X))
    np.testing.assert_array_equal(own.predict_proba(stored(X)), plain.predict_proba(X))


def test_inputs_of_a_predictor(stored: Any) -> None:
    module = lm.ProtoNet(nn.Flatten(), episodes=EpisodeSpec(input_shape=(1, 4, 4), outputs=2, input_dtype="float32"))
    module.configure_model()
    expected = module.predictor(torch.from_numpy(X), Y.tolist()).outputs(torch.from_numpy(X))
    given: list[Any] = [stored(X), list(map(stored, X))]
    for x in given:
        assert torch.equal(module.predictor(x, stored(Y)).outputs(x), expected)


def test_state_dicts_keep_the_versions_of_their_modules() -> None:
    stored = nn.BatchNorm1d(2).state_dict()
    copied = plain_numbers({"current_model_state": stored, "lr": np.float64(0.1)})
    assert copied["current_model_state"]._metadata == stored._metadata  # type: ignore[attr-defined]
    assert copied["current_model_state"] is not stored
    assert type(copied["lr"]) is float
