"""Exported multi-task models, against the predictions of the model that wrote them."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import lightning_meta as lm
from lightning_meta.cli.main import main
from lightning_meta.data.task_set import TaskSet
from lightning_meta.errors import UserError
from lightning_meta.multitask import exported_rows
from lightning_meta.multitask.exported_rows import inputs_of
from lightning_meta.multitask.table_encoder import TableEncoder, normal_quantile
from lightning_meta.nn import MLP, Conv4
from lightning_meta.sources.scaling import scaled
from lightning_meta.tasks import Binary, Classification, Multilabel, Regression
from lightning_meta.tasks.table import NumberFeature, TableSpec
from tests.multitask.test_table_predictions import METHODS, Row, fit, houses, read, table, write
from tests.multitask.toys import Given

# A machine that has numpy, torch and the reader's file, and nothing of this package.
ELSEWHERE = """
import csv, json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("lightning_meta", "lightning", "pyarrow"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import torch
from exported_rows import inputs_of
extra = {"lightning_meta.json": ""}
model = torch.export.load("model.pt2", extra_files=extra).module()
about = json.loads(extra["lightning_meta.json"])
with open("new.csv", newline="", encoding="utf-8-sig") as file:
    inputs = inputs_of(csv.DictReader(file, delimiter=about["delimiter"]), about)
predictions = model(*map(torch.from_numpy, inputs.values()))
print(json.dumps({"about": about, "predictions": {name: y.tolist() for name, y in predictions.items()}}))
"""


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def new_rows() -> list[Row]:
    """Rows with missing values, texts that training lacks, and numbers that are spelled in other ways."""
    rows = houses(30, 5)
    rows[0] |= {"area": None, "style": None}
    rows[1] |= {"style": "strange", "floor": "11"}
    rows[2] |= {"area": " 71", "floor": "1.0", "style": " old "}
    rows[3] |= {"area": "1e2", "floor": "NA"}
    return rows


def untrained(method: str = "MultiHead", **options: Any) -> lm.MultiTaskModule:
    source = table(write(Path("houses.csv"), houses()), **options)
    data = lm.MultiTaskDataModule(source, batch_size=16, seed=0)
    data.setup("fit")
    module = METHODS[method](len(source.input_names))
    module.tasks = data.spec
    module.configure_model()
    with torch.no_grad():
        for parameter in module.parameters():  # those that start at 0 count as well
            parameter.add_(torch.rand(parameter.shape, generator=torch.Generator().manual_seed(0)) / 4)
    return module.eval()


def predicted(file: Path, rows: list[dict[str, str]]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The predictions of an exported file by task, and its description."""
    if file.suffix == ".onnx":
        runtime = pytest.importorskip("onnxruntime")
        session = runtime.InferenceSession(str(file))
        about = json.loads(session.get_modelmeta().custom_metadata_map["lightning_meta.json"])
        found = session.run(None, inputs_of(rows, about))
        return dict(zip([task["name"] for task in about["tasks"]], found, strict=True)), about
    extra = {"lightning_meta.json": ""}
    model = torch.export.load(file, extra_files=extra).module()
    about = json.loads(extra["lightning_meta.json"])
    inputs = map(torch.from_numpy, inputs_of(rows, about).values())
    return {name: y.numpy() for name, y in model(*inputs).items()}, about


def check_equal(found: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]]) -> None:
    count = len(found["price"])
    grade = np.stack([expected[f"p(grade={c})"] for c in "ABC"], 1)
    np.testing.assert_allclose(found["price"][:, 0], expected["price [kEUR]"][:count], rtol=1e-9)
    np.testing.assert_allclose(found["sold"], expected["p(sold=yes)"][:count], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found["grade"], grade[:count], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_model_of_a_table_is_used_where_this_package_is_not(tmp_path: Path) -> None:
    run = fit(table(write(tmp_path / "houses.csv", houses())), METHODS["Independent"], epochs=5)
    assert len(set(lm.load(run).best.steps)) > 1  # so the weights of a test are not those at hand
    new = write(Path("new.csv"), new_rows(), leave_out=("price", "sold", "grade"))
    assert main(["predict", "--ckpt_path", str(run), "--export", "model.pt2"]) == 0
    assert not Path("predictions.csv").exists()
    Path("exported_rows.py").write_text(Path(exported_rows.__file__).read_text())
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    check_equal({n: np.array(y) for n, y in said["predictions"].items()}, lm.load(run).predict_table(new))
    price, sold, _ = said["about"]["tasks"]
    assert (price["unit"], sold["classes"], sold["output"]) == ("kEUR", ["no", "yes"], "probability of yes")
    assert said["about"]["texts"][0] == {
        "column": "style",
        "texts": ["mid", "new, fine", "old"],
        "of_numbers": False,
    }


@pytest.mark.slow
@pytest.mark.parametrize(("method", "suffix"), [*((method, ".pt2") for method in METHODS), ("Conditioned", ".onnx")])
def test_every_method_is_exported(method: str, suffix: str) -> None:
    module = untrained(method)
    expected, rows = module.predict_table(write(Path("new.csv"), new_rows())), read("new.csv")
    file = module.export(f"model{suffix}")
    for some in (rows, rows[:1], rows[:7]):
        check_equal(predicted(file, some)[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize(("scaling", "suffix"), [("quantile_normal", ".onnx"), ("quantile_uniform", ".pt2")])
def test_quantiles_are_exported(scaling: str, suffix: str) -> None:
    module = untrained(scaling=scaling)
    expected, rows = module.predict_table(write(Path("new.csv"), new_rows())), read("new.csv")
    check_equal(predicted(module.export(f"model{suffix}"), rows)[0], expected)


@pytest.mark.parametrize("unit", [1.0, 1e-9])
@pytest.mark.parametrize("normal", [False, True])
def test_the_encoder_has_the_quantiles_of_the_reader(normal: bool, unit: float) -> None:
    quantiles = [unit * q for q in (0.0, 0.0, 1.0, 1.0, 1.0, 2.5, 9.0, 9.0)]
    feature = NumberFeature("x", quantiles=quantiles, normal=normal, indicator=True)
    x = unit * np.array([-3, 0, 1e-9, 0.3, 1, 1 + 1e-9, 2.4, 2.5, 2.6, 8.9999999, 9, 77, np.nan])
    encoder = TableEncoder(TableSpec([feature], []))
    found = encoder(torch.from_numpy(x).unsqueeze(1), torch.zeros(len(x), 0, dtype=torch.int64))
    expected = np.nan_to_num(scaled(x.copy(), feature), nan=feature.missing_input)
    np.testing.assert_allclose(found[:, 0].numpy(), expected, rtol=1e-6, atol=1e-7)
    assert found[:, 1].tolist() == [0.0] * 12 + [1.0]


def test_the_normal_quantile_is_that_of_torch() -> None:
    p = torch.cat([torch.logspace(-10, -0.4, 500, dtype=torch.float64), torch.tensor([0.075, 0.5, 0.925]).double()])
    for of in (p, 1 - p):
        torch.testing.assert_close(normal_quantile(of), torch.special.ndtri(of), rtol=1e-13, atol=1e-14)


def test_whole_numbers_beyond_float64_keep_their_digits() -> None:
    """A time stamp in nanoseconds is told apart from its neighbour, as in training."""
    start = 1_700_000_000_000_000_001
    rows = [{"t": start + i, "y": i % 7, "kind": "ab"[i % 2]} for i in range(40)]
    path = write(Path("times.csv"), rows)
    source = lm.sources.Table(path, {"y": "regression"})
    data = lm.MultiTaskDataModule(source, seed=0)
    data.setup("fit")
    module = lm.MultiHead(MLP(3, (4,)), tasks=data.spec).eval()
    found, about = predicted(module.export("model.pt2"), read(path))
    assert about["numbers"][0]["offset"] == start
    np.testing.assert_allclose(found["y"][:, 0], module.predict_table(path)["y"], rtol=1e-6)
    assert len(set(inputs_of(read(path), about)["numbers"][:, 0].tolist())) == 40


def pictures(tasks: dict[str, Any], module: lm.MultiTaskModule) -> lm.MultiTaskModule:
    """An untrained module of small pictures, two of which have labels for each task."""
    x = torch.randint(0, 256, (5, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    targets = {"angle": torch.tensor([[10.0], [30.0]]), "letter": torch.tensor([0, 1]), "round": torch.tensor([1, 0])}
    targets |= {"marks": torch.tensor([[0, 1], [1, 1]])}
    rows = {name: torch.tensor([i, 4]) for i, name in enumerate(tasks)}
    sets = {split: TaskSet(x, {name: targets[name] for name in tasks}, rows) for split in ("train", "val", "test")}
    data = lm.MultiTaskDataModule(Given(tasks, sets), seed=0)  # type: ignore[arg-type]
    data.setup("fit")
    module.tasks = data.spec
    module.configure_model()
    return module.eval()


@pytest.mark.slow
def test_a_model_of_images_is_exported_for_stored_and_real_ones() -> None:
    tasks = {"angle": Regression(1), "letter": Classification(3), "round": Binary(), "marks": Multilabel(2)}
    module = pictures(tasks, lm.MultiHead(Conv4(1, 4, blocks=2)))
    images = torch.randint(0, 256, (5, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    expected = {name: module.predict(name, images) for name in tasks}
    probabilities = {"letter": expected["letter"].softmax(-1), "marks": expected["marks"].sigmoid()}
    for dtype, x in ((torch.uint8, images), (None, images / 255)):
        extra = {"lightning_meta.json": ""}
        model = torch.export.load(module.export("model.pt2", dtype), extra_files=extra).module()
        found: dict[str, Tensor] = model(x)
        for name, y in {**expected, **probabilities}.items():
            torch.testing.assert_close(found[name], y, rtol=1e-6, atol=1e-6)
    about = json.loads(extra["lightning_meta.json"])
    assert (about["input_shape"], about["before"][-1]) == ([1, 16, 16], "divide by 255")


@pytest.mark.slow
def test_some_tasks_alone_are_exported() -> None:
    module = untrained()
    found, about = predicted(module.export("model.pt2", tasks=["sold"]), read("houses.csv"))
    assert list(found) == [task["name"] for task in about["tasks"]] == ["sold"]


class Fickle(lm.MultiHead):
    """Predicts by what the numbers are, which no graph can hold."""

    def forward(self, x: Tensor, rows: Any) -> dict[str, Tensor]:
        return super().forward(x * (2 if float(x.sum()) > 0 else 1), rows)


@pytest.mark.parametrize(
    ("file", "options", "said"),
    [
        ("model.txt", {}, r"\.pt2 or \.onnx"),
        ("nowhere/model.pt2", {}, "no folder"),
        ("model.pt2", {"tasks": ["rent"]}, "there is no task 'rent'; expected 'price', 'sold', 'grade'"),
        ("model.pt2", {"tasks": "sold"}, r"got 'sold'; give \['sold'\]"),
        ("model.pt2", {"tasks": []}, "expected one or more"),
        ("model.pt2", {"dtype": torch.uint8}, "takes its cells"),
        ("model.pt2", {"fickle": True}, "Fickle cannot be exported"),
    ],
)
def test_what_cannot_be_exported_is_one_error_and_no_file(file: str, options: dict[str, Any], said: str) -> None:
    module = untrained()
    if options.pop("fickle", False):
        module = Fickle(MLP(9, (4,)), tasks=module.spec).eval()
    with pytest.raises(UserError, match=said) as raised:
        module.export(file, **options)
    assert "\n" not in str(raised.value)
    assert [f.name for f in Path().iterdir()] == ["houses.csv"]


@pytest.mark.slow
def test_tasks_of_different_inputs_are_exported_apart() -> None:
    sets = {
        split: TaskSet(
            {"a": torch.randn(4, 3), "b": torch.randn(4, 2)},
            {"a": torch.randn(4, 1), "b": torch.randn(4, 1)},
            {"a": torch.arange(4), "b": torch.arange(4)},
        )
        for split in ("train", "val", "test")
    }
    data = lm.MultiTaskDataModule(Given({"a": Regression(1), "b": Regression(1)}, sets), seed=0)  # type: ignore[arg-type]
    data.setup("fit")
    stems = {"a": torch.nn.Linear(3, 4), "b": torch.nn.Linear(2, 4)}
    module = lm.MultiHead(MLP(4, (4,)), stems=stems, tasks=data.spec).eval()
    with pytest.raises(UserError, match=r"'a' takes inputs of shape \(3,\), 'b' .* \(2,\); .* tasks=\['b'\]"):
        module.export("model.pt2")
    x = torch.randn(6, 2)
    found = torch.export.load(module.export("model.pt2", tasks=["b"])).module()(x)
    torch.testing.assert_close(found["b"], module.predict("b", x))


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({"area": "big"}, "row 1: column 'area' is 'big'; expected a finite number"),
        ({"area": "1_0"}, "'1_0'; expected"),
        ({"area": "inf"}, "'inf'; expected"),
        ({"area": "1,5"}, "'1,5'; expected"),
        ({"style": ...}, "row 1 has no column 'style', which the model needs; it has area"),
    ],
)
def test_a_cell_that_cannot_be_read_is_named(cells: dict[str, Any], said: str) -> None:
    about = {
        "numbers": [{"column": "area", "offset": 0}],
        "texts": [{"column": "style", "texts": ["a"], "of_numbers": False}],
        "missing": ["", "NA"],
        "decimal": ".",
    }
    row = {name: cell for name, cell in {"area": "1", "style": "a", **cells}.items() if cell is not ...}
    with pytest.raises(ValueError, match=said):
        inputs_of([row], about)
    if "area" in said:
        lines = csv.DictReader([",".join(row), ",".join(row.values())])
        with pytest.raises(ValueError, match=said.replace("row 1", r"row 1 \(line 2 of the file\)")):
            inputs_of(lines, about)


def test_a_row_is_named_by_the_line_in_which_it_begins() -> None:
    about = {"numbers": [{"column": "area", "offset": 0}], "texts": [], "missing": [""], "decimal": "."}
    lines = ["area,note\n", '1,"two\n', 'lines"\n', 'x,"three\n', "of\n", 'them"\n']
    with pytest.raises(ValueError, match=r"row 2 \(line 4 of the file\)"):
        inputs_of(csv.DictReader(lines), about)


def test_a_comma_before_the_decimals() -> None:
    about = {"numbers": [{"column": "x", "offset": 0}], "texts": [], "missing": [""], "decimal": ","}
    inputs = inputs_of([{"x": "1,5"}, {"x": "-2"}, {"x": ""}], about)
    np.testing.assert_array_equal(inputs["numbers"][:, 0], [1.5, -2, np.nan])
    assert inputs["codes"].shape == (3, 0)


@pytest.mark.parametrize(
    ("texts", "of_numbers", "codes"),
    [
        (["False", "True"], False, [1, 1, 1, 0, 0, -1, -2, -2]),
        (["true"], False, [0, 0, 0, -2, -2, -1, -2, -2]),
        (["TRUE", "True"], False, [-2, 1, 0, -2, -2, -1, -2, -2]),
        (["no", "true"], False, [1, -2, -2, -2, -2, -1, -2, -2]),
        (["0", "1"], True, [1, 1, 1, 0, 0, -1, 1, -2]),
    ],
)
def test_a_boolean_has_the_code_of_its_text_in_training(texts: list[str], of_numbers: bool, codes: list[int]) -> None:
    """Whether training read it from a CSV file, in any case, or from a Parquet file."""
    about = {"numbers": [], "texts": [{"column": "x", "texts": texts, "of_numbers": of_numbers}], "missing": [""]}
    rows = [{"x": cell} for cell in ("true", "True", "TRUE", "false", " False ", "", "1", "old")]
    assert inputs_of(rows, about | {"decimal": "."})["codes"][:, 0].tolist() == codes


@pytest.mark.slow
def test_the_command_exports_beside_predictions_and_refuses_what_it_cannot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(table(write(tmp_path / "houses.csv", houses())), METHODS["MultiHead"], epochs=1)
    write(Path("new.csv"), new_rows())
    command = ["predict", "--ckpt_path", str(run), "--export", "model.pt2"]
    for wrong, said in {
        ("--labels", "x.csv"): "--support: give a folder",
        ("--table", "new.csv", "--steps", "3"): "--steps applies only to images",
        ("--table", "new.csv", "--out", "model.pt2"): "--out names the same file",
    }.items():
        assert main([*command, *wrong]) == 2
        assert said in capsys.readouterr().err
    assert main([*command, "--table", "new.csv"]) == 0
    assert "exported to model.pt2" in capsys.readouterr().out
    found, _ = predicted(Path("model.pt2"), read("new.csv"))
    of_csv = [float(row["p(sold=yes)"]) for row in read("predictions.csv")]
    np.testing.assert_allclose(found["sold"], of_csv, rtol=0, atol=1e-6)


def test_the_reader_reads_a_file_as_predict_table_does() -> None:
    """The file has semicolons, decimal commas and a column with the task of each row."""
    rows = [{"x": f"{i},5", "kind": "ab"[i % 2], "y": i, "who": "uv"[i // 2 % 2]} for i in range(40)]
    with Path("t.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    source = lm.sources.Table("t.csv", {"y": "regression"}, task_column="who", delimiter=";", decimal=",")
    data = lm.MultiTaskDataModule(source, seed=0)
    data.setup("fit")
    module = lm.MultiHead(MLP(3, (4,)), tasks=data.spec).eval()
    with Path("t.csv").open(newline="") as file:
        new = list(csv.DictReader(file, delimiter=";"))
    found, about = predicted(module.export("model.pt2"), new)
    assert (about["delimiter"], about["decimal"], about["task_column"]) == (";", ",", "who")
    of_rows = [found[row["who"]][i, 0] for i, row in enumerate(new)]
    np.testing.assert_allclose(of_rows, module.predict_table("t.csv")["y"], rtol=1e-6)


@pytest.mark.parametrize(("row", "what"), [("1,2,3", "more"), ("1", "fewer")])
def test_a_row_of_another_length_than_the_header_is_refused(row: str, what: str) -> None:
    """Such a row occurs if a decimal comma is read as a delimiter, which would shift the following cells."""
    rows = csv.DictReader(io.StringIO(f"area,rooms\n{row}\n"))
    with pytest.raises(
        ValueError, match=rf"row 1 \(line 2 of the file\) has {what} cells than the header has names: area, rooms"
    ):
        inputs_of(rows, {"numbers": [], "texts": [], "missing": [], "decimal": "."})
