"""A new task from its support set in one call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from lightning_meta.batches import Examples
from lightning_meta.errors import UserError
from lightning_meta.meta import MAML, MetaModule, ProtoNet
from lightning_meta.nn import MLP, Conv4, Frozen
from lightning_meta.tasks import EpisodeSpec
from tests.meta.oracles import KINDS, Snapshot, episodes, maml, maml_outputs, maml_trajectory, roughen, task

SPEC = EpisodeSpec("classification", (1, 8, 8), 3)
METHODS = {
    "protonet": lambda **o: ProtoNet(Conv4(1, 4, blocks=2), episodes=SPEC, **o),
    "protonet inductive": lambda **o: ProtoNet(Conv4(1, 4, blocks=2), batch_norm="inductive", episodes=SPEC, **o),
    "maml": lambda **o: MAML(Conv4(1, 4, blocks=2), 0.1, 3, batch_norm="inductive", episodes=SPEC, **o),
}


def method(name: str) -> MetaModule:
    module = METHODS[name]()
    roughen(module)
    return module


def images() -> tuple[Tensor, Tensor]:
    """Support and query images of three classes, way-major, as uint8."""
    g = torch.Generator().manual_seed(0)
    centres = torch.randint(60, 200, (3, 1, 8, 8), generator=g)
    noisy = [centres.repeat_interleave(n, 0) + torch.randint(-40, 40, (3 * n, 1, 8, 8), generator=g) for n in (2, 4)]
    return noisy[0].to(torch.uint8), noisy[1].to(torch.uint8)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "names",
    [
        ["owl", "ant", "bee"],
        [7, -2, 300],
        [2.5, 0.5, 1.5],
        [("a", 1), ("a", 0), ("b", 0)],
        [True, "yes", 2.5],  # cannot be sorted
    ],
    ids=["strings", "integers", "floats", "tuples", "mixed"],
)
def test_labels_of_any_kind_in_any_order(name: str, names: list[Any]) -> None:
    module = method(name).eval()
    support, query = images()
    order = torch.tensor([3, 0, 5, 2, 4, 1])
    predictor = module.predictor(support[order], [names[i // 2] for i in order])
    assert set(predictor.classes) == set(names)

    columns = torch.tensor([predictor.classes.index(n) for n in names])
    labels = columns[torch.arange(6) // 2]
    with torch.no_grad():
        expected = module.predict(module.adapt(Examples(support / 255, labels), 3), query / 255)
    torch.testing.assert_close(predictor.outputs(query), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predictor.probabilities(query).sum(-1), torch.ones(len(query)))
    assert predictor(query) == [predictor.classes[n] for n in expected.argmax(-1)]


def test_finds_the_classes() -> None:
    support, query = images()
    nearest_pixels = ProtoNet(nn.Flatten(), episodes=SPEC)
    predictor = nearest_pixels.predictor(support, ["owl", "owl", "ant", "ant", "bee", "bee"])
    assert predictor.classes == ["ant", "bee", "owl"]
    assert predictor(query) == ["owl"] * 4 + ["ant"] * 4 + ["bee"] * 4


def test_labels_may_be_a_tensor() -> None:
    support, query = images()
    labels = [4, 4, 9, 9, 1, 1]
    module = method("protonet")
    predictors = [module.predictor(support, given) for given in (labels, torch.tensor(labels))]
    assert predictors[0].classes == predictors[1].classes == [1, 4, 9]
    assert predictors[0](query) == predictors[1](query)


@pytest.mark.parametrize("name", METHODS)
def test_stored_images_and_real_ones_agree(name: str) -> None:
    module = method(name)
    support, query = images()
    labels = list("aabbcc")
    stored, real = module.predictor(support, labels), module.predictor(support / 255, labels)
    torch.testing.assert_close(stored.outputs(query), real.outputs(query / 255))
    torch.testing.assert_close(stored.outputs(query), stored.outputs(query / 255))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("training", [True, False])
def test_the_module_is_left_as_it_was(name: str, training: bool) -> None:
    module = method(name).train(training)
    before = Snapshot(module)
    support, query = images()
    predictor = module.predictor(support, list("aabbcc"))
    first = predictor.outputs(query)
    before.assert_unchanged()
    assert all(m.training == training for m in module.network.modules())
    assert not first.requires_grad
    assert torch.equal(predictor.outputs(query), first)


@pytest.mark.parametrize("cls", [MAML, ProtoNet])
def test_a_module_fresh_from_training_predicts_as_one_in_evaluation_mode(cls: Any) -> None:
    options = {"inner_steps": 1, "test_inner_steps": 4, "inner_lr": 0.1} if cls is MAML else {}
    spec = KINDS["mlp"].spec
    module = cls(nn.Sequential(MLP(6, (16,)), nn.Dropout(0.5)), episodes=spec, **options)
    support, query = task(episodes(spec, dtype=torch.float32), 0)
    outputs = [module.train(mode).predictor(support.x, support.y).outputs(query.x) for mode in (False, True)]
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("name", ["protonet", "protonet inductive"])
def test_metric_methods_serve_any_way(name: str) -> None:
    module = method(name)
    support, query = images()
    for classes, labels in (2, "aabbbb"), (4, "aabbcd"), (6, "abcdef"):
        predictor = module.predictor(support, list(labels))
        assert predictor.outputs(query).shape == (12, classes)
        assert torch.isfinite(predictor.outputs(query)).all()


@pytest.mark.parametrize("batch_norm", ["transductive", "inductive"])
def test_regression(batch_norm: Any) -> None:
    module = maml("regression", torch.float32, inner_steps=1, test_inner_steps=3, batch_norm=batch_norm)
    support, query = task(episodes(module.spec, dtype=torch.float32), 0)
    for targets in (support.y, support.y.tolist()):
        predictor = module.predictor(support.x, targets)
        expected = maml_outputs(module, maml_trajectory(module, support, 3)[-1], support, query.x)
        assert predictor.classes == []
        torch.testing.assert_close(predictor(query.x), expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "labels", "says"),
    [
        ("maml", (4, 1, 8, 8), "abcd", ["3 ways", "got 4", "ProtoNet support any"]),
        ("maml", (4, 1, 8, 8), "aabb", ["3 ways", "got 2"]),
        ("protonet", (4, 8, 8), "aabb", ["(M, 1, 8, 8) are needed, got (4, 8, 8)"]),
        ("protonet", (4, 3, 8, 8), "aabb", ["(M, 1, 8, 8) are needed, got (4, 3, 8, 8)"]),
        ("protonet", (4, 1, 8, 8), "aab", ["labels: one for each of the 4 support inputs is needed, got 3"]),
        ("protonet", (0, 1, 8, 8), "", ["support", "at least one"]),
    ],
)
def test_support_sets_that_do_not_fit_are_refused_in_one_line(
    name: str, shape: tuple[int, ...], labels: str, says: list[str]
) -> None:
    with pytest.raises(UserError) as raised:
        method(name).predictor(torch.rand(shape), list(labels))
    message = str(raised.value)
    assert "\n" not in message
    assert [part for part in says if part not in message] == []


def test_labels_that_are_no_labels_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"labels: 6 names or numbers are needed, got \[0.0\] for the first"):
        method("protonet").predictor(images()[0], torch.zeros(6, 1))


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT], ids=str)
def test_missing_labels_are_no_classes(missing: Any) -> None:
    labels: list[Any] = ["owl", "owl", "ant", missing, "bee", missing]
    with pytest.raises(UserError, match=r"^labels: 2 of 6 are missing: labels\[3\] is .*; leave their examples out$"):
        method("protonet").predictor(images()[0], labels)
    with pytest.raises(UserError, match=r"^labels: 1 of 6 are missing: labels\[1\] is nan; "):
        method("protonet").predictor(images()[0], torch.tensor([0, torch.nan, 1, 1, 2, 2]))


def test_one_class_is_refused() -> None:
    with pytest.raises(UserError, match=r"^labels: at least 2 classes are needed, all 6 labels are 'owl'$"):
        method("protonet").predictor(images()[0], ["owl"] * 6)


def test_regression_targets_that_do_not_fit_are_refused_in_one_line() -> None:
    module = maml("regression", torch.float32)
    x = torch.rand(4, 2)
    with pytest.raises(UserError, match=r"regression targets end in a dimension of 2, these are \(4,\)"):
        module.predictor(x, torch.rand(4))
    with pytest.raises(UserError, match="finite"):
        module.predictor(x, torch.full((4, 2), float("nan")))
    far = 1_700_000_000 + torch.arange(8).double().view(4, 2)  # the network computes in float32
    with pytest.raises(UserError, match=r"float32 cannot tell these targets apart; subtract a constant"):
        module.predictor(x, far)


def test_inputs_to_predict_are_checked_as_well() -> None:
    predictor = method("protonet").predictor(images()[0], list("aabbcc"))
    with pytest.raises(UserError, match=r"\(M, 1, 8, 8\) are needed, got \(8, 8\)"):
        predictor(torch.rand(8, 8))


def test_a_frozen_backbone_whose_features_of_a_class_overflow_is_refused() -> None:
    """Distances to an infinite class mean are infinite: the class would be missing from all predictions."""

    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (200_000 * x.flatten(1)).half().float()

    support, _ = images()
    support[:2] = 255
    support[2:] = 50
    module = ProtoNet(Frozen(Half()), episodes=SPEC)
    with pytest.raises(UserError, match="backbone: Frozen makes features that are NaN or infinite for 2 of 6 support"):
        module.predictor(support, ["owl", "owl", "ant", "ant", "bee", "bee"])
