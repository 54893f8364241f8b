"""Crops, flips and colours: the numbers of plain NumPy and of torchvision, evenly drawn, and one image at a time."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.func import vmap

import lightning_meta as lm
from lightning_meta.building import build
from lightning_meta.data.augmentation import Augmentation
from lightning_meta.describing import describe
from lightning_meta.errors import UserError
from lightning_meta.functional.random_bits import bits
from tests.devices.pretend import accelerator

UNLIKELY = 1e-6  # seeds are fixed, so tests do not flicker


def photographs(count: int = 12, channels: int = 3, height: int = 9, width: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def keys(count: int = 12, start: int = 0) -> Tensor:
    return bits(torch.arange(start, start + count), 1).squeeze(-1)


def draws(key: int, padding: int, jitter: float) -> tuple[int, int, bool, tuple[float, float, float]]:
    """The random numbers of an image as documented, from the bits of its key."""
    words = [word % 2**64 for word in bits(torch.tensor(key), 6).tolist()]
    down, right = ((word >> 33) * (2 * padding + 1) >> 31 for word in words[:2])
    brightness, contrast, saturation = (1 + jitter * (2 * (word >> 40) / 2**24 - 1) for word in words[3:])
    return down, right, words[2] >= 2**63, (brightness, contrast, saturation)


def in_numpy(image: np.ndarray[Any, Any], key: int, padding: int, flip: bool, jitter: float) -> np.ndarray[Any, Any]:
    """The augmentation of one image in NumPy, step by step."""
    down, right, mirrored, (brightness, contrast, saturation) = draws(key, padding, jitter)
    _, height, width = image.shape
    x = np.pad(image.astype(np.float64) / 255, ((0, 0), (padding, padding), (padding, padding)))
    x = x[:, down : down + height, right : right + width]
    if flip and mirrored:
        x = x[:, :, ::-1]
    if jitter:
        x = np.clip(brightness * x, 0, 1)
        x = np.clip(contrast * x + (1 - contrast) * grey(x).mean(), 0, 1)
        x = np.clip(saturation * x + (1 - saturation) * grey(x), 0, 1) if len(x) == 3 else x
    return x


def grey(x: np.ndarray[Any, Any]) -> Any:
    return 0.2989 * x[0] + 0.587 * x[1] + 0.114 * x[2] if len(x) == 3 else x[0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("jitter", [0.0, 0.4])
def test_it_is_what_numpy_computes(channels: int, padding: int, flip: bool, jitter: float) -> None:
    images = photographs(channels=channels)
    augmented = Augmentation(padding, flip, jitter)(images, keys())
    assert augmented.dtype == torch.float32
    for image, key, result in zip(images, keys().tolist(), augmented, strict=True):
        expected = in_numpy(image.numpy(), key, padding, flip, jitter)
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-6)
    real = Augmentation(padding, flip, jitter)(images.double() / 255, keys())
    assert real.dtype == torch.float64
    torch.testing.assert_close(real.float(), augmented, atol=1e-6, rtol=0)


def test_it_is_what_torchvision_computes() -> None:
    """Run with PYTHONPATH on `pip install --no-deps torchvision==0.16.2 --target FOLDER`, which dev does not have."""
    pytest.importorskip("torchvision")
    functional = importlib.import_module("torchvision.transforms.functional")
    for key, image in zip(keys().tolist(), photographs(), strict=True):
        down, right, mirrored, (brightness, contrast, saturation) = draws(key, 2, 0.4)
        x = functional.crop(functional.pad(image / 255, [2, 2]), down, right, 9, 7)
        x = functional.adjust_brightness(functional.hflip(x) if mirrored else x, brightness)
        x = functional.adjust_saturation(functional.adjust_contrast(x, contrast), saturation)
        torch.testing.assert_close(Augmentation(2)(image[None], torch.tensor([key]))[0], x, atol=1e-6, rtol=0)


def test_places_and_flips_are_drawn_evenly_and_apart() -> None:
    """A single lit pixel says from where an image was cut, and whether it was flipped."""
    images = torch.zeros(20_000, 1, 12, 13, dtype=torch.uint8)
    images[:, 0, 5, 4] = 255
    where = Augmentation(1, jitter=0)(images, torch.arange(20_000)).flatten(1).argmax(1)
    rows, columns = where // 13, where % 13
    # Moved by -1, 0 or 1: columns 3 to 5, flipped 7 to 9.
    cases = (rows - 4) * 6 + torch.where(columns < 6, columns - 3, columns - 4)
    counts = torch.bincount(cases)
    assert len(counts) == 3 * 3 * 2
    assert stats.chisquare(counts.double().numpy()).pvalue > UNLIKELY


def test_factors_of_colours_are_drawn_evenly_within_their_bounds() -> None:
    """A dark grey image changes by its brightness alone; pure colours show the contrast and the saturation."""
    images = torch.full((20_000, 1, 2, 2), 0.5)
    factors = Augmentation(0, False, 0.4)(images, torch.arange(20_000)).mean((1, 2, 3)) / 0.5
    assert 0.6 <= float(factors.min()) < 0.601
    assert 1.399 < float(factors.max()) < 1.4001
    assert stats.chisquare(torch.histc(factors, 40, 0.6, 1.4).double().numpy()).pvalue > UNLIKELY
    two = torch.tensor([0.2, 0.4]).view(1, 1, 1, 2).expand(20_000, 1, 1, 2)
    changed = Augmentation(0, False, 0.4)(two, torch.arange(20_000)).squeeze()
    contrast = (changed[:, 1] - changed[:, 0]) / changed.mean(1) * 1.5
    assert stats.kstest(contrast.double().numpy(), stats.uniform(0.6, 0.8).cdf).pvalue > UNLIKELY
    brightness = changed.mean(1) / 0.3
    assert abs(float(torch.corrcoef(torch.stack([brightness, contrast]))[0, 1])) < 0.04, "they are drawn apart"


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 11), st.integers(1, 12))
def test_an_image_is_augmented_the_same_in_any_batch(first: int, count: int) -> None:
    images, augmentation = photographs(), Augmentation(2)
    whole = augmentation(images, keys())
    part = augmentation(images[first : first + count], keys()[first : first + count])
    assert torch.equal(part, whole[first : first + count])


@pytest.mark.parametrize("options", [{}, {"crop_padding": 0}, {"crop_padding": 0, "flip": False}, {"jitter": 0}])
def test_it_is_the_same_under_vmap(options: dict[str, Any]) -> None:
    augmentation = Augmentation(**{"crop_padding": 2, **options})
    images, own = photographs(), keys()
    expected = augmentation(images, own)
    by_task = vmap(augmentation)(images.unflatten(0, (3, 4)), own.unflatten(0, (3, 4)))
    assert torch.equal(by_task.flatten(0, 1), expected)
    five = torch.stack([keys(start=20 * i) for i in range(5)])
    copies = vmap(augmentation, in_dims=(None, 0))(images, five)
    assert torch.equal(copies[3], augmentation(images, five[3]))


def test_it_is_the_same_on_an_accelerator() -> None:
    images, expected = photographs(), Augmentation(2)(photographs(), keys())
    with accelerator() as device:
        found = Augmentation(2)(images.to(device), keys().to(device))
        assert found.device == device
        torch.testing.assert_close(found.cpu(), expected)


def test_no_random_state_and_no_image_changes() -> None:
    images = photographs().float() / 255
    before, state = images.clone(), torch.get_rng_state()
    for augmentation in (Augmentation(2), Augmentation(0, False), Augmentation(2, jitter=0)):
        augmentation(images, keys())
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_is_changed_where_all_is_left_out() -> None:
    assert torch.equal(Augmentation(0, False, 0)(photographs(), keys()), photographs() / 255)


def test_it_is_made_again_from_plain_data() -> None:
    spec = describe(Augmentation(8, jitter=0.1))
    assert spec == {
        "class_path": "lightning_meta.Augmentation",
        "init_args": {"crop_padding": 8, "flip": True, "jitter": 0.1},
    }
    assert describe(build(spec)) == spec, "a checkpoint may hold it"
    assert lm.Augmentation is Augmentation


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_padding": -1}, "crop_padding: at least 0 is needed, got -1"),
        ({"crop_padding": 2.5}, "crop_padding: a whole number of at least 0 is needed, got 2.5"),
        ({"flip": "no"}, "flip: True or False is needed, got 'no'"),
        ({"jitter": 1}, "jitter: a number from 0 to below 1 is needed, got 1"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        Augmentation(**options)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 784), r"augmentation: images .* are needed, got examples in float32 of shape \(784,\)"),
        (torch.zeros(2, 3, 9, 9, dtype=torch.int64), r"got examples in int64 of shape \(3, 9, 9\); leave augmentation"),
        (torch.zeros(2, 3, 9, 4), "crop_padding: less than the 4 pixels of an image are needed, got 4"),
        (torch.zeros(2, 2, 9, 9), "jitter: images of 1 or 3 channels are needed, these have 2; set jitter to 0"),
    ],
)
def test_what_it_cannot_augment_is_refused(images: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Augmentation()(images, keys(2))
