"""Checkpoints and configurations of version 0.1, stored beside this file with what their models predicted there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lightning_meta as lm
from lightning_meta.building import build
from lightning_meta.cli import main
from lightning_meta.errors import UserError
from lightning_meta.loading import load
from lightning_meta.meta import MAML, MetaModule
from lightning_meta.nn import Conv4
from lightning_meta.testing import toys
from tests.meta.oracles import trainer

FOLDER = Path(__file__).parent / "checkpoints" / "layout_1"
STORED = sorted(file.stem for file in FOLDER.glob("*.ckpt"))


@pytest.mark.parametrize("name", STORED)
def test_a_model_of_version_0_1_predicts_what_it_did(name: str) -> None:
    module = load(FOLDER / f"{name}.ckpt")
    expected = torch.load(FOLDER / f"{name}.outputs.pt", weights_only=True)["outputs"]
    generator = torch.Generator().manual_seed(5)
    support, query = torch.rand(6, 1, 16, 16, generator=generator), torch.rand(4, 1, 16, 16, generator=generator)
    rows = torch.randn(5, 4, generator=generator)
    if isinstance(module, MetaModule):
        outputs = module.predictor(support, [0, 0, 1, 1, 2, 2]).outputs(query)
    else:
        outputs = module.predict("largest", rows)
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", STORED)
def test_a_configuration_of_version_0_1_is_read(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The files were written by `fit` of that version, with its class paths and the values of all options."""
    file = FOLDER / f"{name}.yaml"
    with pytest.raises(SystemExit) as done:
        main(["fit", "--config", str(file), "--print_config"])
    assert not done.value.code
    old, new = yaml.safe_load(file.read_text()), yaml.safe_load(capsys.readouterr().out)
    assert set(leaves(old)) <= set(leaves(new))
    assert type(build(new["model"])) is getattr(lm, name)
    assert type(build(old["model"])) is getattr(lm, name)  # without the parser


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every option of a configuration; a class by its last name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}.{key}")
    else:
        text = str(value)
        yield name, text.rpartition(".")[2] if name.endswith("class_path") else text


def test_code_of_version_0_1_imports_what_it_did() -> None:
    from lightning_meta.data.sources import Omniglot, TaskSource
    from lightning_meta.data.sources.base import Source
    from lightning_meta.multitask.weightings import Equal

    assert (Omniglot, TaskSource, Source) == (lm.sources.Omniglot, lm.TaskSource, lm.Source)
    assert Equal is lm.weightings.Equal
    with pytest.raises(ImportError, match="Nothing"):
        from lightning_meta.data.sources import Nothing  # noqa: F401


def test_every_family_is_stored() -> None:
    meta, multi_task = {"MAML", "ProtoNet", "Baseline"}, {"Independent", "MultiHead", "Conditioned", "CrossStitch"}
    assert set(STORED) == meta | multi_task | {"MixtureOfExperts"}
    assert {file.stem for file in FOLDER.glob("*.yaml")} == set(STORED)


def test_a_run_of_version_0_1_is_not_resumed() -> None:
    module = MAML(Conv4(1, 2, blocks=2), inner_lr=0.1, inner_steps=2, batch_norm="inductive")
    with pytest.raises(UserError, match=r"written by version 0\.1, whose runs cannot be resumed; its weights load by"):
        trainer(max_steps=5).fit(module, datamodule=toys.pictures(), ckpt_path=FOLDER / "MAML.ckpt")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layout", "x"),
        ("layout", 99),
        ("task_map", [1]),
        ("task_map", {"strategy": "vmap", "chunk_size": -1}),
        ("frozen_norms", 3),
        ("frozen_weights", [1]),
    ],
)
def test_what_a_damaged_checkpoint_says_is_one_line(key: str, value: object, tmp_path: Path) -> None:
    checkpoint = torch.load(FOLDER / "MAML.ckpt", weights_only=True)
    checkpoint["lightning_meta"][key] = value
    torch.save(checkpoint, tmp_path / "damaged.ckpt")
    with pytest.raises(
        UserError,
        match=rf"damaged\.ckpt: the checkpoint is damaged, or was written by a later version .*: its {key} is",
    ):
        load(tmp_path / "damaged.ckpt")


def test_a_model_loads_in_its_own_precision(tmp_path: Path) -> None:
    module = MAML(Conv4(1, 2, blocks=2), inner_lr=0.1)
    run = trainer(max_steps=1, precision="64-true", limit_val_batches=0, num_sanity_val_steps=0)
    run.fit(module, datamodule=toys.pictures())
    run.save_checkpoint(tmp_path / "last.ckpt")
    loaded = load(tmp_path / "last.ckpt")
    assert loaded.dtype == torch.float64
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name))


def test_a_loaded_model_trains_in_training_mode() -> None:
    module = load(FOLDER / "ProtoNet.ckpt")
    before = module.backbone.blocks[0][1].running_mean.clone()
    trainer(max_steps=1, limit_val_batches=0, num_sanity_val_steps=0).fit(module, datamodule=toys.pictures())
    assert module.training
    assert not torch.equal(module.backbone.blocks[0][1].running_mean, before)
