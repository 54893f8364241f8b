"""A user's own classes: one that is right passes the inherited tests, broken ones fail with the name of the defect."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_meta.batches import Examples, Split
from lightning_meta.data import EpisodicDataModule, Pool
from lightning_meta.errors import UserError
from lightning_meta.meta import MetaModule
from lightning_meta.meta.base import Outcome
from lightning_meta.multitask import MultiHead
from lightning_meta.nn import MLP, Conv4
from lightning_meta.testing import BackboneTests, EpisodicDataModuleTests, MetaModuleTests, MultiTaskModuleTests, toys
from tests.waiting import LIMIT

ROOT = Path(__file__).parents[2]
OWN = '''
import torch
from torch.nn import functional as F
from lightning_meta.errors import UserError
from lightning_meta.meta import MetaModule
from lightning_meta.nn import Conv4
from lightning_meta.testing import MetaModuleTests


class MatchingNetwork(MetaModule):
    """A query is the soft-nearest support example (Vinyals et al. 2016, equation 1)."""

    classifies_only = True
    inner_gradients = False

    def adapt(self, support, ways):
        return F.normalize(self.network(support.x), dim=-1), F.one_hot(support.y, ways).to(support.x.dtype)

    def predict(self, state, x):
        keys, labels = state
        attention = (10 * F.normalize(self.network(x), dim=-1) @ keys.T).softmax(-1)
        return (attention @ labels + 1e-6).log()


class TestMatchingNetwork(MetaModuleTests):
    def make(self):
        return MatchingNetwork(Conv4(in_channels=1, width=4, blocks=2))


class Wanders(MatchingNetwork):
    """Broken: it moves its weights while it adapts."""

    def adapt(self, support, ways):
        with torch.no_grad():
            next(self.network.parameters()).add_(1e-3)
        return super().adapt(support, ways)


class TestWanders(MetaModuleTests):
    def make(self):
        return Wanders(Conv4(in_channels=1, width=4, blocks=2))
'''


@pytest.mark.slow
def test_a_users_own_method_under_pytest(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "extending.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    shown = [next(b for b in blocks if marker in b) for marker in ("class NearestMean", "class TestNearestMean")]
    (tmp_path / "test_own.py").write_text("\n".join([*shown, OWN]))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_own.py", "-k"]
    right = subprocess.run(
        [*command, "TestNearestMean or TestMatchingNetwork and not ranks"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert right.returncode == 0, right.stdout[-3000:]
    assert "21 passed" in right.stdout
    broken = subprocess.run(
        [*command, "TestWanders and changes"], cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT
    )
    assert broken.returncode == 1
    assert "adapt or predict changed ['backbone.blocks.0.0.weight']" in broken.stdout


class Right(MetaModule):
    """Nearest class mean."""

    def adapt(self, support: Examples, ways: int) -> Any:
        one_hot = nn.functional.one_hot(support.y, ways).to(support.x.dtype)
        return one_hot.T @ self.network(support.x)

    def predict(self, state: Any, x: Tensor) -> Tensor:
        return -torch.cdist(self.network(x), state)


class Noisy(Right):
    def predict(self, state: Any, x: Tensor) -> Tensor:
        return super().predict(state, x) + torch.randn(())


class Ordered(Right):
    def predict(self, state: Any, x: Tensor) -> Tensor:
        return super().predict(state, x) * torch.linspace(1, 2, len(x), dtype=x.dtype).unsqueeze(-1)


class Detached(Right):
    def adapt(self, support: Examples, ways: int) -> Any:
        return super().adapt(support, ways).detach()

    def predict(self, state: Any, x: Tensor) -> Tensor:
        return -torch.cdist(self.network(x).detach(), state) * self.scale

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.scale = nn.Parameter(torch.ones(()))


class Forgets(Right):
    """A method whose learned values are neither parameters nor buffers."""

    steps = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.steps += 1
        return super().training_step(batch, batch_idx)

    def predict(self, state: Any, x: Tensor) -> Tensor:
        return super().predict(state, x) * (1 if self.steps < 1 else -1)


class Mixes(Right):
    """A method that remembers the previous task."""

    last: Tensor | None = None

    def adapt(self, support: Examples, ways: int) -> Any:
        state = super().adapt(support, ways)
        shift = 0 if self.last is None else self.last
        self.last = support.x.mean().detach()
        return state + shift


class Evaluates(Right):
    """A method whose last state in evaluation is not that of `adapt`."""

    def trajectory(self, support: Examples, ways: int) -> Any:
        return [2 * self.adapt(support, ways)]


class Trains(Right):
    """A method that is trained on other predictions than it makes."""

    def task_loss(self, support: Examples, query: Examples, ways: int) -> Outcome:
        outcome = super().task_loss(support, query, ways)
        return outcome._replace(outputs=2 * outcome.outputs)


class LeftOut(MultiHead):
    """The second task of a batch is told what the first one's inputs are."""

    def forward(self, x: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: out * len(rows) for name, out in super().forward(x, rows).items()}


