"""`lightning-meta predict`, from folders of images to a table."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lightning_meta import load
from lightning_meta.cli import main
from lightning_meta.data.images import image_files, labelled_files, read_images
from lightning_meta.sources.labels_file import files_of_table
from tests.test_cli import MAML, TRAINER

SIZE = 16


def picture(kind: int, seed: int, channels: int = 1) -> Image.Image:
    """A noisy picture of one of three kinds: bright at the left, at the right, or at the top."""
    x = np.random.default_rng(seed).integers(0, 60, (SIZE, SIZE))
    bright = [(slice(None), slice(0, 6)), (slice(None), slice(-6, None)), (slice(0, 6), slice(None))][kind]
    x[bright] += 180
    return Image.fromarray(x.astype(np.uint8)).convert("L" if channels == 1 else "RGB")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of three methods on images of noise; what they learned does not matter, as pixels tell the classes."""
    folder = tmp_path_factory.mktemp("trained")
    for c in range(12):
        for i in range(8):
            (folder / "images" / f"class_{c}").mkdir(parents=True, exist_ok=True)
            picture(c % 3, 100 * c + i).save(folder / "images" / f"class_{c}" / f"{i}.png")
    source = {"root": str(folder / "images"), "image_size": SIZE, "channels": 1, "fractions": [0.34, 0.33, 0.33]}
    data = {
        "class_path": "lightning_meta.EpisodicDataModule",
        "init_args": {
            "source": {"class_path": "lightning_meta.sources.ImageFolder", "init_args": source},
            **{"ways": 3, "shots": 2, "queries": 3, "meta_batches_per_epoch": 2, "val_tasks": 4, "test_tasks": 4},
        },
    }
    backbone = {"class_path": "lightning_meta.nn.Conv4", "init_args": {"in_channels": 1, "width": 8, "blocks": 2}}
    for name in ("ProtoNet", "MAML", "PTMAP"):
        model = {"class_path": f"lightning_meta.meta.{name}", "init_args": {"backbone": backbone}}
        file = folder / f"{name.lower()}.yaml"
        file.write_text(yaml.safe_dump({"model": model, "data": data, "trainer": {**TRAINER, "max_steps": 2}}))
        assert main(["fit", "--config", str(file), "--runs", str(folder / "runs")]) == 0
    return folder / "runs"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for kind, name in enumerate(("left", "right", "top")):
        Path("support", name).mkdir(parents=True)
        for i in range(2):
            picture(kind, i, channels=3).save(Path("support", name, f"{i}.png"))
        Path("query", "more").mkdir(parents=True, exist_ok=True)
        for i in range(4):
            picture(kind, 50 + i).resize((40, 40)).save(Path("query", "more" if i > 2 else ".", f"{name}_{i}.jpg"))
    Path("query", "notes.txt").write_text("no image")
    return tmp_path


def predict(run: Path, *options: str) -> int:
    query = [] if any(option.startswith("--query") for option in options) else ["--query", "query"]
    return main(["predict", "--ckpt_path", str(run), "--support", "support", *query, *options])


def rows(file: str = "predictions.csv") -> list[dict[str, str]]:
    return list(csv.DictReader(Path(file).read_text().splitlines()))


