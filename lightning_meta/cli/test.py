"""`lightning-meta test`."""

from __future__ import annotations

from collections.abc import Sequence


def test(args: Sequence[str]) -> None:
    """Test."""
    raise NotImplementedError
