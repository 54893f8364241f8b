"""Fixtures of all tests: a cache that is not the user's, one seed, and the folder of real data."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from lightning_meta.sources import Glyphs
from lightning_meta.sources.glyphs import Character

settings.register_profile("tests", deadline=None)  # a loaded machine is slow, and that is no fault
settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache for the whole session: nothing is decoded twice, and the user's own is never touched."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("LIGHTNING_META_CACHE", str(folder))
        yield
        shutil.rmtree(folder, ignore_errors=True)  # pytest keeps temporary folders, and this one is large


@pytest.fixture(scope="session", autouse=True)
def _glyphs_are_rendered_once() -> Iterator[None]:
    """Rendering takes seconds, and hundreds of tests want the same images; each gets a copy of its own."""
    render = Glyphs.render
    rendered: dict[tuple[object, ...], Tensor] = {}

    def rendered_once(glyphs: Glyphs, characters: Sequence[Character]) -> Tensor:
        key = (glyphs.seed, glyphs.jitter, glyphs.copies, glyphs.image_size, tuple(characters))
        if key not in rendered:
            if len(rendered) > 4:
                rendered.clear()
            rendered[key] = render(glyphs, characters)
        return rendered[key].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Glyphs, "render", rendered_once)
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same random state, and from no run's seed."""
    os.environ.pop("PL_GLOBAL_SEED", None)
    torch.manual_seed(0)


OF_RANKS = ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def _no_rank_of_an_earlier_trainer() -> Iterator[None]:
    """A Trainer with `strategy="ddp"` leaves its rank in the environment and its process group at work.

    What is started later would wait for more ranks, and what is logged later would be taken for one rank's.
    """
    before = {name: os.environ.get(name) for name in OF_RANKS}
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture
def data_folder() -> Path:
    """The folder of real data sets."""
    given = os.environ.get("LIGHTNING_META_DATA")
    if not given:
        pytest.skip("LIGHTNING_META_DATA is not set")
    return Path(given)


@pytest.fixture(scope="session", autouse=True)
def _interrupts() -> None:
    """Ctrl-C as a user's process has it: test processes of pytest-xdist ignore it, and so would all that they start.

    Likewise the end of a terminal, which what `nohup` starts ignores.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
