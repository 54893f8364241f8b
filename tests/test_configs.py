"""Every shipped configuration parses against the signatures, and runs or names the one path that it misses.

The ladders are run in `tests/test_ladder.py`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from make_tables import at_a_glance

from lightning_meta import load, sources
from lightning_meta.cli import main
from lightning_meta.multitask import MultiTaskModule

FOLDER = Path(__file__).parents[1] / "configs"
LADDERS = sorted(FOLDER.glob("ladder_*.yaml"))
PARTS = [FOLDER / "wandb.yaml"]  # of a configuration, given before a whole one; see `tests/test_wandb.py`
CONFIGS = sorted(set(FOLDER.glob("*.yaml")) - set(LADDERS) - set(PARTS))


def data_of(config: Path) -> str:
    """The origin of the data, according to the docstring of the source of a configuration."""
    (name,) = re.findall(r"lightning_meta\.sources\.(\w+)", config.read_text())
    return at_a_glance(getattr(sources, name))["From"]


PUBLISHED = [c for c in CONFIGS if "LIGHTNING_META_DATA" in data_of(c)]
NEEDS_DATA = {c.stem for c in PUBLISHED}
PRETRAINED = {c.stem for c in CONFIGS if "nn.Pretrained" in c.read_text()}
OF_EACH_KIND = {"protonet_omniglot", "multi_head_parkinsons"}  # the published data that run by default
NEEDS_FILES = {c.stem for c in CONFIGS if "your" in data_of(c)}
EMBEDDED = {c.stem for c in CONFIGS} - NEEDS_DATA - NEEDS_FILES
MINI_IMAGENET = [
    "alpha_tim",
    "anil",
    "bd_cspn",
    "boil",
    "feat",
    "laplacian_shot",
    "maml",
    "maml_plus_plus",
    "protonet",
    "relation_net",
]
BY_DEFAULT = {"protonet_glyphs", "maml_sinusoid", "rfs_glyphs", "multi_head_glyphs", "tim_glyphs"}  # of the embedded


def test_some_run_without_a_download() -> None:
    assert OF_EACH_KIND <= NEEDS_DATA
    assert BY_DEFAULT <= EMBEDDED
    assert {"maml_omniglot", "multi_head_parkinsons"} <= NEEDS_DATA
    mini_imagenet = {f"{method}_mini_imagenet" for method in MINI_IMAGENET}
    assert {
        "protonet_image_folder",
        "protonet_table",
        "maml_table",
        "multi_head_table",
        "multi_head_table_embeddings",
        "photos",
        *mini_imagenet,
    } == NEEDS_FILES


@pytest.mark.parametrize("config", [*CONFIGS, *LADDERS, *PARTS], ids=lambda config: config.stem)
def test_says_how_to_run_it_and_holds_no_number_that_yaml_reads_as_text(config: Path) -> None:
    text = config.read_text()
    script = "ladder" if config in LADDERS else "fit"
    assert f"python scripts/{script}.py --config configs/{config.name}" in text

    def leaves(node: object) -> list[object]:
        if isinstance(node, dict):
            return [leaf for value in node.values() for leaf in leaves(value)]
        return [leaf for value in node for leaf in leaves(value)] if isinstance(node, list) else [node]

    for leaf in leaves(yaml.safe_load(text)):
        if isinstance(leaf, str):
            with pytest.raises(ValueError, match="could not convert"):
                float(leaf)


# In the place of a pretrained network, which needs an extra: a small one, frozen.
STAND_IN = [
    "--model.backbone=lightning_meta.nn.Frozen",
    "--model.backbone.network=lightning_meta.nn.Conv4",
    "--model.backbone.network.in_channels=3",
    "--model.backbone.network.width=4",
]


def briefly(config: Path, runs: Path) -> list[str]:
    """Two training steps and a test of few tasks, with a small network where that is the same code."""
    options = {"trainer.max_steps": 2, "trainer.enable_progress_bar": "false"}
    if "EpisodicDataModule" in config.read_text():
        few = {"meta_batches_per_epoch": 2, "meta_batch_size": 1, "evaluation_meta_batch_size": 2}
        options |= {f"data.init_args.{name}": value for name, value in {**few, "val_tasks": 2, "test_tasks": 2}.items()}
    elif "multi_head_table" not in config.stem:
        options |= {"data.init_args.batches_per_epoch": 2, "data.init_args.train_subset": 5}
    if "sources.Glyphs" in config.read_text() and "MultiTask" in config.read_text():
        options["data.init_args.tasks"] = "[Greek, Armenian]"
    if "lightning_meta.Grouped" in config.read_text():
        options["model.init_args.groups"] = "[[Greek], [Armenian]]"
    if "Conv4" in config.read_text():
        options["model.init_args.backbone.init_args.width"] = 4
    for name in re.findall(r"^    (\w*_?inner_steps|solver_steps):", config.read_text(), re.MULTILINE):
        options[f"model.init_args.{name}"] = 1
    if "TIM\n" in config.read_text():
        options["model.init_args.steps"] = 2
    if "lightning_meta.RelationNet" in config.read_text():
        options["model.init_args.channels"] = 4
    if "ChannelNormalized" in config.read_text():
        options["model.init_args.backbone.init_args.backbone.init_args.widths"] = "[4, 4, 4, 4]"
    if "pictures.ShotAndWay" in config.read_text():  # the last callback
        options["trainer.callbacks.init_args.tasks"] = 5
    if config.stem in PRETRAINED:  # nothing is trained
        options["trainer.max_steps"] = 0
    arguments = [f"--{name}={value}" for name, value in options.items()]
    if "nn.Pretrained" in config.read_text():
        arguments += STAND_IN
    return ["fit", "--config", str(config), "--runs", str(runs), *arguments]


def check(run: Path) -> None:
    """The run is whole, and its model loads by the path alone."""
    assert (run / "results.json").is_file()
    module = load(run)
    assert (module.tasks if isinstance(module, MultiTaskModule) else module.episodes) is not None


@pytest.mark.parametrize(
    "config",
    [pytest.param(c, marks=() if c.stem in BY_DEFAULT else pytest.mark.slow) for c in CONFIGS if c.stem in EMBEDDED],
    ids=lambda config: config.stem,
)
def test_embedded_data_runs(config: Path, tmp_path: Path) -> None:
    assert main(briefly(config, tmp_path)) == 0
    check(tmp_path / config.stem / "0")


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(
    "config",
    [pytest.param(c, marks=() if c.stem in OF_EACH_KIND else pytest.mark.slow) for c in PUBLISHED],
    ids=lambda config: config.stem,
)
def test_published_data_runs(config: Path, tmp_path: Path, data_folder: Path) -> None:
    assert main(briefly(config, tmp_path)) == 0
    check(tmp_path / config.stem / "0")


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.stem in NEEDS_FILES], ids=lambda config: config.stem)
def test_missing_files_are_named_in_one_line(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(briefly(config, tmp_path / "runs")) == 2
    message = capsys.readouterr().err.strip()
    assert "\n" not in message
    assert "data/" in message
    assert not (tmp_path / "runs").exists()
