"""A backbone that starts from the weights of a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml
from torch import nn

import lightning_meta as lm
from lightning_meta.cli import main
from lightning_meta.describing import describe
from lightning_meta.errors import UserError
from lightning_meta.nn import MLP, Frozen
from lightning_meta.run import read_checkpoint
from lightning_meta.tasks import EpisodeSpec
from lightning_meta.testing import toys
from tests.methods import conv4

OF_RUNS: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}

SPEC = EpisodeSpec("classification", (1, 16, 16), 3)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `Baseline` with a `conv4`."""
    torch.manual_seed(5)
    module = lm.Baseline(conv4(), head_steps=2)
    run = lm.fit(module, toys.pictures(), runs=tmp_path_factory.mktemp("runs"), seed=0, max_steps=2, **OF_RUNS)
    assert run.directory is not None
    return run.directory


def of_backbone(run: Path) -> dict[str, torch.Tensor]:
    stored = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    return {name.removeprefix("backbone."): t for name, t in stored.items() if name.startswith("backbone.")}


def same(backbone: nn.Module, weights: dict[str, torch.Tensor]) -> bool:
    own = backbone.state_dict()
    return own.keys() == weights.keys() and all(torch.equal(own[name], t) for name, t in weights.items())


def test_both_families_take_weights_and_statistics(source: Path) -> None:
    for module in (
        lm.ProtoNet(conv4(), backbone_weights=str(source)),
        lm.MultiHead(conv4(), backbone_weights=str(source / "checkpoints" / "last.ckpt")),
    ):
        assert same(module.backbone, of_backbone(source))


def test_a_frozen_network_takes_those_of_the_same_network(source: Path, tmp_path: Path) -> None:
    frozen = Frozen(conv4())
    module = lm.ProtoNet(frozen, backbone_weights=str(source))
    assert same(frozen.network, of_backbone(source))
    run = lm.fit(module, toys.pictures(), runs=tmp_path, max_steps=0, **OF_RUNS)  # and back
    assert same(lm.ProtoNet(conv4(), backbone_weights=str(run.directory)).backbone, of_backbone(source))


@pytest.mark.parametrize("method", [lm.Independent, lm.MixtureOfExperts])
def test_each_of_several_backbones_has_them(method: Any, source: Path, tmp_path: Path) -> None:
    run = lm.fit(lm.MultiHead(MLP(4, (8,))), toys.sums(), runs=tmp_path, max_steps=1, **OF_RUNS)
    assert run.directory is not None
    module = method(MLP(4, (8,)), backbone_weights=str(run.directory))
    data = toys.sums()
    data.setup("fit")
    module.tasks = data.spec
    module.configure_model()
    for backbone in module.backbone:
        assert same(backbone, of_backbone(run.directory))


@pytest.mark.parametrize(
    ("backbone", "said"),
    [
        (lambda: lm.nn.Conv4(width=8, blocks=2), r"blocks\.0\.0\.weight is \(4, 1, 3, 3\) in the checkpoint"),
        (lambda: MLP(256, (8,)), r"does not fit MLP: it has no weights for"),
    ],
)
def test_another_architecture_is_refused_in_one_line(source: Path, backbone: Any, said: str) -> None:
    with pytest.raises(UserError, match=rf"^backbone_weights: the backbone of .*{said}"):
        lm.ProtoNet(backbone(), backbone_weights=str(source))


def test_no_run_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^backbone_weights: no checkpoint at"):
        lm.ProtoNet(conv4(), backbone_weights=str(tmp_path / "none"))


def test_a_checkpoint_loads_when_the_source_is_gone(source: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied" / "0"
    shutil.copytree(source, copied)
    module = lm.ProtoNet(conv4(), backbone_weights=str(copied))
    run = lm.fit(module, toys.pictures(), runs=tmp_path, seed=0, max_steps=1, **OF_RUNS)
    shutil.rmtree(copied)
    assert run.directory is not None
    assert str(copied) in (run.directory / "config.yaml").read_text()
    assert same(lm.load(run.directory / "checkpoints" / "last.ckpt").backbone, dict(module.backbone.state_dict()))


def test_a_checkpoint_that_names_one_makes_nobody_read_it(source: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.ckpt"
    checkpoint = read_checkpoint(source / "checkpoints" / "last.ckpt")
    checkpoint["lightning_meta"]["init_args"]["backbone_weights"] = "/no/such/place"
    torch.save(checkpoint, file)
    module = lm.load(file)
    assert same(module.backbone, of_backbone(source))
    assert module.backbone_weights is None
    assert "/no/such/place" not in str(describe(module))  # nor is it named by what is trained from here


@pytest.mark.parametrize(
    ("module", "override"),
    [
        (lambda: lm.ProtoNet(conv4(), episodes=SPEC), {"backbone_weights": "runs/other"}),
        (lambda: lm.R2D2(conv4(), episodes=SPEC), {"penalty": 2.0}),
    ],
    ids=["weights", "penalty"],
)
def test_weights_that_a_loaded_module_would_not_have_are_refused(module: Any, override: Any, tmp_path: Path) -> None:
    made = module()
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(made)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    (name,) = override
    with pytest.raises(UserError, match=rf"^{name}: it sets the first weights of a new {type(made).__name__}"):
        lm.load(tmp_path / "a.ckpt", **override)
    assert same(lm.load(tmp_path / "a.ckpt").backbone, dict(made.backbone.state_dict()))


@pytest.mark.slow
def test_the_command_resumes_when_the_source_is_gone(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(source, tmp_path / "copied" / "0")
    data = {"class_path": "lightning_meta.sources.Glyphs"}
    few = {"shots": 1, "queries": 2, "meta_batch_size": 1, "meta_batches_per_epoch": 2, "val_tasks": 2, "test_tasks": 2}
    backbone = {"class_path": "lightning_meta.nn.Conv4", "init_args": {"width": 4, "blocks": 2}}
    options = {"backbone": backbone, "backbone_weights": "copied/0"}
    config = {
        "model": {"class_path": "lightning_meta.ProtoNet", "init_args": options},
        "data": {"class_path": "lightning_meta.EpisodicDataModule", "init_args": {"source": data, **few}},
        "trainer": {"enable_progress_bar": False, "accelerator": "cpu"},
    }
    (tmp_path / "tuned.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "tuned.yaml", "--trainer.max_steps", "2"]) == 0
    shutil.rmtree(tmp_path / "copied")
    assert main(["fit", "--config", "tuned.yaml", "--trainer.max_steps", "4", "--ckpt_path", "last"]) == 0
    assert main(["fit", "--config", "tuned.yaml", "--trainer.max_steps", "2"]) == 2
