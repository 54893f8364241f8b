"""What the fuzz tests have found, each once and quickly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_meta.cli import main
from lightning_meta.errors import UserError

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


def test_no_line_holds_what_a_terminal_would_obey() -> None:
    assert str(UserError("a\x1b[31m\nb\udcff ä 日本")) == "a\\x1b[31m b\\udcff ä 日本"
