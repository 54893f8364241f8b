"""An exported task labels image files as `predict` does, whatever its options: on drawings of Omniglot."""

from __future__ import annotations

import csv
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lightning_meta import load
from lightning_meta.cli import main
from lightning_meta.data.images import labelled_files, read_images
from lightning_meta.errors import UserError
from lightning_meta.meta import MAML, MetaModule, ProtoNet
from lightning_meta.nn import MLP, Conv4
from lightning_meta.tasks import EpisodeSpec
from tests.meta.oracles import roughen

ARCHIVE = Path(os.environ.get("LIGHTNING_META_DATA", "data"), "omniglot", "images_background.zip")
CLASSES, SUPPORT, QUERY, SIZE = 3, 2, 7, 20
needs_omniglot = pytest.mark.skipif(not ARCHIVE.is_file(), reason="needs Omniglot under LIGHTNING_META_DATA")


def save(module: MetaModule, file: Path) -> None:
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.eval().on_save_checkpoint(checkpoint)
    torch.save(checkpoint, file)


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models whose weights are random, a folder of a few labelled drawings, and one of drawings to label.

    The drawings, dark on white and of several sizes, are grey or in colour, and some lie on their side.
    """
    folder = tmp_path_factory.mktemp("drawings")
    torch.manual_seed(0)
    for channels in (1, 3):
        spec = EpisodeSpec("classification", (channels, SIZE, SIZE), CLASSES, input_dtype="uint8")
        backbone = Conv4(channels, 4, blocks=2)
        models: dict[str, MetaModule] = {
            "protonet": ProtoNet(backbone, episodes=spec),
            "maml": MAML(backbone, 0.05, 20, episodes=spec),
            "inductive": MAML(backbone, 0.05, 20, batch_norm="inductive", episodes=spec),
        }
        for name, module in models.items():
            roughen(module)
            save(module, folder / f"{name}_{channels}.ckpt")
    with zipfile.ZipFile(ARCHIVE) as archive:
        members = sorted(n for n in archive.namelist() if n.endswith(".png"))
        for c in range(CLASSES):
            for i, member in enumerate(members[40 * c : 40 * c + SUPPORT + QUERY]):
                place = folder / ("support" if i < SUPPORT else "query") / f"character_{c}"
                place.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as file:
                    image = Image.open(file).convert("L")
                kinds = [image, Image.merge("RGB", (image, ImageOps.mirror(image), image.point(lambda v: v // 2)))]
                exif = Image.Exif()
                exif[0x0112] = 6 if i % 3 == 2 else 1
                kinds[i % 2].resize((105, 80 + 5 * i)).save(place / f"{i}.png", exif=exif)
    return folder


def prepared(files: list[Path], channels: int, steps: list[str]) -> Tensor:
    """Images after the steps that the metadata ask for, by Pillow and NumPy alone."""
    done = []
    for file in files:
        image: Any = Image.open(file)
        for step in steps:
            if step.startswith("decode"):
                image = ImageOps.exif_transpose(image)
            elif step == "show transparent pixels on white":
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            elif step.startswith("convert it to grey: 0.299 R + 0.587 G + 0.114 B"):
                image = image.convert("L")
            elif step.startswith("convert it to RGB"):
                image = image.convert("RGB")
            elif (
                step == f"resize it to {SIZE} x {SIZE} pixels by Pillow's LANCZOS, whatever its proportions, in 8 bits"
            ):
                image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
            elif step == "lay it out channels first":
                image = np.asarray(image).reshape(SIZE, SIZE, channels).transpose(2, 0, 1)
            else:
                assert step == "divide by 255"
                image = np.float32(image) / np.float32(255)
        done.append(image)
    return torch.from_numpy(np.stack(done))


CASES = [
    ("protonet_1", ["--invert"]),
    ("protonet_1", ["--batch_size", "4"]),
    ("protonet_3", ["--invert", "--skip_unreadable"]),
    ("maml_1", ["--invert"]),
    ("maml_1", ["--invert", "--batch_norm", "inductive", "--steps", "30"]),
    ("inductive_3", ["--batch_norm", "transductive", "--invert", "--device", "cpu"]),
]


def labelled(folder: Path, model: str, options: list[str], file: str) -> tuple[list[Path], Tensor]:
    """Run the command: the files in its table, and their probabilities."""
    command = ["predict", "--ckpt_path", str(folder / f"{model}.ckpt"), "--support", str(folder / "support")]
    assert main([*command, "--query", str(folder / "query"), "--export", file, *options]) == 0
    with Path("predictions.csv").open(newline="") as table:
        rows = list(csv.reader(table))[1:]
    return [Path(row[0]) for row in rows], torch.tensor([[float(p) for p in row[3:]] for row in rows])


def check(about: dict[str, Any], model: str, options: list[str], predicted: Tensor, found: Tensor) -> None:
    assert about["classes"] == [f"character_{c}" for c in range(CLASSES)]
    assert about["inverts"] == ("--invert" in options)
    assert ("turn dark into light: 1 - x" in about["within"]) == ("--invert" in options)
    if "--batch_norm" in options:
        assert about["batch_norm"] == options[options.index("--batch_norm") + 1]
    if "maml" in model:
        assert about["test_inner_steps"] == (30 if "--steps" in options else 20)
    assert len(predicted) == CLASSES * QUERY
    assert len(set(predicted.argmax(1).tolist())) > 1
    assert found.argmax(1).tolist() == predicted.argmax(1).tolist()
    torch.testing.assert_close(found, predicted, rtol=0, atol=2e-5)


@needs_omniglot
@pytest.mark.parametrize(("model", "options"), CASES)
def test_an_exported_task_labels_as_predict_does(
    model: str, options: list[str], drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files, predicted = labelled(drawings, model, options, "task.pt2")
    extra = {"lightning_meta.json": ""}
    program = torch.export.load("task.pt2", extra_files=extra).module()
    about = json.loads(extra["lightning_meta.json"])
    x = prepared(files, int(model[-1]), about["before"])
    check(about, model, options, predicted, program(x))
    for wrong in (x[:, :, 1:], x[:, [0] * (4 - int(model[-1]))], (255 * x).to(torch.uint8)):
        with pytest.raises((AssertionError, RuntimeError)):  # the program checks its input
            program(wrong)


@needs_omniglot
@pytest.mark.slow
@pytest.mark.parametrize(("model", "options"), CASES)
def test_an_exported_task_labels_as_predict_does_in_onnx(
    model: str, options: list[str], drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    files, predicted = labelled(drawings, model, options, "task.onnx")
    session = runtime.InferenceSession("task.onnx")
    about = json.loads(session.get_modelmeta().custom_metadata_map["lightning_meta.json"])
    (found,) = session.run(None, {"x": prepared(files, int(model[-1]), about["before"]).numpy()})
    check(about, model, options, predicted, torch.from_numpy(found))


@needs_omniglot
def test_stored_images_are_inverted_within_as_well(drawings: Path, tmp_path: Path) -> None:
    model = load(drawings / "protonet_1.ckpt")
    images = read_images(labelled_files(drawings / "query")[0], model.spec.input_shape)
    files, labels = labelled_files(drawings / "support")
    predictor = model.predictor(read_images(files, model.spec.input_shape, invert=True), labels)
    file = predictor.export(tmp_path / "task.pt2", torch.uint8, invert=True)
    extra = {"lightning_meta.json": ""}
    program = torch.export.load(file, extra_files=extra).module()
    about = json.loads(extra["lightning_meta.json"])
    assert about["within"] == ["divide by 255", "turn dark into light: 1 - x"]
    assert "divide by 255" not in " ".join(about["before"])
    torch.testing.assert_close(program(images), predictor.probabilities(255 - images), rtol=0, atol=1e-5)


def test_what_is_no_image_cannot_be_inverted(tmp_path: Path) -> None:
    module = ProtoNet(MLP(4, (8,)), episodes=EpisodeSpec("classification", (4,), 2))
    predictor = module.predictor(torch.rand(4, 4), "aabb")
    with pytest.raises(UserError, match=r"invert: only images can be inverted, these inputs have shape \(4,\)"):
        predictor.export(tmp_path / "task.pt2", invert=True)
