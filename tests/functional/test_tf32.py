"""Full float32 is a context: what is switched within it, what counts as a request for less, and what is left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lightning_meta.functional import tf32
from lightning_meta.functional.tf32 import full_float32, has_tf32, tf32_in_use, tf32_requested
from tests.tf32_switches import BY_OPERATION, as_torch_has_them, convolutions_use_tf32, cudnn, since_2_9, switches

matmul: Any = torch.backends.cuda.matmul
everything: Any = torch.backends


@pytest.fixture(autouse=True)
def _defaults() -> Iterator[None]:
    with as_torch_has_them():
        yield


@pytest.fixture(params=[pytest.param(True, marks=since_2_9, id="torch 2.9"), pytest.param(False, id="torch 2.6")])
def _release(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both interfaces for switching TF32; that of older releases of torch also works in newer ones."""
    monkeypatch.setattr(tf32, "_BY_OPERATION", request.param)


def set_(owner: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(owner, name, value)


# What users may have set before: the name, and how.
CUDNN: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "allow_tf32 off": set_(cudnn, "allow_tf32", False),
    "allow_tf32 on": set_(cudnn, "allow_tf32", True),
}
if BY_OPERATION:
    CUDNN |= {
        "convolutions off": set_(cudnn.conv, "fp32_precision", "ieee"),
        "recurrent layers off": set_(cudnn.rnn, "fp32_precision", "ieee"),
        "recurrent layers as cuDNN": set_(cudnn.rnn, "fp32_precision", "none"),
        "cuDNN off": set_(cudnn, "fp32_precision", "ieee"),
        "everything off": set_(everything, "fp32_precision", "ieee"),
    }
REQUESTS: dict[str, Callable[[], None]] = {
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "allow_tf32": set_(matmul, "allow_tf32", True),
}


@pytest.mark.usefixtures("_release")
@pytest.mark.parametrize("case", ["nothing", "allow_tf32 off", "allow_tf32 on"])
def test_nothing_rounds_within_and_all_is_as_before_afterwards(case: str) -> None:
    CUDNN[case]()
    before = switches()
    with full_float32():
        assert not convolutions_use_tf32()
        assert not tf32_in_use()
        with full_float32():
            assert not convolutions_use_tf32()
        assert not convolutions_use_tf32(), "an inner context does not end the outer one"
    assert switches() == before
    with pytest.raises(ValueError, match="in the middle"), full_float32():
        raise ValueError("in the middle")
    assert switches() == before


@since_2_9
@pytest.mark.parametrize("case", CUDNN)
def test_whatever_was_set_is_set_afterwards(case: str) -> None:
    CUDNN[case]()
    before = switches()
    with full_float32():
        assert (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision) == ("ieee", "ieee")
    assert switches() == before


@pytest.mark.parametrize("case", [*CUDNN, *REQUESTS])
def test_a_context_that_is_not_enabled_does_nothing(case: str) -> None:
    {**CUDNN, **REQUESTS}[case]()
    before = switches()
    with full_float32(enabled=False):
        assert switches() == before
    assert switches() == before


@pytest.mark.parametrize("case", CUDNN)
def test_switches_of_cudnn_are_no_request(case: str) -> None:
    CUDNN[case]()
    assert not tf32_requested()


@pytest.mark.usefixtures("_release")
@pytest.mark.parametrize("case", REQUESTS)
def test_torchs_function_and_the_switch_behind_it_are_a_request(case: str) -> None:
    REQUESTS[case]()
    assert tf32_requested()
    assert tf32_in_use()
    torch.set_float32_matmul_precision("highest")
    assert not tf32_requested()


@since_2_9
@pytest.mark.parametrize("owner", [matmul, everything, cudnn])  # the last is for all of CUDA, whatever its name
def test_the_new_switches_of_matrix_products_are_a_request_where_the_old_getter_raises(owner: Any) -> None:
    owner.fp32_precision = "tf32"
    with pytest.raises(RuntimeError):
        torch.get_float32_matmul_precision()
    assert tf32_requested()


@since_2_9
def test_switches_that_contradict_each_other_can_be_left_and_entered() -> None:
    cudnn.conv.fp32_precision = "ieee"
    assert switches()["old"] == "contradicted"
    before = switches()
    with full_float32():
        assert not tf32_in_use()
    assert switches() == before
    cudnn.conv.fp32_precision = "tf32"
    assert switches()["old"] is True


def test_code_within_may_read_the_old_switch_as_the_usual_recipe_for_recurrent_layers_does() -> None:
    with full_float32():
        assert not cudnn.allow_tf32
        with cudnn.flags(enabled=False):
            assert not cudnn.enabled
        assert not convolutions_use_tf32()
        assert not cudnn.allow_tf32
    assert convolutions_use_tf32()


def test_torch_differentiates_convolutions_twice_within() -> None:
    """torch raises in whatever reads a switch without naming the operation while they contradict each other."""
    x, w = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3, requires_grad=True)
    with full_float32():
        (first,) = torch.autograd.grad(F.conv2d(x, w).square().sum(), w, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), w)
    assert second.isfinite().all()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_other_devices_have_no_tf32(device: str) -> None:
    assert not has_tf32(torch.device(device))


def test_gpus_have_it_since_ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for capability, expected in {(7, 5): False, (8, 0): True, (9, 0): True, (12, 1): True}.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert has_tf32(torch.device("cuda", 0)) is expected
    monkeypatch.setattr(torch.version, "cuda", None)  # AMD's are called cuda as well
    assert not has_tf32(torch.device("cuda", 0))
