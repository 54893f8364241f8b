"""The peer, learn2learn (built by `scripts/build_learn2learn.py`; not a dependency): without it, tests are skipped."""

from __future__ import annotations

import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # an unmaintained gym, a torchvision without its image library
    l2l = pytest.importorskip("learn2learn")
