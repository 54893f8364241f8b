"""One clear line out of what the parser says."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """Condense an error message."""
    return " ".join(str(error).split())
