"""Categories of a table as codes and embeddings, against scikit-learn and a plain network in torch."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from sklearn.preprocessing import OrdinalEncoder, StandardScaler
from torch import Tensor, nn

import lightning_meta as lm
from lightning_meta.errors import UserError
from lightning_meta.fitting.importance import permutation_importance
from lightning_meta.multitask.exported_rows import inputs_of
from lightning_meta.multitask.table_encoder import TableEncoder
from lightning_meta.nn import MLP, Frozen, TabularMLP
from lightning_meta.nn.categories import CategoryEmbedding, OneHot, embedding_size
from lightning_meta.sources import Table
from lightning_meta.sources.table_rows import columns_in, rows_of
from tests import methods
from tests.multitask.test_export import check_equal, new_rows, predicted
from tests.multitask.test_table_predictions import FEATURES, houses, read, table, write
from tests.multitask.toys import trainer

METHODS: dict[str, Callable[..., lm.MultiTaskModule]] = {
    "CGC": lambda **options: lm.CGC(TabularMLP((8,)), **options),
    "Conditioned": lambda **options: lm.Conditioned(TabularMLP((8, 8)), **options),
    "CrossStitch": lambda **options: lm.CrossStitch(TabularMLP((8, 8)), **options),
    "Grouped": lambda **options: lm.Grouped(TabularMLP((8, 8)), [["price", "grade"], ["sold"]], **options),
    "Independent": lambda **options: lm.Independent(TabularMLP((8,)), **options),
    "Linear": lambda **options: lm.Linear(),
    "LoRA": lambda **options: lm.LoRA(TabularMLP((8, 8)), **options),
    "MTAN": lambda **options: lm.MTAN(TabularMLP((8, 8)), **options),
    "MixtureOfExperts": lambda **options: lm.MixtureOfExperts(TabularMLP((8,)), **options),
    "MultiHead": lambda **options: lm.MultiHead(TabularMLP((8, 8)), **options),
    "PLE": lambda **options: lm.PLE(TabularMLP((8, 8)), **options),
}
BY_DEFAULT = {"MultiHead", "Conditioned", "MixtureOfExperts"}
EXPORTED = ("Conditioned", "Independent", "PLE")


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def data_of(**options: Any) -> lm.MultiTaskDataModule:
    source = table(write(Path("houses.csv"), houses()), **{"categories": "codes", **options})
    return lm.MultiTaskDataModule(source, batch_size=16, seed=0)


def trained(make: Callable[..., lm.MultiTaskModule], data: lm.MultiTaskDataModule, steps: int = 3, **of: Any) -> Any:
    torch.manual_seed(0)
    module = make(optimizer=partial(torch.optim.AdamW, lr=0.05))
    trainer(steps, **{"limit_val_batches": 0, **of}).fit(module, datamodule=data)
    return module


def inputs(data: lm.MultiTaskDataModule, split: Any = "test") -> Tensor:
    x = data.sets[split].inputs
    assert isinstance(x, Tensor)
    return x


def test_every_method_is_tried() -> None:
    assert set(METHODS) == set(methods.MULTI_TASK)


def test_inputs_are_the_codes_of_scikit_learn_for_new_rows_as_well_and_in_an_exported_encoder() -> None:
    data = data_of()
    data.setup("fit")
    assert data.spec is not None
    assert data.spec.table is not None
    train, new = [row for row in houses() if row["split"] == "train"], new_rows()
    of_train, of_new = ([[np.nan if r["style"] is None else r["style"].strip()] for r in rows] for rows in (train, new))
    known = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-2, encoded_missing_value=-1)
    known.fit(np.array(of_train, dtype=object))
    expected = 2 + known.transform(np.array(of_new, dtype=object))[:, 0]
    file = write(Path("new.csv"), new)
    found = rows_of(data.spec.table, ["price"], columns_in(file)).inputs
    np.testing.assert_array_equal(found[:, 2], expected)
    assert {0.0, 1.0, 2.0, 3.0, 4.0} == set(found[:, 2].tolist())
    areas = np.array([[np.nan if r["area"] is None else r["area"]] for r in train])
    new_areas = np.array([[np.nan if r["area"] is None else float(r["area"])] for r in new])
    scaled = np.nan_to_num(StandardScaler().fit(areas).transform(new_areas)[:, 0])
    np.testing.assert_allclose(found[:, 0], scaled, rtol=1e-6, atol=1e-6)
    encoder = TableEncoder(data.spec.table)
    texts_of = [{"column": f.name, "texts": list(f.texts), "of_numbers": f.of_numbers} for f in encoder.texts]
    numbers_of = [{"column": f.name, "offset": f.offset} for f in encoder.numbers]
    about = {"numbers": numbers_of, "texts": texts_of, "missing": ["", "NA"], "decimal": "."}
    cells = inputs_of(read(file), about)
    torch.testing.assert_close(encoder(*map(torch.from_numpy, cells.values())), found, rtol=0, atol=1e-6)


def test_the_network_is_a_plain_one_in_torch() -> None:
    columns = [0, 6, 0, 0, 4]
    network = TabularMLP((7, 5), columns=columns).double()

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Embedding(6, 3), nn.Embedding(4, 2)
            self.layers = nn.Sequential(nn.Linear(3 + 5, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU())

        def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
            return self.layers(torch.cat([numbers, self.first(codes[:, 0]), self.second(codes[:, 1])], 1))

    plain = Plain().double()
    with torch.no_grad():
        for to, of in zip(plain.parameters(), network.parameters(), strict=True):
            to.copy_(of)
    numbers, rows = torch.randn(40, 3, dtype=torch.float64), torch.arange(40)
    codes = torch.stack([rows % 6, rows % 4], 1)
    x = torch.stack([numbers[:, 0], codes[:, 0], numbers[:, 1], numbers[:, 2], codes[:, 1]], 1)
    weights = torch.randn(40, 5, dtype=torch.float64)
    expected = plain(numbers, codes)
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(nn.Sequential(*network.stages())(x), expected, rtol=0, atol=1e-12)
    of_network = torch.autograd.grad((network(x) * weights).sum(), list(network.parameters()))
    of_plain = torch.autograd.grad((plain(numbers, codes) * weights).sum(), list(plain.parameters()))
    for one, other in zip(of_network, of_plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    x[:, 1] = 0  # no such text in training
    unseen = network(x)
    for code in (-1, 6, 1e9):
        x[:, 1] = code
        assert torch.equal(network(x), unseen)


def test_sizes_of_embeddings_are_fastai_s_and_can_be_given() -> None:
    assert [embedding_size(n) for n in (1, 2, 10, 100, 1000, 10**6)] == [2, 2, 6, 21, 77, 600]
    shapes = {n: tuple(p.shape) for n, p in TabularMLP((4,), 3, [0, 12]).named_parameters()}
    assert shapes["layers.0.0.embedding_1"] == (12, 3)
    assert shapes["layers.0.1.weight"] == (4, 1 + 3)


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=() if m in BY_DEFAULT else pytest.mark.slow) for m in METHODS]
)
def test_every_method_learns_embeddings_and_its_checkpoint_predicts_as_it_did(method: str) -> None:
    data = data_of()
    made = trained(METHODS[method], data)
    made.trainer.save_checkpoint("model.ckpt")
    loaded = lm.load("model.ckpt")
    before = {n: p.clone() for n, p in made.named_parameters() if "embedding_" in n}
    assert bool(before) != (method == "Linear")
    for weight in before.values():
        assert not weight[0].any()  # no training row has an unseen text, and weight decay leaves 0
        assert (weight[2:] != 0).all()
    x = inputs(data)
    for name in made.names:
        assert torch.equal(loaded.predict(name, x), made.predict(name, x))
    by_file = loaded.predict_table(write(Path("new.csv"), new_rows()))
    assert len(by_file["price [kEUR]"]) == 30
    assert np.isfinite(by_file["price [kEUR]"]).all()


@pytest.mark.slow
@pytest.mark.parametrize(("method", "file"), [*((m, "model.pt2") for m in EXPORTED), ("MultiHead", "model.onnx")])
def test_an_exported_model_predicts_the_same_of_unseen_and_missing_texts(method: str, file: str) -> None:
    module = trained(METHODS[method], data_of())
    new = write(Path("new.csv"), new_rows(), leave_out=("price", "sold", "grade"))
    module.export(file)
    found, about = predicted(Path(file), read(new))
    assert [column["column"] for column in about["texts"]] == ["style", "floor"]
    check_equal(found, module.predict_table(new))


def test_a_linear_model_of_codes_is_that_of_one_hot_inputs() -> None:
    """The rung below all networks stays the same one when the table gives codes."""
    predictions = []
    for categories in ("codes", "one_hot"):
        module = trained(METHODS["Linear"], data_of(categories=categories, missing_indicators=False), 1)
        predictions.append(module.double().predict_table(write(Path("new.csv"), new_rows())))
    for one, other in zip(*(p.values() for p in predictions), strict=True):
        if one.dtype != object:
            np.testing.assert_allclose(one, other, rtol=1e-12)


def test_gates_see_codes_as_one_hot() -> None:
    data = data_of()
    data.setup("fit")
    made = lm.MixtureOfExperts(TabularMLP((8,)), tasks=data.spec)
    x = inputs(data)[:20]
    (one_hot, linear) = made.gates[0].children()
    texts = [nn.functional.one_hot(x[:, i].long(), 5)[:, 2:] for i in (2, 3)]
    torch.testing.assert_close(one_hot(x), torch.cat([x[:, :2], *texts], 1))
    assert linear.weight.shape == (4, 2 + 3 + 3)


def test_independent_networks_at_once_are_those_one_after_the_other() -> None:
    states = []
    for strategy in ("vmap", "loop"):
        torch.manual_seed(0)
        options: dict[str, Any] = {"strategy": strategy, "optimizer": partial(torch.optim.SGD, lr=0.01)}
        module = lm.Independent(TabularMLP((8,)), **options)
        trainer(4, precision="64-true", limit_val_batches=0).fit(module, datamodule=data_of())
        states.append(dict(module.named_parameters()))
    for name, parameter in states[0].items():
        torch.testing.assert_close(parameter, states[1][name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_it_trains_in_bf16(precision: Any) -> None:
    module = trained(METHODS["MultiHead"], data_of(), precision=precision)
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_codes_that_16_bits_do_not_tell_apart_are_refused() -> None:
    network = TabularMLP((4,), columns=[0, 259])
    with pytest.raises(UserError, match=r"bfloat16 can represent 256 codes .* has 259; use precision 32"):
        network.bfloat16()(torch.zeros(2, 2, dtype=torch.bfloat16))
    exact = torch.arange(257).to(torch.bfloat16).long()
    assert torch.equal(exact, torch.arange(257))
    TabularMLP((4,), columns=[0, 257]).bfloat16()(torch.zeros(2, 2, dtype=torch.bfloat16))


def test_a_number_that_is_no_code_counts_as_an_unseen_text() -> None:
    embed = CategoryEmbedding([5], 2)
    nn.init.normal_(next(embed.parameters()))
    unseen = embed(torch.zeros(1, 1))
    others = embed(torch.tensor([[2.7], [-1.0], [5.0], [torch.nan], [1e30]]))
    assert torch.equal(others, unseen.expand(5, -1))
    assert not torch.equal(embed(torch.tensor([[2.0]])), unseen)


def test_a_column_is_permuted_as_a_whole() -> None:
    data = data_of()
    module = trained(METHODS["MultiHead"], data)
    found = permutation_importance(module, data, repeats=1)
    assert [(f.task, f.column) for f in found] == [(task, name) for task in module.names for name in FEATURES]
    with torch.no_grad():  # a network that looks at no style
        module.backbone.get_parameter("layers.0.0.embedding_2").zero_()
    again = {f.column: f.mean for f in permutation_importance(module, data, repeats=1) if f.task == "grade"}
    assert again["style"] == 0.0
    assert again["floor"] != 0.0


def test_a_network_that_would_treat_codes_as_numbers_is_refused() -> None:
    data = data_of()
    with pytest.raises(UserError, match=r"backbone: MLP would treat .*TabularMLP, .* categories: one_hot"):
        trained(lambda **options: lm.MultiHead(MLP(4, (8,)), **options), data)
    film = partial(lm.Conditioned, enters="film", at=(0,))
    with pytest.raises(UserError, match=r"at: z cannot enter codes of categories by film.* at 1 or later"):
        trained(lambda **options: film(TabularMLP((8, 8)), **options), data)
    trained(lambda **options: lm.Conditioned(TabularMLP((8, 8)), enters="film", at=(1,), **options), data, 1)
    with pytest.raises(UserError, match="Table categories: expected 'one_hot' or 'codes', got 'onehot'"):
        data_of(categories="onehot")
    with pytest.raises(UserError, match="does not know its inputs yet"):
        TabularMLP((4,))(torch.zeros(2, 3))
    with pytest.raises(UserError, match=r"columns\[1\]: a category has 2 codes"):
        TabularMLP((4,), columns=[0, 2])
    with pytest.raises(UserError, match=r"the network was made for \[0, 7\], and the table has \[0, 0, 5, 5\]"):
        trained(lambda **options: lm.MultiHead(TabularMLP((8,), columns=[0, 7]), **options), data)


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
def test_it_starts_from_the_backbone_of_a_run_and_stays_so_where_it_is_frozen() -> None:
    first = trained(METHODS["MultiHead"], data_of())
    first.trainer.save_checkpoint("model.ckpt")
    expected = first.backbone.state_dict()
    for frozen in (False, True):
        torch.manual_seed(1)
        network = Frozen(TabularMLP((8, 8))) if frozen else TabularMLP((8, 8))
        made = lm.MultiHead(network, backbone_weights="model.ckpt", optimizer=partial(torch.optim.SGD, lr=0.0 + frozen))
        trainer(2, limit_val_batches=0).fit(made, datamodule=data_of())
        found = made.backbone.network if isinstance(made.backbone, Frozen) else made.backbone
        assert all(torch.equal(weight, expected[name]) for name, weight in found.state_dict().items())
        assert all(p.requires_grad != frozen for p in found.parameters())
        assert sum(p.numel() for p in made.parameters() if p.requires_grad) > 0


class OwnNetwork(nn.Module):
    """A network of a user's, which makes its layers once it knows its columns."""

    def __init__(self) -> None:
        super().__init__()
        self.columns: tuple[int, ...] | None = None
        self.layers = nn.Sequential()

    def take_columns(self, columns: Sequence[int]) -> None:
        if self.columns is None:
            self.columns, flat = tuple(columns), OneHot(columns)
            self.layers = nn.Sequential(flat, nn.Linear(flat.out_features, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.layers(x))


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
def test_a_network_of_a_users_starts_from_a_run_once_it_has_layers() -> None:
    first = trained(lambda **options: lm.MultiHead(OwnNetwork(), **options), data_of())
    first.trainer.save_checkpoint("own.ckpt")
    made = lm.MultiHead(OwnNetwork(), backbone_weights="own.ckpt", optimizer=partial(torch.optim.SGD, lr=0.0))
    trainer(1, limit_val_batches=0).fit(made, datamodule=data_of())
    expected = first.backbone.state_dict()
    assert len(expected) == 2
    assert all(torch.equal(weight, expected[name]) for name, weight in made.backbone.state_dict().items())


def test_a_table_with_other_texts_is_refused() -> None:
    module = trained(METHODS["MultiHead"], data_of())
    rows = [row | {"style": "mid" if row["style"] == "old" else row["style"]} for row in houses()]
    other = lm.MultiTaskDataModule(table(write(Path("other.csv"), rows), categories="codes"), batch_size=16)
    with pytest.raises(UserError, match=r"have \[0, 0, 4, 5\] codes of categories, those of training \[0, 0, 5, 5\]"):
        trainer().test(module, datamodule=other, verbose=False)


def test_a_table_of_one_hot_inputs_leaves_nothing_to_embed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lightning_meta"):
        trained(METHODS["MultiHead"], data_of(categories="one_hot"), 1)
    assert (
        "column 'style' is one-hot, so TabularMLP has no embedding for it; give the Table categories: codes"
        in caplog.text
    )


def test_far_numbers_are_told_and_large_codes_are_not(tmp_path: Path) -> None:
    """The range of training inputs is that of the numbers: a code of 80 says nothing about it."""
    rng = np.random.default_rng(0)
    with Path("t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "town", "y"])
        for i, a in enumerate(rng.normal(size=400).round(3).tolist()):
            writer.writerow([a, f"town {i % 80}", a + i % 80])
    source = Table("t.csv", {"y": "regression"}, categories="codes", max_categories=100)
    data = lm.MultiTaskDataModule(source, batch_size=50, seed=0)
    module = trained(METHODS["MultiHead"], data, 1)
    assert max(abs(v) for v in module.spec.input_statistics["y"]) < 5
    assert inputs(data).max() > 70
    module.predict("y", inputs(data))
    new = {"a": [0.5, 99.0], "town": ["town 7", "town 8"]}
    notes = rows_of(module.spec.table, ["y"], columns_in(new), 5.0).notes
    assert [note for note in notes if "times as far" in note] == [notes[-1]]
    assert "column 'a': 1 of 2" in notes[-1]


@pytest.mark.slow
def test_embeddings_learn_what_each_of_200_texts_means() -> None:
    """The target is a number of its own for each town; nothing but the embeddings can say it."""
    rng = np.random.default_rng(0)
    level = rng.normal(size=200)
    with Path("t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "town", "y", "z"])
        for i, a in enumerate(rng.normal(size=4000)):
            y = level[i % 200] + 0.5 * a
            writer.writerow([round(a, 4), f"town {i % 200}", round(y, 4), "yes" if y > 0 else "no"])
    targets = {"y": "regression", "z": "binary"}
    source = Table("t.csv", targets, categories="codes", max_categories=200)
    data = lm.MultiTaskDataModule(source, batch_size=100, seed=0)
    torch.manual_seed(0)
    module = lm.MultiHead(TabularMLP((32,)), optimizer=partial(torch.optim.Adam, lr=0.01))
    run = lm.fit(module, data, max_epochs=20, enable_progress_bar=False)
    assert run.metrics["test/r2/y"] > 0.97
