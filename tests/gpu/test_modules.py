"""Every module and data module on a card: trained, tested and used as on the CPU, to rounding."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_meta.data.module import Place
from lightning_meta.devices import find_device
from lightning_meta.estimators import FewShotClassifier
from lightning_meta.meta import MAML, MetaModule, ProtoNet
from lightning_meta.multitask import GradientConflict, Independent, MultiHead
from lightning_meta.nn import MLP, Conv4
from lightning_meta.pictures import ConfusionByClass, EpisodeEmbedding, EpisodeGrid, ShotAndWay
from lightning_meta.run.results import write_report
from tests.devices.test_evaluation_memory import MODULES as EVALUATED
from tests.devices.test_evaluation_memory import OUTPUTS, evaluated
from tests.devices.toys import EPISODES, META, MULTI, MULTI_TASK, Tasks, multi_task
from tests.gpu.card import accelerator, trainer
from tests.meta.oracles import relative_error

CPU = torch.device("cpu")
MODULES: dict[str, Any] = {**META, **MULTI}
PLACES: tuple[Place, ...] = ("cpu", "accelerator")


def results(name: str, device: torch.device, place: Place) -> tuple[dict[str, float], Any, Any]:
    """The results of a short training: test metrics, the report and predictions."""
    make, kind = MODULES[name]
    data = {**EPISODES, **MULTI_TASK}[kind](pool_on=place)
    torch.manual_seed(0)
    module = make()
    module.optimizer = partial(torch.optim.SGD, lr=0.01)  # Adam blows up the rounding of gradients near 0
    # Heads are drawn where the first Trainer runs, and generators differ by device: from the CPU's, for both.
    trainer(CPU, limit_test_batches=1).test(module, datamodule={**EPISODES, **MULTI_TASK}[kind](), verbose=False)
    runs = trainer(device, max_epochs=1, log_every_n_steps=1)
    runs.fit(module, datamodule=data)
    runs.validate(module, datamodule=data, verbose=False)
    figures = {name: v for loader in runs.test(module, datamodule=data, verbose=False) for name, v in loader.items()}
    return figures, module.test_report, runs.predict(module, datamodule=data)


@pytest.mark.parametrize("name", MODULES)
def test_a_run_on_a_card_is_that_on_the_cpu(name: str, card: torch.device, tmp_path: Path) -> None:
    torch.backends.cudnn.allow_tf32 = False
    expected, report, predictions = results(name, CPU, "cpu")
    for place in PLACES:
        found, reported, predicted = results(name, card, place)
        write_report(tmp_path, reported)
        assert found.keys() == expected.keys()
        for metric, value in expected.items():
            if "loss" in metric:
                assert found[metric] == pytest.approx(value, rel=1e-3, abs=1e-4, nan_ok=True), metric
        for column, values in report["predictions"].items():
            assert reported["predictions"][column].dtype == values.dtype
            assert reported["predictions"][column].shape == values.shape
            if values.dtype.kind != "f":
                np.testing.assert_array_equal(reported["predictions"][column], values)
        assert len(predicted) == len(predictions)
        assert [row["task"] for row in reported["per_task"]] == [row["task"] for row in report["per_task"]]


@pytest.mark.parametrize("kind", ["images", "rotated images"])
def test_images_reach_the_card_as_pinned_bytes(kind: str, card: torch.device) -> None:
    data = EPISODES[kind]()
    data.trainer = trainer(card, max_steps=1)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.support.x.dtype == torch.uint8
    assert batch.support.x.is_pinned()
    assert batch.query.y.is_pinned()
    loaded = EPISODES[kind](pool_on="accelerator")
    loaded.trainer = data.trainer
    loaded.setup("fit")
    other = next(iter(loaded.train_dataloader()))
    assert other.support.x.device.type == "cuda"
    assert torch.equal(other.support.x.cpu(), batch.support.x)
    assert torch.equal(other.query.y.cpu(), batch.query.y)


@pytest.mark.parametrize("kind", MULTI_TASK)
def test_batches_of_every_kind_of_task_set_reach_the_card(kind: str, card: torch.device) -> None:
    for place in PLACES:
        data = MULTI_TASK[kind](pool_on=place)
        data.trainer = trainer(card, max_steps=1)
        data.setup("fit")
        assert next(iter(data.train_dataloader())) is not None


def trained(name: str, device: torch.device, data: Any) -> MetaModule:
    torch.manual_seed(0)
    module: MetaModule = META[name][0]()
    trainer(CPU, max_steps=1, limit_val_batches=0).fit(module, datamodule=data)
    return module.to(device)


@pytest.mark.parametrize("name", META)
def test_a_predictor_takes_inputs_from_anywhere_and_says_what_the_cpu_says(name: str, card: torch.device) -> None:
    torch.backends.cudnn.allow_tf32 = False
    data = EPISODES[META[name][1]]()
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    (x, y), query = (part[0] for part in batch.support), batch.query.x[0]
    expected = trained(name, CPU, data).predictor(x, y).outputs(query)
    module = trained(name, card, data)
    for device in (CPU, card):
        predictor = module.predictor(x.to(device), y.to(device))
        outputs = predictor.outputs(query.to(device))
        assert outputs.device.type == "cuda"
        torch.testing.assert_close(outputs.cpu(), expected, rtol=1e-3, atol=1e-3)
        assert len(predictor(query)) == len(query)
        assert predictor.depends_on_company in (True, False)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("name", ["ProtoNet", "MAML, inductive"])
def test_a_predictor_on_a_card_is_exported_for_the_cpu(
    name: str, suffix: str, card: torch.device, tmp_path: Path
) -> None:
    torch.backends.cudnn.allow_tf32 = False
    data = EPISODES[META[name][1]]()
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    module = trained(name, card, data)
    predictor = module.predictor(batch.support.x[0], batch.support.y[0])
    query = batch.query.x[0].float() / 255
    expected = predictor.probabilities(query).cpu()
    file = predictor.export(tmp_path / f"task{suffix}")
    if suffix == ".pt2":
        found = torch.export.load(file).module()(query)
    else:
        session = pytest.importorskip("onnxruntime").InferenceSession(file, providers=["CPUExecutionProvider"])
        found = torch.as_tensor(session.run(None, {session.get_inputs()[0].name: query.numpy()})[0])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert next(module.parameters()).device.type == "cuda", "the module stays where it was"


@pytest.mark.parametrize("place", PLACES)
def test_pictures_are_drawn(place: Place, device: torch.device, tmp_path: Path) -> None:
    pictures = [EpisodeGrid(), ConfusionByClass(), EpisodeEmbedding(), ShotAndWay(ways=[2, 3], shots=[1, 2], tasks=4)]
    runs = trainer(device, max_steps=1, limit_val_batches=0, callbacks=pictures, default_root_dir=tmp_path)
    module, data = META["ProtoNet"][0](), EPISODES["images"](pool_on=place)
    runs.fit(module, datamodule=data)
    runs.test(module, datamodule=data, verbose=False)
    drawn = {file.stem for file in (tmp_path / "figures").glob("*.png")}
    assert drawn == {picture.file for picture in pictures}, "a picture that cannot be drawn is a warning, and no file"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_of_tasks_are_recorded(place: Place, precision: str, device: torch.device, tmp_path: Path) -> None:
    conflict = GradientConflict(every_n_steps=1)
    runs = trainer(
        device, max_steps=2, limit_val_batches=0, callbacks=[conflict], default_root_dir=tmp_path, precision=precision
    )
    runs.fit(MultiHead(MLP(4, (8,))), datamodule=multi_task(Tasks("missing labels"), pool_on=place))
    rows = (tmp_path / "gradient_conflict.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 4 * 4


def test_recording_gradients_changes_nothing_with_dropout(device: torch.device, tmp_path: Path) -> None:
    ends = []
    for callbacks in ([], [GradientConflict(every_n_steps=1)]):
        torch.manual_seed(0)
        module = MultiHead(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5)))
        runs = trainer(device, max_steps=3, limit_val_batches=0, callbacks=callbacks, default_root_dir=tmp_path)
        runs.fit(module, datamodule=multi_task(Tasks("shared inputs")))
        ends.append(torch.cat([p.detach().flatten().cpu() for p in module.parameters()]))
    assert relative_error(ends[1], ends[0]) < 1e-6


@pytest.mark.parametrize("backbone", [lambda: MLP(4, (8,)), lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5))])
def test_networks_of_their_own_are_the_same_by_vmap_and_in_a_loop(
    backbone: Callable[[], nn.Module], device: torch.device
) -> None:
    found = []
    for strategy in ("loop", "auto"):
        torch.manual_seed(0)
        module = Independent(backbone(), strategy=strategy, optimizer=partial(torch.optim.SGD, lr=0.05))
        runs = trainer(device, max_epochs=1, precision="64-true")
        runs.fit(module, datamodule=multi_task(Tasks("own sets")))
        runs.test(module, datamodule=multi_task(Tasks("own sets")), verbose=False)
        found.append(torch.cat([p.detach().flatten().cpu() for p in module.parameters()]))
    assert relative_error(found[1], found[0]) < 1e-9


@pytest.mark.parametrize("name", EVALUATED)
def test_validations_peak_does_not_grow_with_its_batches(name: str, card: torch.device) -> None:
    peaks = {}
    for batches in (2, 2, 8):  # the first run makes room for what libraries keep
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        evaluated(EVALUATED[name], "validate", batches, accelerator(card))
        peaks[batches] = torch.cuda.max_memory_allocated() - before
    assert peaks[8] - peaks[2] < OUTPUTS, f"{peaks} bytes; the predictions of a batch are {OUTPUTS}"


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_evaluation_leaves_random_states_as_they_were(stage: str, device: torch.device) -> None:
    module = MAML(nn.Sequential(Conv4(1, 4, blocks=2), nn.Dropout(0.3)), 0.1, 2)
    runs, data = trainer(device), EPISODES["images"]()
    getattr(runs, stage)(module, datamodule=data)  # once, since the first run makes the head
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if device.type == "cuda" else [])]
    getattr(runs, stage)(module, datamodule=data)
    after = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if device.type == "cuda" else [])]
    assert all(torch.equal(a, b) for a, b in zip(states, after, strict=True))


def test_a_network_without_normalisation_keeps_its_memory_format(device: torch.device) -> None:
    module = ProtoNet(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten()))
    trainer(device, max_steps=2).fit(module, datamodule=EPISODES["images"]())
    assert all(p.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("name", ["gpu", "cuda", "auto"])
def test_gpu_is_another_name_of_cuda(name: str, card: torch.device) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 8, 8), np.uint8)
    own = FewShotClassifier(nn.Flatten(), device=name).fit(images, ["a", "b"] * 4)
    assert find_device(name).type == card.type
    assert own.score(images, ["a", "b"] * 4) == 1
