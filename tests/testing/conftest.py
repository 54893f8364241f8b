"""Ranks take seconds to start: one class does it by default, the others among the slow tests."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "test_two_ranks" in item.nodeid and "TestMultiHead" not in item.nodeid:
            item.add_marker(pytest.mark.slow)
