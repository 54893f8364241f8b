"""A change of the encoding of tables must raise `table_cache.FORMAT`, or a clone goes on with what it stored before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from lightning_meta.sources import LabelledTable, RegressionTable, Table, table_cache

# If a test fails because the encoding has changed on purpose: increase FORMAT, and store the new values here.
FORMAT = 4
EXPECTED = {
    "standardised": ("7a61cd1ec6fa8eaa", 167885.4843460298),
    "quantiles": ("36be5b3c7b31a769", 353619.2079546803),
    "codes": ("3cf76ce1799a3e91", 74936.94996826278),
    "classes": ("577f64d3f1715f27", 8600.230853587054),
    "regressions": ("6023ee70b55e0181", 11237.784558453746),
}
SOURCES: dict[str, Any] = {
    "standardised": lambda path: Table(path, {"price": None, "sold": "binary"}, weights="weight", group_column="town"),
    "quantiles": lambda path: Table(path, {"price": None}, scaling="quantile_normal", missing_indicators=True),
    "codes": lambda path: Table(path, {"price": None}, categories="codes", task_column="town"),
    "classes": lambda path: LabelledTable(path, label="style", least_examples=5),
    "regressions": lambda path: RegressionTable(path, targets="price", task_column="town"),
}


def lines() -> Iterator[str]:
    """Numbers, large numbers, text, missing values and a constant, without a random generator."""
    yield "area,id,style,same,town,weight,price,sold"
    for i in range(200):
        area = "" if i % 11 == 0 else f"{(i * 37 % 101) ** 2 / 800}"
        style = ("old", "new", "", "mid century")[i * 7 % 4]
        yield f"{area},{2**60 + i * 3},{style},3,{'ABC'[i % 3]},{1 + i % 5},{i * 53 % 97 / 40},{i * 29 % 31 < 9:d}"


def floats(value: Any) -> Iterator[float]:
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from floats(part)
    if isinstance(value, float):
        yield value


def without_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_floats(part) for name, part in value.items() if name != "fingerprint"}
    return (
        [without_floats(part) for part in value]
        if isinstance(value, list)
        else ""
        if isinstance(value, float)
        else value
    )


def total(values: Tensor) -> float:
    """A sum that depends on the order and sign of the values, and hardly on their last digits."""
    x = values.double().flatten().nan_to_num(7.0)
    weights = 1 + torch.arange(len(x)) % 13
    return float(((x + 0.3).abs() * weights).sum())


@pytest.mark.parametrize("name", SOURCES)
def test_a_change_of_the_encoding_raises_its_number(
    name: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_cache, "LEAST", 1)
    path = tmp_path / "t.csv"
    path.write_text("\n".join(lines()) + "\n")
    source = SOURCES[name](path)
    source.sets() if isinstance(source, Table) else source.pools()
    (stored,) = (cache / "tables").iterdir()
    with safe_open(stored, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in sorted(file.keys())}
        about = json.loads(file.metadata()["about"])["about"]
    shapes = [(key, str(x.dtype), list(x.shape)) for key, x in tensors.items()]
    layout = hashlib.sha256(json.dumps([shapes, without_floats(about)], sort_keys=True).encode()).hexdigest()[:16]
    numbers = total(torch.tensor(list(floats(about)), dtype=torch.float64)) + sum(map(total, tensors.values()))
    same = layout == EXPECTED[name][0] and numbers == pytest.approx(EXPECTED[name][1], rel=1e-6)
    assert (table_cache.FORMAT, same) == (FORMAT, True), (
        f'the encoding has changed: "{name}": ("{layout}", {numbers!r}),'
    )