class Leaky(toys.NoisyPictures):
    def pools(self) -> dict[Split, Pool]:
        pools = super().pools()
        return {**pools, "test": Pool(pools["train"].x, pools["train"].sizes, tuple("abcdefgh"), tuple("abcdefgh"))}


class Renamed(toys.NoisyPictures):
    def pools(self) -> dict[Split, Pool]:
        return {
            split: Pool(pool.x, pool.sizes, tuple(name.split()[1] for name in pool.names), pool.groups)
            for split, pool in super().pools().items()
        }


class Relative(nn.Module):
    """Features relative to the mean of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)).flatten(1)


class Counts(nn.Module):
    """A buffer that moves with each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.linear = nn.Linear(256, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)  # type: ignore[operator]
        return self.linear(x.flatten(1))


class Cuts(nn.Module):
    """A network that cuts off second derivatives."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(256, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x.flatten(1))
        return y.sin() * (1 + y.detach())


def meta(method: type[MetaModule]) -> Callable[[], MetaModule]:
    return lambda: method(Conv4(width=4, blocks=2))


def episodes(source: type[toys.NoisyPictures]) -> Callable[[], EpisodicDataModule]:
    return lambda: EpisodicDataModule(source(), ways=3, shots=2, queries=3, seed=0)


class Relates(Right):
    """A query is seen relative to those beside it."""

    def predict(self, state: Any, x: Tensor) -> Tensor:
        return super().predict(state, x) - super().predict(state, x).mean(0)


BROKEN: dict[str, tuple[type, Callable[[], Any], str, str]] = {
    "random predictions": (MetaModuleTests, meta(Noisy), "test_adapting_changes_nothing", "global random stream"),
    "depends on the order": (
        MetaModuleTests,
        meta(Ordered),
        "test_the_order_of_examples_does_not_matter",
        "reversing the query set changes predictions",
    ),
    "detached": (
        MetaModuleTests,
        meta(Detached),
        "test_every_parameter_learns",
        r"the outer loss does not depend on \['backbone.blocks.0.0.weight'",
    ),
    "not in the checkpoint": (
        MetaModuleTests,
        meta(Forgets),
        "test_a_checkpoint_is_enough",
        "a loaded module has other test figures",
    ),
    "depends on its company": (
        MetaModuleTests,
        meta(Relates),
        "test_a_prediction_does_not_depend_on_its_company",
        "with the queries beside it",
    ),
    "evaluates another state": (
        MetaModuleTests,
        meta(Evaluates),
        "test_training_and_evaluation_agree_with_adapt_and_predict",
        "the predictions of trajectory differ from those of adapt and predict",
    ),
    "trains other predictions": (
        MetaModuleTests,
        meta(Trains),
        "test_training_and_evaluation_agree_with_adapt_and_predict",
        "the predictions of task_loss differ from those of adapt and predict",
    ),
    "mixes tasks": (
        MetaModuleTests,
        meta(Mixes),
        "test_tasks_do_not_depend_on_how_they_are_visited",
        "must depend on one task alone",
    ),
    "absent tasks matter": (
        MultiTaskModuleTests,
        lambda: LeftOut(MLP(4, (8,))),
        "test_an_absent_task_changes_nobody_else",
        "where the other tasks are absent",
    ),
    "leaks examples": (
        EpisodicDataModuleTests,
        episodes(Leaky),
        "test_classes_are_in_one_split",
        "64 examples are in both train and test: test data leaks into training",
    ),
    "leaks classes": (
        EpisodicDataModuleTests,
        episodes(Renamed),
        "test_classes_are_in_one_split",
        "class '0' is in both the train and the val split",
    ),
    "mixes examples": (BackboneTests, Relative, "test_examples_are_apart", "with what else is in the batch"),
    "keeps something": (BackboneTests, Counts, "test_a_forward_pass_changes_nothing", r"changed \['seen'\]"),
    "cuts derivatives": (BackboneTests, Cuts, "test_second_order_meta_gradients", "is something detached"),
    "features with shape": (
        BackboneTests,
        lambda: nn.Conv2d(1, 2, 3),
        "test_features_are_flat",
        r"features are \(6, 2, 14, 14\); expected \(examples, features\)",
    ),
}


@pytest.mark.parametrize("defect", BROKEN)
def test_a_broken_class_fails_by_the_name_of_its_defect(defect: str) -> None:
    tests, make, name, message = BROKEN[defect]
    broken = type("TestBroken", (tests,), {"make": lambda self: make()})()
    with pytest.raises((AssertionError, UserError), match=message):
        getattr(broken, name)()


def test_the_right_one_passes_them() -> None:
    right = type("TestRight", (MetaModuleTests,), {"make": lambda self: meta(Right)()})()
    for name in {test for tests, _, test, _ in BROKEN.values() if tests is MetaModuleTests}:
        getattr(right, name)()
