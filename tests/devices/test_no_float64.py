"""No float64 tensor is made in a step of a float32 module, wherever it runs: Apple's MPS has none.

`test_accelerator` refuses float64 on the accelerator throughout fit, validate, test and predict. Here it is refused on
the CPU as well, but within steps alone: data are drawn in float64, and scores are summed in it after a step.
The one exemption: `RandomWeights` draws its weights in float64 on the CPU, on any device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_meta.functional.precision import at_least_float32
from tests.devices.toys import EPISODES, META, MULTI, MULTI_TASK

STEPS = ("training_step", "validation_step", "test_step", "predict_step")
EXEMPT = ("MultiHead, random",)
MODULES: dict[str, Any] = {name: made for name, made in {**META, **MULTI}.items() if name not in EXEMPT}


class NoFloat64(TorchDispatchMode):
    """Refuses every operation with a float64 result."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            assert not (isinstance(leaf, Tensor) and leaf.dtype == torch.float64), f"{func} made a float64 tensor"
        return out


def guarded(step: Callable[..., Any], seen: set[str]) -> Callable[..., Any]:
    def guard(*args: Any, **kwargs: Any) -> Any:
        seen.add(step.__name__)
        with NoFloat64():
            return step(*args, **kwargs)

    return guard


def test_the_mode_sees_float64() -> None:
    with NoFloat64(), pytest.raises(AssertionError, match="float64"):
        torch.ones(2).double()


@pytest.mark.parametrize("name", MODULES)
def test_no_step_makes_a_float64_tensor(name: str) -> None:
    make, kind = MODULES[name]
    data = {**EPISODES, **MULTI_TASK}[kind]()
    module, seen = make(), set[str]()
    for step in STEPS:
        setattr(module, step, guarded(getattr(module, step), seen))
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, log_every_n_steps=1, enable_model_summary=False, **quiet)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    trainer.predict(module, datamodule=data)
    assert seen == set(STEPS)


def test_what_is_in_double_precision_stays_so() -> None:
    """Means over tasks and R² are of float64 predictions, where a module makes such."""
    double = torch.ones(2, dtype=torch.float64)
    assert at_least_float32(double) is double
    for name in ("ProtoNet, vmap", "MultiHead"):
        make, kind = {**META, **MULTI}[name]
        data = {**EPISODES, **MULTI_TASK}[kind]()
        module = make()
        quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        quiet |= {"enable_model_summary": False, "log_every_n_steps": 1}
        trainer = L.Trainer(accelerator="cpu", max_epochs=1, precision="64-true", **quiet)
        trainer.fit(module, datamodule=data)
        losses = []
        for batch in trainer.predict(module, datamodule=data) or []:
            losses += [leaf.dtype for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
        assert set(losses) == {torch.float64}
