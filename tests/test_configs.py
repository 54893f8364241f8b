"""Every shipped configuration parses against the signatures, and runs or names the one path that it misses."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lightning_meta import load
from lightning_meta.cli import main

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
NEEDS_IMAGES = {"protonet_mini_imagenet", "maml_mini_imagenet", "protonet_image_folder"}
NEEDS_DATA = {"protonet_omniglot", "maml_omniglot", "protonet_cifar_fs", "maml_cifar_fs"}
EMBEDDED = {"protonet_glyphs", "maml_glyphs", "baseline_glyphs", "maml_sinusoid"}


def test_all_are_covered() -> None:
    assert {config.stem for config in CONFIGS} == NEEDS_IMAGES | NEEDS_DATA | EMBEDDED


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_says_how_to_run_it_and_holds_no_number_that_yaml_reads_as_text(config: Path) -> None:
    text = config.read_text()
    assert f"python scripts/fit.py --config configs/{config.name}" in text

    def leaves(node: object) -> list[object]:
        if isinstance(node, dict):
            return [leaf for value in node.values() for leaf in leaves(value)]
        return [leaf for value in node for leaf in leaves(value)] if isinstance(node, list) else [node]

    for leaf in leaves(yaml.safe_load(text)):
        if isinstance(leaf, str):
            with pytest.raises(ValueError, match="could not convert"):
                float(leaf)


def briefly(config: Path, runs: Path) -> list[str]:
    """Two training steps and a test of two tasks, with a small network where that is the same code."""
    options = {
        "trainer.max_steps": 2,
        "trainer.enable_progress_bar": "false",
        "data.init_args.meta_batches_per_epoch": 2,
        "data.init_args.meta_batch_size": 1,
        "data.init_args.val_tasks": 2,
        "data.init_args.test_tasks": 2,
        "data.init_args.evaluation_meta_batch_size": 2,
    }
    if "Conv4" in config.read_text():
        options["model.init_args.backbone.init_args.width"] = 4
    arguments = [f"--{name}={value}" for name, value in options.items()]
    return ["fit", "--config", str(config), "--runs", str(runs), *arguments]


def check(run: Path) -> None:
    """The run is whole, and its model loads by the path alone."""
    assert (run / "results.json").is_file()
    assert load(run).episodes is not None


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.stem in EMBEDDED], ids=lambda config: config.stem)
def test_embedded_data_runs(config: Path, tmp_path: Path) -> None:
    assert main(briefly(config, tmp_path)) == 0
    check(tmp_path / config.stem / "0")


@pytest.mark.data
@pytest.mark.parametrize("config", [c for c in CONFIGS if c.stem in NEEDS_DATA], ids=lambda config: config.stem)
def test_published_data_runs(config: Path, tmp_path: Path, data_folder: Path) -> None:
    assert main(briefly(config, tmp_path)) == 0
    check(tmp_path / config.stem / "0")


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.stem in NEEDS_IMAGES], ids=lambda config: config.stem)
def test_missing_images_are_named_in_one_line(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(briefly(config, tmp_path / "runs")) == 2
    message = capsys.readouterr().err.strip()
    assert "\n" not in message
    assert "data/" in message
    assert not (tmp_path / "runs").exists()
