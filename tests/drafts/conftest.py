"""Ranks take seconds to start: drafts are tried on two of them among the slow tests."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "test_two_ranks" in item.nodeid and "/drafts/" in item.nodeid:
            item.add_marker(pytest.mark.slow)