def test_a_folder_in_a_table_out(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(trained / "protonet" / "0", "--out", "labels.csv") == 0
    found = rows("labels.csv")
    assert len(found) == 12
    assert list(found[0]) == ["file", "label", "margin", "p(left)", "p(right)", "p(top)"]
    assert {r["file"] for r in found} >= {"query/left_0.jpg", "query/more/top_3.jpg"}
    assert all(Path(r["file"]).name.startswith(r["label"]) for r in found)
    for row in found:
        p = sorted((float(row[f"p({name})"]) for name in ("left", "right", "top")), reverse=True)
        assert sum(p) == pytest.approx(1, abs=1e-5)
        assert float(row["margin"]) == pytest.approx(p[0] - p[1], abs=2e-6)
        assert float(row[f"p({row['label']})"]) == p[0]
    said = capsys.readouterr().out
    assert "labels.csv" in said
    assert "labelled examples" in said


def test_the_accuracy_of_the_support_set_is_told_first_and_not_written(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of three classes can be told apart; a picture lies in the folder of another class."""
    picture(0, 70).save("support/top/2.png")
    assert predict(trained / "protonet" / "0", "--out", "labels.csv") == 0
    said = capsys.readouterr().out
    model = load(trained / "protonet" / "0")
    files, labels = labelled_files("support")
    right = 0
    for fold in range(3):  # the pictures 0, 1 and 2 of each class
        left = [i for i, file in enumerate(files) if file.stem == str(fold)]
        rest = [i for i in range(len(files)) if i not in left]
        of_rest = model.predictor(read_images([files[i] for i in rest], (1, SIZE, SIZE)), [labels[i] for i in rest])
        found = of_rest(read_images([files[i] for i in left], (1, SIZE, SIZE)))
        right += sum(label == labels[i] for i, label in zip(left, found, strict=True))
    assert right < 7
    assert f"left out in turn: {right} of 7 labelled right by the others, {100 * right / 7:.1f} %" in said
    assert said.index("left out in turn") < said.index("images given this label")
    (row,) = [line for line in said.splitlines() if " top " in line]
    assert " of 3 " in row
    assert "turn" not in Path("labels.csv").read_text()
    for number in range(3, 11):
        picture(0, number).save(f"support/top/{number}.png")
    assert predict(trained / "protonet" / "0", "--out", "many.csv") == 0
    said = capsys.readouterr().out
    assert re.search(r"left out in turn, every 5th of each class at a time: \d+ of 15 labelled right", said)
    for number in range(3, 11):
        Path(f"support/top/{number}.png").unlink()
    for name in ("left", "right"):
        Path("support", name, "1.png").unlink()
    for number in (1, 2):
        Path("support", "top", f"{number}.png").unlink()
    assert predict(trained / "protonet" / "0", "--out", "one.csv") == 0
    said = capsys.readouterr().out
    assert "each class has one support image; with two or more, the leave-one-out accuracy" in said
    assert "left out" not in said


def test_an_inner_loop_is_not_gone_through_for_each_image(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(trained / "maml" / "0") == 0
    assert "left out" not in capsys.readouterr().out


def in_one_folder() -> Path:
    """The support images in one folder, and a table of their labels."""
    Path("flat").mkdir()
    lines = ["comment,label,file"]
    for name in ("top", "left", "right"):
        for i in range(2):
            Path("support", name, f"{i}.png").rename(Path("flat", f"{name[0]}{i}.png"))
            lines.append(f"no,{name},{name[0]}{i}.png")
    Path("labels.csv").write_text("\n".join(lines))
    return Path("labels.csv")


@pytest.fixture
def flat(folder: Path) -> Path:
    return in_one_folder()


def test_a_flat_folder_and_a_table_of_labels_are_the_same_support_set(trained: Path) -> None:
    run = trained / "protonet" / "0"
    assert predict(run, "--out", "folders.csv") == 0
    in_one_folder()
    command = ["predict", "--ckpt_path", str(run), "--support", "flat", "--labels", "labels.csv", "--query", "query"]
    assert main([*command, "--out", "table.csv"]) == 0
    assert Path("folders.csv").read_text() == Path("table.csv").read_text()


@pytest.mark.parametrize("absolute", [False, True])
def test_corrected_predictions_are_labels(absolute: bool, trained: Path) -> None:
    run = trained / "protonet" / "0"
    assert predict(run, "--query", str(Path("query").absolute()) if absolute else "query") == 0
    labels = {row["file"]: row["label"] for row in rows()}
    assert len(set(labels.values())) > 1
    for folder in ("query", str(Path("query").absolute())):
        command = ["predict", "--ckpt_path", str(run), "--support", folder, "--labels", "predictions.csv"]
        assert main([*command, "--query", "query", "--out", "again.csv", "--overwrite"]) == 0
        files, found = files_of_table(folder, "predictions.csv")
        assert {Path(file).absolute(): label for file, label in zip(files, found, strict=True)} == {
            Path(file).absolute(): label for file, label in labels.items()
        }


def test_the_separator_of_a_table_of_labels(trained: Path, flat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = files_of_table("flat", flat)
    flat.write_text(flat.read_text().replace(",", ";"))
    command = ["predict", "--ckpt_path", str(trained / "protonet" / "0"), "--support", "flat", "--query", "query"]
    assert main([*command, "--labels", "labels.csv"]) == 2
    assert "give --delimiter ';'\n" in capsys.readouterr().err
    assert main([*command, "--labels", "labels.csv", "--delimiter", ";"]) == 0
    assert files_of_table("flat", flat, ";") == expected
    assert main([*command, "--delimiter", ";", "--overwrite"]) == 2
    assert "--delimiter requires --table or --labels" in capsys.readouterr().err


def test_labels_are_told_apart_as_they_are_written(tmp_path: Path) -> None:
    labels = ["01", "1", "1.0", "007", "7", "+7"]
    flat = tmp_path / "numbered"
    flat.mkdir()
    for number in range(len(labels)):
        picture(0, number).save(flat / f"{number}.png")
    lines = [f"{number}.png, {label}" for number, label in enumerate(labels)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *lines]))
    assert files_of_table(flat, tmp_path / "labels.csv")[1] == labels


BAD_TABLES = {
    "no table": (lambda text: None, "labels.csv: there is no such file; a table with the columns file and label"),
    "no column": (lambda text: text.replace("label", "class"), "no column 'label', only comment, class, file"),
    "semicolons": (
        lambda text: text.replace(",", ";"),
        "labels.csv: its columns are separated by ';'; give --delimiter ';'",
    ),
    "no rows": (lambda text: f"{text.splitlines()[0]}\n", "the table has no rows"),
    "a missing file": (
        lambda text: text + "\nno,top,t9.png",
        "row 7 (line 8 of the file) is 't9.png': expected a path of an image relative to flat, such as l0.png",
    ),
    "a file twice": (
        lambda text: text + "\nno,left,./t1.png",
        "is './t1.png': row 2 (line 3 of the file) already names this file",
    ),
    "a long name": (lambda text: text + f"\nno,top,{'9' * 400}.png", ".png': expected a path of an image relative"),
    "no name": (lambda text: text + "\nno,left,", "row 7 (line 8 of the file): the file is missing; name it"),
    "outside": (
        lambda text: text + "\nno,left,../flat/t1.png",
        "'../flat/t1.png': expected a path of an image relative",
    ),
    "elsewhere": (lambda text: text + "\nno,left,/etc/passwd", "'/etc/passwd': expected a path of an image relative"),
    "no label": (
        lambda text: text.replace("top,t1", ",t1"),
        "column 'label', row 2 (line 3 of the file): the label is missing, which is what an empty cell",
    ),
    "a null label": (
        lambda text: text.replace("top,t1", "NA,t1"),
        "row 2 (line 3 of the file): the label is missing, which is what an empty cell, NA, N/A",
    ),
    "without a row": (
        lambda text: text.replace("\nno,top,t1.png", ""),
        "1 images of flat have no row, the first: fl",
    ),
    "one label": (
        lambda text: text.replace("left", "top").replace("right", "top"),
        "every label is 'top'; at least two",
    ),
    "a zero byte": (lambda text: text.replace("t1.png", "t\0.png"), "expected a path of an image relative to flat"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_mistake_in_the_table_ends_in_one_line(
    case: str, trained: Path, flat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, said = BAD_TABLES[case]
    text = change(flat.read_text())
    flat.unlink() if text is None else flat.write_text(text)
    command = ["predict", "--ckpt_path", str(trained / "protonet" / "0"), "--support", "flat", "--query", "query"]
    assert main([*command, "--labels", "labels.csv"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert not Path("predictions.csv").exists()


def test_the_table_does_not_depend_on_the_batches_and_is_what_python_says(trained: Path) -> None:
    run = trained / "protonet" / "0"
    assert predict(run, "--out", "a.csv") == 0
    assert predict(run, "--out", "b.csv", "--batch_size", "5") == 0
    one, many = rows("a.csv"), rows("b.csv")
    assert [r["file"] for r in one] == [r["file"] for r in many]
    files, labels = labelled_files("support")
    model = load(run)
    predictor = model.predictor(read_images(files, model.spec.input_shape), labels)
    queries = image_files(["query"])
    expected = predictor.probabilities(read_images(queries, model.spec.input_shape))
    assert [str(f) for f in queries] == [r["file"] for r in one]
    for table in (one, many):
        found = torch.tensor([[float(r[f"p({name})"]) for name in predictor.classes] for r in table])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_same_in_python(trained: Path) -> None:
    model = load(trained / "protonet" / "0")
    files, names = labelled_files("support")
    predictor = model.predictor(read_images(files, model.spec.input_shape), names)
    labels = predictor(read_images("query", model.spec.input_shape))
    assert predict(trained / "protonet" / "0") == 0
    assert labels == [r["label"] for r in rows()]


def test_rows_are_sorted_and_each_image_is_there_once(trained: Path) -> None:
    picture(0, 1).save("alone.bmp")
    files = ["--query", "query/top_1.jpg", "query", "--query", "alone.bmp", "query/more"]
    assert predict(trained / "protonet" / "0", *files) == 0
    files = [r["file"] for r in rows()]
    assert files == sorted(set(files))
    assert len(files) == 13


def test_what_lies_in_a_folder_beside_visible_images_is_passed_over() -> None:
    Path("query/.hidden").mkdir()
    for file in ("query/.hidden/a.png", "query/.a.png", "support/left/.a.png"):
        picture(0, 1).save(file)
    Path("query/more/above").symlink_to(Path("query").absolute())
    assert len(image_files(["query"])) == 12
    assert len(labelled_files("support")[0]) == 6


def test_classes_of_any_name(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["file", '[red]a, "b"', "label"]
    for old, new in zip(("left", "right", "top"), names, strict=True):
        Path("support", old).rename(Path("support", new))
    assert predict(trained / "protonet" / "0") == 0
    assert list(rows()[0])[3:] == [f"p({name})" for name in sorted(names)]
    assert {r["label"] for r in rows()} == set(names)
    said = capsys.readouterr().out
    assert all(name in said for name in names)


def test_the_columns_of_a_tsv_file_are_separated_by_tabs(trained: Path) -> None:
    assert predict(trained / "protonet" / "0", "--out=predictions.tsv") == 0
    assert predict(trained / "protonet" / "0") == 0
    tabs, commas = (Path(f"predictions.{suffix}").read_text() for suffix in ("tsv", "csv"))
    assert tabs.startswith("file\tlabel\tmargin\t")
    assert tabs.replace("\t", ",") == commas


def test_single_files_and_inverted_images(trained: Path) -> None:
    files = ["--query", "query/left_0.jpg", "query/top_1.jpg"]
    command = ["predict", "--ckpt_path", str(trained / "protonet" / "0"), "--support", "support", *files]
    assert main([*command, "--invert"]) == 0
    assert [r["label"] for r in rows()] == ["left", "top"]
    straight, inverted = (read_images(["query/left_0.jpg"], (1, SIZE, SIZE), i) for i in (False, True))
    assert torch.equal(straight.int() + inverted.int(), torch.full_like(straight, 255).int())


def test_a_mistake_in_the_query_leaves_no_export_behind(trained: Path) -> None:
    command = ["predict", "--ckpt_path", str(trained / "protonet" / "0"), "--support", "support", "--query", "nowhere"]
    assert main([*command, "--export", "t.pt2"]) == 2
    assert not Path("t.pt2").exists()


def test_an_exported_task_from_the_command(trained: Path) -> None:
    command = ["predict", "--ckpt_path", str(trained / "protonet" / "0"), "--support", "support"]
    assert main([*command, "--export", "task.pt2"]) == 0
    assert not Path("predictions.csv").exists()
    model = torch.export.load("task.pt2").module()
    assert model(torch.rand(4, 1, SIZE, SIZE)).shape == (4, 3)


def test_a_transductive_model_predicts_all_at_once_or_says_so(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained / "maml" / "0"
    assert predict(run) == 0
    assert "transductive" in capsys.readouterr().out
    assert predict(run, "--out", "few.csv", "--batch_size", "5") == 2
    assert "--batch_norm inductive" in capsys.readouterr().err
    assert predict(run, "--out", "few.csv", "--batch_size", "5", "--batch_norm", "inductive") == 0


def test_a_method_that_labels_a_query_as_a_whole_says_what_it_assumes(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained / "ptmap" / "0"
    assert predict(run) == 0
    assert "PTMAP takes all classes to be equally frequent among them (transductive)" in capsys.readouterr().out
    assert predict(run, "--out", "few.csv", "--batch_size", "5") == 2
    assert (
        "12 images are more than 5, and PTMAP labels all images of a query together; give a larger"
        in capsys.readouterr().err
    )
    (one, *_) = sorted(Path("query").iterdir())
    assert predict(run, "--out", "few.csv", "--query", str(one)) == 2
    assert "one alone would get every class with the same probability; give it more" in capsys.readouterr().err
    assert not Path("few.csv").exists()


def test_images_that_cannot_be_read(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("query/broken.png").write_bytes(b"no picture")
    run = trained / "protonet" / "0"
    assert predict(run) == 2
    error = capsys.readouterr().err
    assert "query/broken.png" in error
    assert "--skip_unreadable" in error
    assert not Path("predictions.csv").exists()
    assert predict(run, "--skip_unreadable") == 0
    said = capsys.readouterr().out
    assert "images could not be read:" in said
    assert "skipped: query/broken.png" in said
    assert len(rows()) == 12
    Path("predictions.csv").unlink()
    assert predict(run, "--skip_unreadable", "--query", "query/broken.png") == 2
    assert "none of 1 images can be read; the first: query/broken.png" in capsys.readouterr().err
    assert not Path("predictions.csv").exists()


BAD = {
    "no support": (["--support=nowhere"], "nowhere: there is no such folder"),
    "no query": (["--query=nowhere"], "nowhere: there is no such file or folder"),
    "no classes": (["--support=query"], "found 1 class folders"),
    "no images": (["--query=empty"], "found no images"),
    "no folder": (["--out=nowhere/labels.csv"], "there is no folder nowhere"),
    "a folder": (["--out=support"], "this is a folder"),
    "a folder without files": (["--out=/proc/labels.csv"], "--out /proc/labels.csv: the folder cannot be written to"),
    "a table that is not text": (["--out=predictions.parquet"], "--out predictions.parquet: the predictions are text"),
    "batch": (["--batch_size=0"], "at least 1"),
    "export": (["--export=task.bin"], ".pt2 or .onnx"),
    "device": (
        ["--device=warp"],
        "--device: 'warp' is not a device of this machine; expected one of auto, cpu, cuda, gpu",
    ),
    "statistics": (["--steps=3"], "has no test_inner_steps"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_ends_in_one_line(case: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    options, said = BAD[case]
    assert predict(trained / "protonet" / "0", *options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert not Path("predictions.csv").exists()


def test_other_ways_other_models_and_classes_without_images(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (0, 1):
        Path("support", "top", f"{number}.png").rename(f"top_{number}.png")
    assert predict(trained / "protonet" / "0") == 2
    assert "this class has no images" in capsys.readouterr().err
    Path("support/top").rmdir()
    assert predict(trained / "maml" / "0") == 2
    assert "error: --support: this MAML has a head for 3 ways, got 2" in capsys.readouterr().err
    Path("sine.yaml").write_text(yaml.safe_dump(MAML))
    assert main(["fit", "--config", "sine.yaml"]) == 0
    assert predict(Path("runs/sine/0")) == 2
    assert "regression" in capsys.readouterr().err.splitlines()[-1]
    Path("rows.csv").write_text("x\n1\n")
    assert main(["predict", "--ckpt_path", "runs/sine/0", "--table", "rows.csv"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "a model of regression is used in Python" in said
    assert "images" not in said


def strokes(kind: int, seed: int, light_on_dark: bool) -> Image.Image:
    """A thin stroke across, down or aslant."""
    at = np.random.default_rng(seed).integers(3, SIZE - 3)
    x = np.zeros((SIZE, SIZE), np.uint8)
    line = np.arange(SIZE)
    x[(np.full(SIZE, at), line, line)[kind], (line, np.full(SIZE, at), (line + at) % SIZE)[kind]] = 255
    return Image.fromarray(x if light_on_dark else 255 - x)


@pytest.mark.parametrize("trained_light", [True, False])
def test_images_whose_light_and_dark_are_not_those_of_training_are_told_once(
    trained_light: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    for c in range(9):
        for i in range(6):
            Path("drawings", f"class_{c}").mkdir(parents=True, exist_ok=True)
            strokes(c % 3, 100 * c + i, trained_light).save(f"drawings/class_{c}/{i}.png")
    source = {"root": "drawings", "image_size": SIZE, "channels": 1, "fractions": [0.34, 0.33, 0.33]}
    data = {
        "class_path": "lightning_meta.EpisodicDataModule",
        "init_args": {
            "source": {"class_path": "lightning_meta.sources.ImageFolder", "init_args": source},
            **{"ways": 3, "shots": 1, "queries": 2, "meta_batches_per_epoch": 1, "val_tasks": 2, "test_tasks": 2},
        },
    }
    backbone = {"class_path": "lightning_meta.nn.Conv4", "init_args": {"in_channels": 1, "width": 4, "blocks": 2}}
    model = {"class_path": "lightning_meta.ProtoNet", "init_args": {"backbone": backbone}}
    Path("run.yaml").write_text(yaml.safe_dump({"model": model, "data": data, "trainer": {**TRAINER, "max_steps": 1}}))
    assert main(["fit", "--config", "run.yaml"]) == 0
    for place, like_training in (("alike", True), ("swapped", False)):
        for kind, name in enumerate(("across", "down", "aslant")):
            Path(place, name).mkdir(parents=True)
            for i in range(3):
                strokes(kind, i, like_training == trained_light).save(Path(place, name, f"{i}.png"))
    wrong, right = ("dark on light", "light on dark") if trained_light else ("light on dark", "dark on light")
    for support, query, options, told in (
        ("alike", "alike", [], ""),
        ("swapped", "swapped", ["--invert"], ""),
        ("swapped", "swapped", [], f"they seem to be {wrong}; give --invert"),
        ("alike", "swapped", [], f"they seem to be {wrong}; give --invert"),
        ("alike", "alike", ["--invert"], f"they seem to be {wrong}; leave --invert out"),
    ):
        capsys.readouterr()
        command = ["predict", "--ckpt_path", "runs/run/0", "--support", support, "--query", query, "--batch_size", "2"]
        command += ["--overwrite"]
        assert main([*command, *options]) == 0
        said = capsys.readouterr().err
        assert said.count("lightning-meta: warning: ") == said.count("they seem to be") == bool(told)
        assert told in said
        assert right not in said


def calibrate(run: Path, *options: str) -> int:
    quiet = "--trainer.enable_progress_bar=false"
    return main(["test", "--ckpt_path", str(run), "--calibrate", "0.8", "--tasks", "30", quiet, *options])


@pytest.fixture
def run(trained: Path) -> Path:
    """A copy of the run of ProtoNet, where a calibration of one test is not another's."""
    shutil.copytree(trained / "protonet" / "0", "runs/protonet/0")
    return Path("runs/protonet/0")


def test_sets_and_abstention_in_the_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(run, "--calibrated") == 2
    said = capsys.readouterr().err
    command = f"lightning-meta test --ckpt_path {run} --calibrate 0.9 --ways 3 --shots 2"
    assert f"not calibrated for the 3 classes with 2 images each of --support; run `{command}`, which needs 3" in said
    assert (
        "3 classes in the validation split of its data and 3 others in the test split; to calibrate on further" in said
    )
    assert "FewShotClassifier.calibrate" in said
    assert calibrate(run) == 0
    said = capsys.readouterr().out
    assert "test tasks, other classes" in said
    assert "calibration_3way_2shot.json" in said
    stored = json.loads((run / "calibration_3way_2shot.json").read_text())
    assert (stored["split"], stored["ways"], stored["shots"], stored["tasks"]) == ("val", 3, 2, 30)
    assert predict(run, "--calibrated") == 0
    assert "images, for which no class is probable enough" in capsys.readouterr().out
    rows = list(csv.DictReader(Path("predictions.csv").read_text().splitlines()))
    assert list(rows[0]) == ["file", "label", "margin", "set", "abstained", "p(left)", "p(right)", "p(top)"]
    model = load(run)
    shape = model.spec.input_shape
    files, labels = labelled_files("support")
    predictor = model.predictor(read_images(files, shape), labels)
    outputs = predictor.outputs(read_images(image_files(["query"]), shape))
    p = (outputs.double() / stored["temperature"]).softmax(-1)
    for row, of_row in zip(rows, p.tolist(), strict=True):
        by_name = dict(zip(("left", "right", "top"), of_row, strict=True))
        assert [float(row[f"p({name})"]) for name in by_name] == pytest.approx(of_row, abs=1e-6)
        assert json.loads(row["set"]) == [name for name, v in by_name.items() if 1 - v <= stored["quantile"] + 1e-6]
        assert row["abstained"] == str(max(of_row) < stored["threshold"] - 1e-6).lower()


def test_a_calibration_that_does_not_fit_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate(run, "--tasks=4") == 0
    file = run / "calibration_3way_2shot.json"
    text = file.read_text()

    def refused(said: str, *options: str) -> None:
        capsys.readouterr()
        assert predict(run, "--calibrated", *options) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
        assert not Path("predictions.csv").exists()

    refused("was made with batch_norm running, and not inductive", "--batch_norm=inductive")
    file.write_text('{"ways": NaN}')
    refused("is not a calibration, or it is damaged")
    file.write_text(json.dumps({**json.loads(text), "weights": "none of these"}))
    refused("was made with other weights; calibrate again by `lightning-meta test")
    file.rename(run / "calibration_3way_5shot.json")
    refused("(only for 3way_5shot); run `lightning-meta test")
    Path("support/left/1.png").unlink()
    refused("classes with the same number of images, those of --support have 1 to 2")


def test_what_cannot_be_calibrated_is_refused_in_one_line(
    run: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(run / "checkpoints" / "best.ckpt", "alone.ckpt")
    config = f"--config={run / 'config.yaml'}"
    for where, options, said in (
        (run, ["--ways=2,3"], "--ways: --calibrate takes one number of ways and shots"),
        (run, ["--ways=5"], "--ways: 5 classes a task were asked for, but the val split has 4"),
        (run, ["--calibrate=1"], "--calibrate: a share above 0 and below 1 is needed, such as 0.9; got 1"),
        (Path("alone.ckpt"), [config], "--calibrate: alone.ckpt is not in a run directory"),
        (trained / "maml" / "0", [], "--batch_norm: MAML predicts the queries of a task together"),
        (trained / "ptmap" / "0", [], "PTMAP predicts the queries of a task together"),
    ):
        capsys.readouterr()
        assert calibrate(where, *options) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert not list(run.glob("calibration*"))
