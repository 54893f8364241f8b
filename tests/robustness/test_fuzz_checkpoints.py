"""Checkpoints, states to resume and predictions, damaged at random: read, or refused in one line."""

from __future__ import annotations

import copy
import io
import shutil
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lightning_meta
from lightning_meta.cli import main
from lightning_meta.errors import UserError
from lightning_meta.integrations.learn2learn import convert_maml
from lightning_meta.meta import MAML
from lightning_meta.nn import MLP
from lightning_meta.report.transfer.reading import read_arrays
from lightning_meta.run import read_checkpoint
from lightning_meta.run.progress import is_of_schedule
from lightning_meta.tasks import EpisodeSpec
from tests.robustness.fuzzing import options, repeated, short
from tests.robustness.hostile_checkpoints import content
from tests.run.test_resume import MODEL

ODD: list[Any] = [
    *(None, True, -1, 0, 3, 2**70, -0.5, float("nan"), float("inf"), "", "a\nb", b"", "lightning_meta.nn.MLP"),
    *(
        [],
        {},
        (),
        [[1]],
        {"a": 1},
        {1: 2},
        torch.zeros(()),
        torch.ones(3),
        torch.empty(0, 3),
        torch.tensor(float("nan")),
    ),
]


def damaged(whole: Any, choose: Callable[[int], int]) -> Any:
    """A copy with one value, anywhere, replaced, taken away or put under another name."""
    whole = copy.deepcopy(whole)
    target = whole
    while True:
        keys = list(target) if isinstance(target, dict) else range(len(target))
        key = keys[choose(len(keys))]
        child = target[key]
        if isinstance(child, dict | list) and child and choose(4):
            target = child
            continue
        how = choose(4)
        if how == 0:
            del target[key]
        elif how == 1 and isinstance(target, dict):
            target[ODD[choose(8)]] = target.pop(key)
        else:
            target[key] = ODD[choose(len(ODD))]
        return whole


def choices(data: st.DataObject) -> Callable[[int], int]:
    return lambda n: data.draw(st.integers(0, n - 1))


def refused_or_read(read: Callable[[], Any], counts: Counter[str]) -> None:
    """Nothing but a `UserError` is raised."""
    line = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
    except UserError as error:
        line = str(error)
    assert line.isprintable()
    assert len(line) < 2100
    counts["refused" if line else "read"] += 1


def test_parts_of_a_checkpoint(tmp_path: Path) -> None:
    """The description, the state dict and what lies beside them."""
    whole, file, counts = content(), tmp_path / "a.ckpt", Counter[str]()

    @short
    @given(st.data())
    def test(data: st.DataObject) -> None:
        torch.save(damaged(whole, choices(data)), file)
        refused_or_read(lambda: lightning_meta.load(file), counts)

    repeated(test, counts)
    assert counts["refused"]


@pytest.mark.parametrize("part", ["init_args", "backbone", "task_map", "layout", "frozen_norms", "fitted", "new"])
def test_a_description_with_a_tensor(part: str, tmp_path: Path) -> None:
    """A tensor has no truth value, so nothing that reads a description has to expect one."""
    whole = content()
    of_module = whole["lightning_meta"]
    (of_module["init_args"]["backbone"] if part == "backbone" else of_module)[
        "init_args" if part == "backbone" else part
    ] = torch.ones(3)
    torch.save(whole, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"a\.ckpt is not a checkpoint of lightning_meta, or is damaged"):
        lightning_meta.load(tmp_path / "a.ckpt")


def test_a_description_that_is_too_large_is_refused_with_the_name_of_the_file(tmp_path: Path) -> None:
    whole = content()
    whole["lightning_meta"]["init_args"]["large"] = [0] * 1_000_001
    torch.save(whole, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"a\.ckpt: the description of the object is more than 1,000,000 values large"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_bytes_of_a_checkpoint(tmp_path: Path) -> None:
    """Bytes of the archive and of the pickle in it are changed."""
    file, counts = tmp_path / "a.ckpt", Counter[str]()
    torch.save(content(), file)
    sound = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in parts if name.endswith("data.pkl"))

    @short
    @given(st.data())
    def test(data: st.DataObject) -> None:
        of_pickle = data.draw(st.booleans())
        changed = bytearray(parts[name] if of_pickle else sound)
        for _ in range(data.draw(st.integers(1, 3))):
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
        if of_pickle:
            with zipfile.ZipFile(file, "w") as archive:
                for part, value in {**parts, name: bytes(changed)}.items():
                    archive.writestr(part, value)
        else:
            file.write_bytes(changed)
        refused_or_read(lambda: lightning_meta.load(file), counts)

    repeated(test, counts)
    assert counts["refused"]


