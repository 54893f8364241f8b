"""The pictures after a test: the numbers behind them, and that drawing changes nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.decomposition import PCA

from lightning_meta.cli import main
from lightning_meta.pictures.confusion import confusion
from lightning_meta.pictures.embedding import principal
from tests.test_cli import MAML, TRAINER

PICTURES = ["EpisodeGrid", "EpisodeEmbedding", "ConfusionByClass", "ShotAndWay"]


def config(model: str, pictures: list[Any]) -> dict[str, Any]:
    backbone = {"class_path": "lightning_meta.nn.Conv4", "init_args": {"in_channels": 1, "width": 4, "blocks": 2}}
    data = {
        "class_path": "lightning_meta.data.EpisodicDataModule",
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
    for _ in range(2):
        assert fit(config("ProtoNet", [])) == 0
    assert main(["curves", "runs/run/0", "runs/run/1", "--out", "both.png"]) == 0
    assert Path("both.png").stat().st_size > 5000
    capsys.readouterr()
    for options, said in (
        (["runs/run/7"], "no metrics.csv"),
        (["runs/run/0", "--metric", "val/mse"], "it has val/accuracy"),
        (["runs/run/0", "--out", "nowhere/x.png"], "there is no folder nowhere"),
    ):
        assert main(["curves", *options]) == 2
        assert said in capsys.readouterr().err
