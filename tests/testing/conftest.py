"""Ranks take seconds to start: one class has its own by default, the others share theirs among the slow tests."""

from __future__ import annotations

import pytest
from torch import Tensor

from lightning_meta.testing.ranks import reach, weights_on
from lightning_meta.testing.trained_module import TrainedModuleTests


def _is_of_ranks(item: pytest.Item) -> bool:
    return "test_two_ranks" in item.nodeid and "TestMultiHead" not in item.nodeid


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _is_of_ranks(item):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def trained_together(request: pytest.FixtureRequest) -> dict[int, dict[str, dict[str, Tensor]]]:
    """The weights by the number of ranks and by the class, for all selected classes of the file."""
    items = [item for item in request.session.items if item.path == request.path and _is_of_ranks(item)]
    reached = [reach(item.cls) for item in items if isinstance(item, pytest.Function) and item.cls is not None]
    names = [name for _, name in reached]
    return {world: weights_on(world, reached[0][0], names) for world in (1, 2)}


@pytest.fixture(autouse=True)
def _ranks_are_shared(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a class take its weights from what all classes of the file were trained to together."""
    if _is_of_ranks(request.node):
        trained = request.getfixturevalue("trained_together")

        def taken(tests: TrainedModuleTests, world: int) -> dict[str, Tensor]:
            return trained[world][type(tests).__qualname__]

        monkeypatch.setattr(TrainedModuleTests, "trained_on", taken)
