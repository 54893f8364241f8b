"""The pictures after a test: the numbers behind them, and that drawing changes nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
import yaml
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from sklearn.decomposition import PCA

from lightning_meta.batches import SPLITS, Split
from lightning_meta.cli import main
from lightning_meta.data import Episodes, Pool, Source
from lightning_meta.meta import MetaModule
from lightning_meta.pictures import EpisodeGrid
from lightning_meta.pictures.confusion import confusion
from lightning_meta.pictures.embedding import principal
from tests.test_cli import MAML, TRAINER

NAMES = (r"$\frac{$", "_hidden", "a very long name of a class that nobody would write by hand", "x", "y", "z")


class Shaped(Source):
    """Noise of a shape, in classes with names that trip matplotlib.

    Args:
        shape: Shape of an example.
    """

    def __init__(self, shape: list[int]) -> None:
        self.shape = shape

    def pools(self) -> dict[Split, Pool]:
        def pool(split: Split) -> Pool:
            names = NAMES if split == "test" else [f"{split} {c}" for c in range(6)]
            generator = torch.Generator().manual_seed(len(split))
            return Pool.from_examples(
                torch.rand(48, *self.shape, generator=generator), [c // 8 for c in range(48)], names
            )

        return {split: pool(split) for split in SPLITS}


class Fails(EpisodeGrid):
    """A picture that cannot be drawn."""

    def draw(self, module: MetaModule, dataset: Episodes, folder: Path) -> Figure:
        raise ArithmeticError("no\nsuch thing")


PICTURES = ["EpisodeGrid", "EpisodeEmbedding", "ConfusionByClass", "ShotAndWay"]


def config(model: str, pictures: list[Any]) -> dict[str, Any]:
    backbone = {"class_path": "lightning_meta.nn.Conv4", "init_args": {"in_channels": 1, "width": 4, "blocks": 2}}
    data = {
        "class_path": "lightning_meta.EpisodicDataModule",
        "init_args": {
            "source": {"class_path": "tests.ddp_driver.Tiny"},
            **{"ways": 3, "shots": 1, "queries": 4, "meta_batches_per_epoch": 2, "val_tasks": 4, "test_tasks": 9},
        },
    }
    callbacks = [{"class_path": f"lightning_meta.pictures.{p}"} if isinstance(p, str) else p for p in pictures]
    trainer = {**TRAINER, "max_steps": 2, "callbacks": callbacks}
    model_of = {"class_path": f"lightning_meta.meta.{model}", "init_args": {"backbone": backbone}}
    return {"model": model_of, "data": data, "trainer": trainer}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fit(content: dict[str, Any], name: str = "run") -> int:
    Path(f"{name}.yaml").write_text(yaml.safe_dump(content))
    return main(["fit", "--config", f"{name}.yaml"])


def test_confusion_counts_classes_and_not_labels() -> None:
    classes = torch.tensor([[4, 0, 2], [0, 4, 1]])
    targets = torch.tensor([[0, 1, 2], [0, 1, 2]])
    taken = torch.tensor([[0, 0, 2], [1, 1, 2]])  # of the first task 0 as 4, of the second 0 as 4
    outputs = torch.nn.functional.one_hot(taken, 3).float()
    counts, possible = confusion(outputs, targets, classes, 5)
    assert counts[0, 4] == 2
    assert counts[4].tolist() == [0, 0, 0, 0, 2]
    assert possible[0].tolist() == [2, 1, 1, 0, 2]
    assert counts.sum() == 6
    assert possible[3].sum() == 0


def test_principal_components_are_those_of_scikit_learn() -> None:
    features = torch.randn(30, 7, generator=torch.Generator().manual_seed(0)).double() * torch.arange(1.0, 8)
    centre, plane, shares = principal(features)
    reference = PCA(2).fit(features.numpy())
    np.testing.assert_allclose(shares.numpy(), reference.explained_variance_ratio_, rtol=1e-9)
    found = ((features - centre) @ plane).abs().numpy()
    np.testing.assert_allclose(found, np.abs(reference.transform(features.numpy())), rtol=1e-7, atol=1e-9)


def test_pictures_are_drawn_and_change_no_number() -> None:
    assert fit(config("ProtoNet", PICTURES), "with") == 0
    assert fit(config("ProtoNet", []), "without") == 0
    drawn = {f.name for f in Path("runs/with/0/figures").iterdir()}
    assert drawn >= {"episode.png", "embedding.png", "confusion.png", "shot_and_way.png"}
    for name in ("episode", "embedding", "confusion", "shot_and_way"):
        with Image.open(f"runs/with/0/figures/{name}.png") as picture:
            assert min(picture.size) > 300
            assert np.asarray(picture.convert("L")).std() > 5  # not empty
    one, other = (json.loads(Path(f"runs/{n}/0/results.json").read_text()) for n in ("with", "without"))
    assert {k: v for k, v in one.items() if k.startswith("test/")} == {
        k: v for k, v in other.items() if k.startswith("test/")
    }
    weights = [
        torch.load(f"runs/{n}/0/checkpoints/last.ckpt", weights_only=True)["state_dict"] for n in ("with", "without")
    ]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_the_tables_say_what_the_run_says() -> None:
    measure = {"class_path": "lightning_meta.pictures.ShotAndWay"}
    measure["init_args"] = {"ways": [3], "shots": [1, 20], "tasks": 9, "queries": 4}  # type: ignore[assignment]
    assert fit(config("ProtoNet", ["ConfusionByClass", measure])) == 0
    said = json.loads(Path("runs/run/0/results.json").read_text())
    (row,) = csv.DictReader(Path("runs/run/0/figures/shot_and_way.csv").read_text().splitlines())
    assert float(row["accuracy"]) == pytest.approx(said["test/accuracy"])  # the same tasks
    assert float(row["accuracy_ci95"]) == pytest.approx(said["test/accuracy_ci95"])
    rows = list(csv.DictReader(Path("runs/run/0/figures/confusion.csv").read_text().splitlines()))
    right = sum(int(r["queries"]) for r in rows if r["class"] == r["taken_for"])
    assert sum(int(r["queries"]) for r in rows) == 9 * 3 * 4
    assert right / (9 * 3 * 4) == pytest.approx(said["test/accuracy"])


def shaped(pictures: list[Any], *shape: int) -> dict[str, Any]:
    """ProtoNet on noise of a shape, three ways of six."""
    content = config("ProtoNet", pictures)
    source = {"class_path": f"{__name__}.Shaped", "init_args": {"shape": list(shape)}}
    content["data"]["init_args"]["source"] = source
    backbone = {
        "class_path": "lightning_meta.nn.Conv4",
        "init_args": {"in_channels": shape[0], "width": 4, "blocks": 2},
    }
    flat = {"class_path": "lightning_meta.nn.MLP", "init_args": {"in_features": shape[0], "hidden": [8]}}
    content["model"]["init_args"]["backbone"] = flat if len(shape) == 1 else backbone
    return content


def test_names_are_text_whatever_they_are(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said: dict[str, list[str]] = {}
    write = Figure.savefig

    def noted(self: Figure, file: IO[bytes], **options: Any) -> None:
        name = Path(file.name).name.removeprefix(".").partition(".png")[0]  # beside the target until it is whole
        said[f"{name}.png"] = [text.get_text() for legend in self.legends for text in legend.get_texts()]
        for legend in self.legends:
            markers = {handle.get_marker() for handle in legend.legend_handles if isinstance(handle, Line2D)}
            assert len(markers) == len(legend.get_texts())
        write(self, file, **options)

    monkeypatch.setattr(Figure, "savefig", noted)
    content = shaped(PICTURES, 1, 16, 16)
    content["data"]["init_args"]["ways"] = 6
    assert fit(content) == 0
    assert "could not be drawn" not in capsys.readouterr().err
    assert len(list(Path("runs/run/0/figures").glob("*.png"))) >= 5
    assert len(said["embedding.png"]) == 6
    assert {line.partition(": ")[2] for line in said["embedding.png"]} >= {r"$\frac{$", "_hidden"}
    assert max(map(len, said["embedding.png"])) < 35


def test_a_picture_that_fails_costs_no_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(config("ProtoNet", [{"class_path": f"{__name__}.Fails"}, "ConfusionByClass"])) == 0
    assert "figures/episode.png could not be drawn (ArithmeticError: no such thing)\n" in capsys.readouterr().err
    run = Path("runs/run/0")
    assert {"results.json", "predictions.npz", "per_task.csv"} <= {file.name for file in run.iterdir()}
    assert (run / "figures" / "confusion.png").is_file()


@pytest.mark.parametrize("shape", [(2, 16, 16), (256,)])
def test_what_is_no_image_is_said_before_training(shape: tuple[int, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(shaped(["EpisodeGrid"], *shape)) == 2
    assert f"examples have shape {shape}" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not Path("runs").exists()
    assert fit(shaped(["ConfusionByClass"], *shape)) == 0


@pytest.mark.parametrize("case", ["method", "regression", "argument"])
def test_what_cannot_be_drawn_is_said_before_training(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    grid = {"class_path": "lightning_meta.pictures.EpisodeGrid"}
    content, said = {
        "method": (config("MAML", ["EpisodeEmbedding"]), "MAML has none"),
        "regression": ({**MAML, "trainer": {**TRAINER, "callbacks": [grid]}}, "these tasks are regression"),
        "argument": (config("ProtoNet", [{**grid, "init_args": {"task": -1}}]), "at least 0"),
    }[case]
    assert fit(content) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
    assert not Path("runs").exists()


def test_curves_of_several_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runs = ["a$x_{$b", "_hidden"]
    for name in runs:
        Path(name).mkdir()
        (Path(name) / "metrics.csv").write_text("step,val/accuracy\n4,0.5\n8,0.6\n")
    figures: list[Figure] = []
    write = Figure.savefig

    def kept(self: Figure, *args: Any, **options: Any) -> None:
        figures.append(self)
        write(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", kept)
        assert main(["curves", *runs, "--out", "both.png"]) == 0
    assert Path("both.png").stat().st_size > 5000
    legend = figures[0].axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == runs
    assert len({handle.get_linestyle() for handle in legend.legend_handles if isinstance(handle, Line2D)}) == 2
    facts = {"model": "lightning_meta.ProtoNet", "test_chance": 0.2}
    (Path(runs[0]) / "results.json").write_text(json.dumps(facts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", kept)
        assert main(["curves", *runs, "--out", "all.png"]) == 0
    legend = figures[-1].axes[0].get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == [f"{runs[0]} (ProtoNet)", runs[1], "chance, 20 %"]
    capsys.readouterr()
    for options, said in (
        (["runs/run/7"], "no metrics.csv"),
        (["_hidden", "--metric", "val/mse"], "it has val/accuracy"),
        (["_hidden", "--out", "nowhere/x.png"], "there is no folder nowhere"),
        (["_hidden", "--out", "x.xyz"], "--out x.xyz: expected a file that ends in one of "),
        (["_hidden", "--out", "picture"], ".png, "),
        (["_hidden", "--out", "folder.png"], "this is a folder"),
    ):
        Path("folder.png").mkdir(exist_ok=True)
        assert main(["curves", *options]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