def test_weights_of_learn2learn(tmp_path: Path) -> None:
    module = MAML(MLP(4, (8,)), episodes=EpisodeSpec("classification", (4,), 5))
    module.configure_model()
    whole, file, counts = dict(module.network.state_dict()), tmp_path / "a.pt", Counter[str]()

    @short
    @given(st.data())
    def test(data: st.DataObject) -> None:
        torch.save(damaged(whole, choices(data)), file)
        refused_or_read(lambda: convert_maml(file, module), counts)

    repeated(test, counts)
    assert counts["refused"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    runs = tmp_path_factory.mktemp("run")
    assert main(["fit", *MODEL, f"--runs={runs}", "--trainer.max_steps=2", "--data.length=2"]) == 0
    return runs / "toy" / "0"


RESUME = ["--trainer.max_steps=3", "--data.length=2"]


def resumed(run: Path, folder: Path, state: Any) -> int:
    """The status of a command that resumes a copy of a run from another state."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run, folder / "toy" / "0")
    torch.save(state, folder / "toy" / "0" / "checkpoints" / "last.ckpt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return main(["fit", *MODEL, f"--runs={folder}", *RESUME, "--ckpt_path=last"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_states_of_a_run_that_is_resumed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, counts = read_checkpoint(run / "checkpoints" / "last.ckpt"), Counter[str]()

    @settings(**{**options, "max_examples": 10})
    @given(st.data())
    def test(data: st.DataObject) -> None:
        capsys.readouterr()
        status = resumed(run, tmp_path / "runs", damaged(whole, choices(data)))
        said = capsys.readouterr().err
        assert status in (0, 2) or (status == 1 and "loss became" in said)
        if status == 2:
            assert said.splitlines()[-1].startswith("lightning-meta: error: ")
        counts["refused" if status else "resumed"] += 1

    repeated(test, counts)


def changed(state: dict[str, Any], change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    state = copy.deepcopy(state)
    change(state)
    return state


STATES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no loops": lambda s: s.pop("loops"),
    "no optimiser": lambda s: s.pop("optimizer_states"),
    "an optimiser without options": lambda s: s["optimizer_states"][0].pop("param_groups"),
    "an optimiser without parameters": lambda s: s["optimizer_states"][0]["param_groups"][0].pop("params"),
    "an optimiser's parameters as a number": lambda s: s["optimizer_states"][0]["param_groups"][0].update(params=1),
    "an optimiser's option without a name": lambda s: s["optimizer_states"][0]["param_groups"][0].update({None: 1}),
    "an optimiser's options as numbers": lambda s: s["optimizer_states"][0].update(param_groups=[1]),
    "a counter that is text": lambda s: s["loops"]["fit_loop"]["epoch_progress"]["total"].update(ready="a"),
    "a counter below zero": lambda s: s["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"].update(ready=-1),
    "steps beyond any": lambda s: s.update(global_step=2**70),
    "an optimiser's state of another shape": lambda s: s["optimizer_states"][0]["state"][0].update(
        {k: torch.ones(7, 7) for k, v in s["optimizer_states"][0]["state"][0].items() if v.dim()}
    ),
    "a schedule with a period of 0": lambda s: s["lr_schedulers"][0].update(step_size=0),
    "a schedule with a period that is none": lambda s: s["lr_schedulers"][0].update(step_size=None),
    "an optimiser's state as a list": lambda s: s.update(optimizer_states=[[1]]),
    "callbacks as a number": lambda s: s.update(callbacks=3),
    "a generator's place beyond its numbers": lambda s: s["quiet_moment"]["random"][0].update(
        numpy=("MT19937", [0] * 624, 10**6, 0, 0.0)
    ),
    "a generator without state": lambda s: s["quiet_moment"]["random"][0].update(torch=torch.zeros(3)),
    "no rows": lambda s: s["quiet_moment"].pop("rows"),
    "no steps": lambda s: s["quiet_moment"].pop("batches_that_stepped"),
    "no end of the epoch": lambda s: s["quiet_moment"].pop("batches_of_ended_epoch"),
    "an end of the epoch that is text": lambda s: s["quiet_moment"].update(batches_of_ended_epoch="a"),
    "an end of the epoch that is a tensor": lambda s: s["quiet_moment"].update(batches_of_ended_epoch=torch.ones(())),
    "seconds that are text": lambda s: s["quiet_moment"].update(seconds="5"),
    "columns that are numbers": lambda s: s["quiet_moment"].update(columns=[1]),
    "a moment that is a tensor": lambda s: s.update(quiet_moment=torch.zeros(2)),
    "settings that are a tensor": lambda s: s.update(lightning_meta=torch.zeros(2)),
    "rows below zero": lambda s: s["quiet_moment"].update(rows=-3),
    "a version that is none": lambda s: s.update({"pytorch-lightning_version": "a"}),
}


# What comes to light when the optimiser or its schedule makes its first step.
AFTER_A_STEP = {kind for kind in STATES if kind.startswith(("an optimiser's state of", "a schedule with"))}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", STATES)
def test_a_state_that_no_run_was_in(kind: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = read_checkpoint(run / "checkpoints" / "last.ckpt")
    capsys.readouterr()
    assert resumed(run, tmp_path / "runs", changed(whole, STATES[kind])) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("lightning-meta: error: ")
    assert "last.ckpt" in said[-1]
    if kind not in AFTER_A_STEP:
        assert (tmp_path / "runs" / "toy" / "0" / "metrics.csv").read_text() == (run / "metrics.csv").read_text()


@pytest.mark.filterwarnings("ignore")
def test_the_end_of_data_without_a_length_is_sound(run: Path, tmp_path: Path) -> None:
    whole = read_checkpoint(run / "checkpoints" / "last.ckpt")
    endless = changed(whole, lambda s: s["quiet_moment"].update(batches_of_ended_epoch=float("inf")))
    assert resumed(run, tmp_path / "runs", endless) == 0


def failure(schedule: Any) -> Exception:
    with pytest.raises((ZeroDivisionError, ValueError)) as caught:
        [schedule.step() for _ in range(9)]
    return caught.value


@pytest.mark.filterwarnings("ignore")
def test_a_schedule_that_is_shorter_than_the_run_is_no_damage() -> None:
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
    assert is_of_schedule(failure(torch.optim.lr_scheduler.StepLR(optimizer, 0)))
    assert not is_of_schedule(failure(torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=4)))


ARRAYS = {"names": np.array(["a", "b"]), "task": np.arange(3), "score": np.ones(3), "output": np.ones((3, 2))}


def packed(arrays: dict[str, bytes], compress: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compress) as archive:
        for name, value in arrays.items():
            archive.writestr(f"{name}.npy", value)
    return buffer.getvalue()


def as_npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def read_predictions(file: Path) -> dict[str, np.ndarray]:
    try:
        return read_arrays(file, ARRAYS)
    except UserError:
        raise
    except Exception as error:  # as the readers of runs do
        raise UserError(f"{file} is damaged: {type(error).__name__}") from error


def test_bytes_of_predictions(tmp_path: Path) -> None:
    file, counts = tmp_path / "predictions.npz", Counter[str]()

    @short
    @given(st.data())
    def test(data: st.DataObject) -> None:
        arrays = {name: bytearray(as_npy(array)) for name, array in ARRAYS.items()}
        part = arrays[data.draw(st.sampled_from(sorted(arrays)))]
        for _ in range(data.draw(st.integers(0, 3))):
            part[data.draw(st.integers(0, len(part) - 1))] = data.draw(st.integers(0, 255))
        whole = bytearray(packed({name: bytes(value) for name, value in arrays.items()}))
        for _ in range(data.draw(st.integers(0, 1))):
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
        file.write_bytes(whole)
        refused_or_read(lambda: read_predictions(file), counts)

    repeated(test, counts)
    assert counts["read"]
    assert counts["refused"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (lambda: packed({"task": bytes(2**29)}), "it would inflate from"),
        (lambda: packed({"task": as_npy(np.zeros(0)).replace(b"(0,)", b"(9,)")}), "its header claims"),
        (lambda: packed({"task": as_npy(np.array([object], dtype=object))}), "its header claims"),
    ],
    ids=["inflates", "claims", "objects"],
)
def test_predictions_that_are_larger_than_they_are(content: Callable[[], bytes], line: str, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(content())
    with pytest.raises(ValueError, match=line):
        read_arrays(tmp_path / "a.npz", ["task"])
