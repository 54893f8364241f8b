"""Inputs on which the fuzz tests once failed."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from lightning_meta.cli import main
from lightning_meta.data.image_files import decode
from lightning_meta.data.images import image_files
from lightning_meta.errors import UserError
from lightning_meta.sources import ImageFolder

CONFIG = Path(__file__).parents[2] / "configs" / "maml_sinusoid.yaml"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"config": False}, "the configuration cannot be read (AttributeError"),
        ({"seed_everything": -1}, "seed_everything: expected 0 to 4294967295, got -1"),
        ({"model": None}, "--model must be given"),
    ],
)
def test_a_configuration_that_trips_the_parser(
    tmp_path: Path, change: dict[str, Any], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(CONFIG.read_text()) | change
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(content))
    assert main(["fit", "--config", str(file), f"--runs={tmp_path / 'runs'}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert line in said
    assert not (tmp_path / "runs").exists()


def test_a_wrong_argument_of_what_is_no_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load(CONFIG.read_text())
    content["model"]["init_args"]["lr_scheduler"] = {"init_args": {"gamma": 0.5}}
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(content))
    assert main(["fit", "--config", str(file), f"--runs={tmp_path / 'runs'}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it passes over
def test_a_damaged_exif_tag_is_one_line(tmp_path: Path) -> None:
    buffer, tags = io.BytesIO(), Image.Exif()
    tags.update({274: 6, 271: "maker", 282: 72.0})
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", exif=tags)
    whole, file = buffer.getvalue(), tmp_path / "a.jpg"
    start, refused = whole.index(b"Exif"), []
    for place in range(start, start + len(tags.tobytes())):
        for value in (0, 1, 2, 3, 5, 7, 11, 26, 255):
            file.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            try:
                assert decode(file, 4, 3).shape == (3, 4, 4)
            except UserError as error:
                refused.append(str(error))
    assert any("required argument is not an integer" in line for line in refused)  # a struct.error
    assert all(line.startswith(f"{file}: the file cannot be read as an image (") for line in refused)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are in Unicode there")
@pytest.mark.parametrize("place", ["\udcff.png", "\udcff", "."])
def test_a_name_that_is_not_in_utf_8(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path() if place.endswith(".png") else Path("\udcff")
    folder.mkdir(exist_ok=True)
    with (folder / "\udcff.png").open("wb") as file:
        Image.new("L", (9, 9)).save(file, "PNG")
    with pytest.raises(UserError, match="the name is not in UTF-8; rename it"):
        image_files([place])
    with pytest.raises(UserError, match="the name is not in UTF-8; rename it"):
        ImageFolder("\udcff").prepare()


def test_no_line_holds_what_a_terminal_would_obey() -> None:
    assert str(UserError("a\x1b[31m\nb\udcff ä 日本")) == "a\\x1b[31m b\\udcff ä 日本"
