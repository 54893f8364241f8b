"""Inputs on which the fuzz tests once failed."""

from __future__ import annotations

import base64
import io
import sys
import zlib
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import yaml
from PIL import Image
from pyarrow import parquet

from lightning_meta.cli import main
from lightning_meta.data.files import WrongContentError
from lightning_meta.data.image_files import decode
from lightning_meta.data.images import image_files
from lightning_meta.errors import UserError
from lightning_meta.sources import ImageFolder, Table
from lightning_meta.sources.cifar import _integers

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


# A Parquet file with another number of levels in the statistics of a column. pyarrow ends the process that looks at the
# description of this column.
LEVELS = zlib.decompress(
    base64.b85decode(
        "c-oazu}>3W6n}Tzo!8PY7UVnc>P1g!k23)*C6LCH^uB_Cp~RC&ghUfcErl2aTeUElFtT769Mplq!NKqcI667uU|bwc7&OMg=)&OO`|eu6"
        "hyyQu_r34Ecfa57y<F<Ci5@D^HJSbt^VFlz3h-70AOiHtg7h&fpNRDCW_M%(zLTi*D;w&7J)*0>v+rd~0ymUYo80HvDZ3#@RoyuZ!>-&R"
        "?L>$popeKKh!O`{i4Lbo657ZpP`qpCI=X=#Lq9`iz{K+``Z=P4g?-02i=^Q^B3vLYx&!TXkE18*ZWAYNyK}yExD+T(-HC%osX`S~R~r>w"
        "t%I&<;2e={X~C!c6jueFpftNyWT;?{zU<8JX1w_LjneI@SBtm4Jf3l$+*#Pd4Qn)($Aj;;+2L;$X43#E0i+*UauOG*f{KGji5hQn0}h?b"
        ">!zv0@*0)D<^7xW<(-}i<TW*~zl(jCYLDF=DsIegw`@?!$oGM+REzVa#R64;h7(C$SOFSIh`LZsK;FbRF^jiV&^*I5GB%hrZ1jN=HL#V6"
        "nx}nJw9k_LqRCc|w>hJeuY!tzk0>6Qi;7``$2W>3kp@ZCCs`M?O~Kxh?XQyA4~|gO#lq}SAliy?7-nDVst@x<)HX%?lVb15$J^uo#cHp^"
        "nrExpnhJ)gN7%%~wVRiNo$AlTOWe|BhIX9=HpW<u<;rZBu`(O<ODvaTY@7#!j9v8;2PX?kxoRT{payFk+HYC$lamMiY(FgV*0DSn!8l~f"
        "!?4C7CVf34?69<YIO?-p;g?(;Y1r2@&2lw%P;Br7{L@GB`xIq9??^q5BMuCJZY>uo_aBxXbQPDEy9$-cQq6i)s#F)2?pdk+?qqk5k-^U|"
        "_`x=Q!yf)i{Q<e?%i;"
    )
)


def test_a_parquet_file_with_damaged_statistics_of_a_column(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    file.write_bytes(LEVELS)
    with pytest.raises(UserError, match=r"t.parquet: the table cannot be read"):
        Table(file, {"y": "regression"}).tasks()


def test_texts_of_a_parquet_file_that_are_not_in_utf_8(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    texts = pyarrow.array([b"a\xff"] * 30).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"s": texts, "y": list(range(30))}), file)
    with pytest.raises(UserError, match=r"the table cannot be read .*UTF8"):
        Table(file, {"y": "regression"}).sets()


@pytest.mark.parametrize(
    "values",
    [
        pyarrow.array([[1, 2]] * 30),
        pyarrow.array([[1.0, 2.0]] * 30, pyarrow.list_(pyarrow.float64(), 2)),
        pyarrow.array([{"a": 1}] * 30),
    ],
    ids=["lists", "lists of a size", "parts"],
)
def test_nested_columns_of_a_parquet_file_are_not_read(values: Any, tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    x, y = [i % 7 for i in range(30)], [i / 3 for i in range(30)]
    parquet.write_table(pyarrow.table({"a": values, "x": x, "y": y}), file)
    with pytest.raises(UserError, match=r"column 'a' is of type .* leave it out"):
        Table(file, {"y": "regression"}).sets()
    without = Table(file, {"y": "regression"}, leave_out=["a"])
    assert without.input_names == ["x"]
    without.sets()
    parquet.write_table(pyarrow.table({"a": values, "a.b": x, "y": y}), file)
    with pytest.raises(UserError, match=r"column 'a.b' has the name of a part of another column"):
        Table(file, {"y": "regression"}).sets()


def test_a_label_of_cifar_that_is_too_large() -> None:
    with pytest.raises(WrongContentError, match=r"whole numbers of 64 bits"):
        _integers([2**70])
