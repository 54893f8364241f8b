"""A new task from its support set in one call."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
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


TABLE = pd.DataFrame({"pump": list("aaabbb"), "x": [0.0, 0.5, 1.0] * 2, "flow": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]})
OF_B = TABLE[TABLE["pump"] == "b"]  # its index begins at 3
INPUTS = torch.tensor([[0.0], [0.5], [1.0]])


def of_numbers(**options: Any) -> MAML:
    torch.manual_seed(0)
    return MAML(MLP(1, [8]), 0.1, 3, episodes=EpisodeSpec("regression", (1,), 1, **options))


@pytest.mark.parametrize(
    "targets",
    [
        OF_B["flow"],
        OF_B["flow"].astype("int32"),
        OF_B["flow"].astype("Float64"),
        OF_B[["flow"]].to_numpy(),
        OF_B["flow"].to_numpy()[::-1][::-1],
        (4, 5, 6),
        [Decimal("4"), Fraction(5), 6.0],
        list(torch.tensor([4.0, 5.0, 6.0])),
        list(torch.tensor([[4.0], [5.0], [6.0]])),
        np.array([4, 5, 6], dtype=object),
        np.array([4, 5, 6], dtype=">u2"),
    ],
    ids=lambda targets: type(targets).__name__,
)
def test_regression_targets_of_any_container(targets: Any) -> None:
    module = of_numbers()
    expected = module.predictor(INPUTS, torch.tensor([4.0, 5.0, 6.0]))(INPUTS)
    torch.testing.assert_close(module.predictor(INPUTS, targets)(INPUTS), expected, rtol=0, atol=0)


def test_targets_in_a_list_keep_their_digits() -> None:
    """float32 cannot tell these targets apart, but their standardised values can be."""
    module = of_numbers(target_mean=(1.7e9,), target_scale=(1.0,))
    targets = [1.7e9 - 1, 1.7e9, 1.7e9 + 1]
    expected = module.predictor(INPUTS, torch.tensor(targets, dtype=torch.float64))(INPUTS)
    torch.testing.assert_close(module.predictor(INPUTS, targets)(INPUTS), expected, rtol=0, atol=0)
    with pytest.raises(UserError, match=r"^labels: .* cannot tell these targets apart"):
        of_numbers().predictor(INPUTS, targets)


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (OF_B[["flow"]], "got DataFrame; give labels"),
        (["4.0", "5.0", "6.0"], "got '4.0'"),
        (OF_B["pump"], "got 'b'"),
        (OF_B["pump"].astype("category"), "got 'b'"),
        ([4.0, None, 6.0], r"labels\[1\] is None; leave its example out"),
        (pd.Series([4, pd.NA, 6], dtype=object), r"labels\[1\] is <NA>; leave its example out"),
        (pd.Series([4, None, 6], dtype="Int64"), "finite"),
        ([4.0, float("nan"), 6.0], "finite"),
        ([True, False, True], "got True"),
        (torch.tensor([True, False, True]), "got a tensor of torch.bool"),
        (np.array([True, 1.0, 2.0], dtype=object), "got True"),
        ([1j, 2j, 3j], "got 1j"),
        (torch.tensor([1j, 2j, 3j]), "got a tensor of torch.complex64"),
        (4.0, "got float"),
        (torch.tensor(4.0), r"with shape \(\)"),
        ({4.0, 5.0, 6.0}, "got set"),
        ((y for y in (4.0, 5.0, 6.0)), "got generator"),
        ([[4.0], [5.0, 6.0], [7.0]], "got list"),
        (pd.to_datetime(OF_B["flow"]), "got "),
        ([4.0, 5.0], "one for each of the 3 support inputs is needed, got 2"),
        ([[4.0, 5.0]] * 3, "dimension of 1"),
    ],
)
def test_targets_that_are_no_real_numbers_are_refused_in_one_line_that_names_them(targets: Any, says: str) -> None:
    with pytest.raises(UserError, match=f"^labels: .*{says}") as raised:
        of_numbers().predictor(INPUTS, targets)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (OF_B[["x"]], "x: .* got DataFrame, .*source.inputs_of"),
        ([["a"], ["b"], ["c"]], "x: .* got list"),
        ([[0.0], [0.5, 1.0], [1.0]], "x: .* got list"),
        ([[0.0], [None], [1.0]], "x: .* got list"),
        (None, "x: .* got NoneType"),
        (0.5, "x: .* got a single float"),
        (OF_B["x"], r"\(M, 1\) are needed, got \(3,\)"),
    ],
)
def test_inputs_that_are_no_numbers_are_refused_in_one_line_by_both_sets(x: Any, says: str) -> None:
    for predict in (lambda x: of_numbers().predictor(x, [4, 5, 6]), of_numbers().predictor(INPUTS, [4, 5, 6])):
        with pytest.raises(UserError, match=says) as raised:
            predict(x)
        assert "\n" not in str(raised.value)


def test_a_regression_task_has_no_probabilities() -> None:
    with pytest.raises(UserError, match=r"^probabilities: a regression task has no classes; "):
        of_numbers().predictor(INPUTS, [4, 5, 6]).probabilities(INPUTS)


@pytest.mark.parametrize("labels", [torch.tensor([0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 1, 2, 2])])
def test_labels_that_are_tensors_of_one_number_are_numbers(labels: Any) -> None:
    assert method("protonet").predictor(images()[0], list(labels)).classes == [0, 1, 2]


def test_labels_are_those_of_a_column_with_any_index() -> None:
    column = pd.Series(list("aabbcc"), index=range(3, 9))
    assert method("protonet").predictor(images()[0], column).classes == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (pd.DataFrame({"label": list("aabbcc")}), "got DataFrame; give labels"),
        (3, "got int"),
        (torch.tensor(3), "got Tensor"),
        (set("abcdef"), "got set"),
        (dict.fromkeys(range(6), "a"), "got dict"),
        (list(torch.eye(6)), "6 names or numbers are needed"),
    ],
)
def test_labels_without_an_order_are_refused(labels: Any, says: str) -> None:
    with pytest.raises(UserError, match=f"^labels: .*{says}"):
        method("protonet").predictor(images()[0], labels)


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


@pytest.mark.parametrize(
    "given",
    [
        INPUTS.flip(0).numpy()[::-1],
        INPUTS.numpy().astype(">f4"),
        list(INPUTS),
        tuple(INPUTS.numpy()),
        [*INPUTS[:2], INPUTS[2].numpy()],
    ],
    ids=["reversed", "big-endian", "tensors", "arrays", "both"],
)
def test_inputs_of_any_container(given: Any) -> None:
    module = of_numbers()
    expected = module.predictor(INPUTS, [4.0, 5.0, 6.0])(INPUTS)
    torch.testing.assert_close(module.predictor(given, [4.0, 5.0, 6.0])(given), expected, rtol=0, atol=0)
