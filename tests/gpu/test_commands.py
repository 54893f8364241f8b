"""The commands as they are documented, with default options: on a machine with a GPU they use it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_meta.cli import main
from lightning_meta.run.memory import keep_freed_memory
from tests.test_configs import CONFIGS, EMBEDDED, NEEDS_DATA, briefly, check
from tests.test_predict import picture

RUNNABLE = [config for config in CONFIGS if config.stem in EMBEDDED | NEEDS_DATA]
GLYPHS = next(config for config in CONFIGS if config.stem == "protonet_glyphs")
MAML = next(config for config in CONFIGS if config.stem == "maml_glyphs")


def said(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def on_the_card(run: Path) -> None:
    results = said(run)
    assert results["device"] == torch.cuda.get_device_name()
    assert results["precision"] == "32-true"


@pytest.mark.parametrize("place", ["cpu", "accelerator"])
@pytest.mark.parametrize("config", RUNNABLE, ids=lambda config: config.stem)
def test_every_configuration_trains_and_is_tested(
    config: Path, place: str, card: torch.device, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if config.stem in NEEDS_DATA:
        request.getfixturevalue("data_folder")  # skips where there is none
    options = briefly(config, tmp_path)
    assert main(options if place == "cpu" else [*options, "--data.init_args.pool_on=accelerator"]) == 0
    run = tmp_path / config.stem / "0"
    check(run)
    on_the_card(run)
    assert list(run.glob("figures/*.png"))
    assert main(["test", "--ckpt_path", str(run), "--trainer.enable_progress_bar=false"]) == 0
    on_the_card(run / "tests" / "0")
    assert said(run)["data_fingerprint"] == said(run / "tests" / "0")["data_fingerprint"]


def test_a_pool_in_memory_and_one_on_the_card_train_alike(card: torch.device, tmp_path: Path) -> None:
    found = []
    for place in ("cpu", "accelerator"):
        options = [*briefly(MAML, tmp_path / place), f"--data.init_args.pool_on={place}"]
        assert main([*options, "--model.init_args.optimizer=torch.optim.SGD"]) == 0
        found.append(said(tmp_path / place / "maml_glyphs" / "0"))
    assert found[0]["data_fingerprint"] == found[1]["data_fingerprint"]
    assert found[0]["test/loss"] == pytest.approx(found[1]["test/loss"], rel=1e-3)


@pytest.mark.parametrize("config", [GLYPHS, MAML], ids=lambda config: config.stem)
def test_predict_labels_images(
    config: Path, card: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--data.init_args.ways=3"] if config is MAML else []
    assert main([*briefly(config, tmp_path / "runs"), *options]) == 0
    for kind, name in enumerate(("left", "right", "top")):
        Path("support", name).mkdir(parents=True)
        Path("query").mkdir(exist_ok=True)
        for i in range(2):
            picture(kind, i).save(Path("support", name, f"{i}.png"))
            picture(kind, 50 + i).save(Path("query", f"{name}_{i}.png"))
    command = ["predict", "--ckpt_path", str(Path("runs", config.stem, "0")), "--support", "support"]
    command += ["--query", "query", "--batch_norm", "inductive", "--export", "task.pt2"]
    labels = {}
    for device in ("auto", "cpu"):
        assert main([*command, "--device", device, "--out", f"{device}.csv"]) == 0
        labels[device] = list(csv.DictReader(Path(f"{device}.csv").read_text().splitlines()))
        assert len(labels[device]) == 6
    for auto, cpu in zip(labels["auto"], labels["cpu"], strict=True):
        assert auto["file"] == cpu["file"]
        assert float(auto["margin"]) == pytest.approx(float(cpu["margin"]), abs=0.05)
    exported = torch.export.load("task.pt2").module()
    assert exported(torch.rand(4, 1, 28, 28)).shape == (4, 3)


def test_a_ladder_with_two_jobs(card: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ladder = yaml.safe_load((GLYPHS.parent / "ladder_glyphs.yaml").read_text())
    ladder["seeds"], ladder["rungs"] = [1], {name: ladder["rungs"][name] for name in ("independent", "multi_head")}
    ladder["model"]["init_args"]["backbone"]["init_args"]["width"] = 4
    ladder["shared"]["data"]["init_args"]["tasks"] = ["Greek", "Armenian"]
    ladder["shared"]["trainer"]["max_epochs"] = 1
    Path("small.yaml").write_text(yaml.safe_dump(ladder))
    assert main(["ladder", "--config", "small.yaml", "--jobs", "2"]) == 0
    runs = [file.parent for file in Path("runs/small").glob("*/*/results.json")]
    assert len(runs) == 2
    for run in runs:
        on_the_card(run)


def test_a_sweep_of_two_trials(card: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    sweep = yaml.safe_load((GLYPHS.parent / "sweeps" / "maml_glyphs.yaml").read_text())
    sweep["command"] = [word.replace("configs/", f"{GLYPHS.parent}/") for word in sweep["command"]]
    Path("small.yaml").write_text(yaml.safe_dump(sweep))
    few = [word for word in briefly(MAML, tmp_path / "runs")[5:] if "progress_bar" not in word]
    assert main(["sweep", "--config", "small.yaml", "--trials", "2", *few]) == 0
    runs = [file.parent for file in Path("runs/sweep_small").glob("*/0/results.json")]
    assert len(runs) == 2
    for run in runs:
        on_the_card(run)


def test_memory_that_the_commands_keep_changes_no_number(card: torch.device) -> None:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    before = (x.to(card) @ x.to(card)).cpu()
    keep_freed_memory()
    assert torch.equal((x.pin_memory().to(card, non_blocking=True) @ x.to(card)).cpu(), before)
