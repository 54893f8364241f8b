"""Checkpoints of version 0.1, stored beside this file with what their models predicted there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

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


def test_every_family_is_stored() -> None:
    assert {"MAML", "ProtoNet", "Baseline", "Independent", "CrossStitch", "MixtureOfExperts"} <= set(STORED)


def test_a_run_of_version_0_1_is_not_resumed() -> None:
    module = MAML(Conv4(1, 2, blocks=2), inner_lr=0.1, inner_steps=2, batch_norm="inductive")
    with pytest.raises(UserError, match=r"written by version 0\.1, whose runs cannot be resumed; its weights load by"):
        trainer(max_steps=5).fit(module, datamodule=toys.pictures(), ckpt_path=FOLDER / "MAML.ckpt")
