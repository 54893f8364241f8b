"""A picture is whole or absent, whoever draws it and whenever that ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from lightning_meta.report.drawing import save_figure

SOURCES = Path(__file__).parents[2] / "lightning_meta"


@pytest.mark.parametrize("name", ["a.png", "new/a.pdf", "a.SVG"])
def test_a_picture_has_the_format_of_its_suffix(tmp_path: Path, name: str) -> None:
    save_figure(Figure((1, 1)), tmp_path / name)
    begins = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[name[-3:].lower()]
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_a_picture_that_is_cut_off_leaves_the_one_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(self: Figure, out: Any, **options: Any) -> None:
        out.write(b"\x89PNG") if hasattr(out, "write") else Path(out).write_bytes(b"\x89PNG")
        raise KeyboardInterrupt

    file = tmp_path / "a.png"
    save_figure(Figure((1, 1)), file)
    before = file.read_bytes()
    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(KeyboardInterrupt):
        save_figure(Figure((1, 1)), file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_no_picture_is_written_otherwise() -> None:
    assert [f.name for f in SOURCES.rglob("*.py") if ".savefig(" in f.read_text()] == ["drawing.py"]
