"""A checkpoint loads by its path, and a wrong or hostile one ends in one clear error."""

from __future__ import annotations

import os
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_meta.describing import describe
from lightning_meta.errors import UserError
from lightning_meta.loading import load
from lightning_meta.meta import MAML, ProtoNet
from lightning_meta.nn import MLP
from lightning_meta.run import AtomicCheckpointIO
from lightning_meta.tasks import EpisodeSpec

SPEC = EpisodeSpec("classification", (6,), 5)


def saved(path: Path, module: Any, **changes: Any) -> Path:
    checkpoint = {"state_dict": module.state_dict(), "lightning_meta": describe(module), **changes}
    AtomicCheckpointIO().save_checkpoint(checkpoint, path / "a.ckpt")
    assert [f.name for f in path.iterdir()] == ["a.ckpt"]
    return path / "a.ckpt"


def test_by_path_alone(tmp_path: Path) -> None:
    module = MAML(MLP(6, (8,)), optimizer=partial(torch.optim.SGD, lr=0.1), inner_lr=0.3, episodes=SPEC)
    loaded = load(saved(tmp_path, module))
    assert isinstance(loaded, MAML)
    assert loaded.inner_lr == 0.3
    assert loaded.episodes == SPEC
    assert not loaded.training
    for a, b in zip(module.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a, b)
    assert isinstance(loaded.configure_optimizers(), torch.optim.SGD)


def test_a_schedule_comes_back(tmp_path: Path) -> None:
    schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=3, gamma=0.5)
    module = ProtoNet(MLP(2, (3,)), lr_scheduler=schedule, episodes=EpisodeSpec("classification", (2,), 2, 4))
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "scheduled.ckpt")
    configured = load(tmp_path / "scheduled.ckpt").configure_optimizers()
    scheduler = configured["lr_scheduler"]["scheduler"]
    assert (scheduler.step_size, scheduler.gamma) == (3, 0.5)


def test_arguments_can_be_replaced(tmp_path: Path) -> None:
    file = saved(tmp_path, MAML(MLP(6, (8,)), episodes=SPEC))
    assert load(file, test_inner_steps=9).test_inner_steps == 9


def test_a_backbone_made_in_python_is_asked_for_by_name(tmp_path: Path) -> None:
    file = saved(tmp_path, ProtoNet(nn.Sequential(nn.Linear(6, 3)), episodes=SPEC))
    with pytest.raises(UserError, match=r"load\(path, backbone=...\)"):
        load(file)
    assert isinstance(load(file, backbone=nn.Sequential(nn.Linear(6, 3))), ProtoNet)


def test_a_run_directory_means_its_best(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    saved(folder, ProtoNet(MLP(6, (8,)), episodes=SPEC)).rename(folder / "last.ckpt")
    assert isinstance(load(tmp_path), ProtoNet)


def test_another_shape(tmp_path: Path) -> None:
    file = saved(tmp_path, ProtoNet(MLP(6, (8,)), episodes=SPEC))
    with pytest.raises(UserError, match=r"is \(8, 6\) in the checkpoint and \(7, 6\) in the module"):
        load(file, backbone=MLP(6, (7,)))
    with pytest.raises(UserError, match="has no weights for"):
        load(file, backbone=MLP(6, (8, 8)))


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="path: a str or PathLike is needed, got None"):
        load(None)  # type: ignore[arg-type]
    with Path(__file__).open() as opened, pytest.raises(UserError, match="PathLike is needed, got TextIOWrapper"):
        load(opened)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "none.ckpt")
    with pytest.raises(UserError, match="has no checkpoints"):
        load(tmp_path)
    file = tmp_path / "a.ckpt"
    file.write_text("hello")
    with pytest.raises(UserError, match="not a checkpoint, or is damaged"):
        load(file)
    torch.save({"x": 1}, file)
    with pytest.raises(UserError, match="no `state_dict`"):
        load(file)
    torch.save({"state_dict": {}}, file)
    with pytest.raises(UserError, match="does not name its class"):
        load(file)


def test_a_torn_checkpoint(tmp_path: Path) -> None:
    file = saved(tmp_path, ProtoNet(MLP(6, (8,)), episodes=SPEC))
    whole = file.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 10):
        file.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"not a checkpoint, or is damaged|is empty"):
            load(file)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("raw", [True, False])
def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, raw: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a.ckpt"
    if raw:
        file.write_bytes(pickle.dumps(Bomb()))
    else:
        torch.save({"state_dict": {}, "lightning_meta": Bomb()}, file)
    with pytest.raises(UserError, match=r"refused|not a checkpoint"):
        load(file)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("where", ["class", "backbone", "optimizer"])
def test_a_checkpoint_that_names_a_foreign_class_is_refused(tmp_path: Path, where: str) -> None:
    module = ProtoNet(MLP(6, (8,)), episodes=SPEC)
    spec = describe(module)
    hostile = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(tmp_path / "exploded")]}}
    if where == "class":
        spec = hostile
    else:
        spec["init_args"][where] = hostile
    with pytest.raises(UserError, match=r"subprocess\.Popen is not trusted"):
        load(saved(tmp_path, module, lightning_meta=spec))
    assert not (tmp_path / "exploded").exists()


def test_a_trusted_class_that_is_no_lightning_module(tmp_path: Path) -> None:
    spec = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 1, "out_features": 1}}
    with pytest.raises(UserError, match="is not a LightningModule"):
        load(saved(tmp_path, nn.Linear(1, 1), lightning_meta=spec))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: torch.full_like(w, torch.nan), "48 of 48 numbers of backbone.layers.1.weight are NaN or infinite"),
        (lambda w: w.index_fill(0, torch.tensor(1), torch.inf), "6 of 48 numbers of backbone.layers.1.weight are NaN"),
        (lambda w: w.to(torch.complex64), "backbone.layers.1.weight is torch.complex64 in the checkpoint"),
        (lambda w: w.long(), "backbone.layers.1.weight is torch.int64 in the checkpoint"),
    ],
)
def test_weights_that_are_no_real_numbers_are_refused(tmp_path: Path, change: Any, said: str) -> None:
    module = MAML(MLP(6, (8,)), episodes=SPEC)
    weights = module.state_dict()
    name = next(n for n in weights if n.endswith("weight"))
    file = saved(tmp_path, module, state_dict={**weights, name: change(weights[name])})
    with pytest.raises(UserError) as raised:
        load(file)
    assert said.replace("backbone.layers.1.weight", name) in str(raised.value)
    assert str(raised.value).startswith(str(file))


def test_a_checkpoint_of_before_inputs_were_noted_loads(tmp_path: Path) -> None:
    spec = EpisodeSpec("classification", (6,), 5, 0, "float32", (-3.0, 3.0, 0.0, 0.4))
    module = MAML(MLP(6, (8,)), episodes=spec)
    assert load(saved(tmp_path, module)).episodes == spec
    described = describe(module)
    del described["init_args"]["episodes"]["init_args"]["input_statistics"]
    file = tmp_path / "old.ckpt"
    torch.save({"state_dict": module.state_dict(), "lightning_meta": described}, file)
    assert load(file).predictor(torch.rand(5, 6), "abcde")(1e6 * torch.rand(2, 6))
