"""The recipe of CONTRIBUTING.md, followed in a copy of this repository: a new method is four files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

META_LEARNER = '''
"""Nearest neighbour."""

import torch

from lightning_meta.functional.prototypes import class_means
from lightning_meta.meta.metric import MetricLearner


class Nearest(MetricLearner):
    """Classify by the nearest class mean, in city blocks.

    At a glance:
        - Shared: an embedding θ.
        - Own: class means.
        - New task: embed.

    Run it:
        `python scripts/fit.py --config configs/nearest_glyphs.yaml`.

    Logged:
        - `test/accuracy`: over the test tasks.

    Deviations:
        - No paper.
    """

    def summarise(self, support, ways):
        """The means of the classes."""
        return {"means": class_means(support.x, support.y, ways)}

    def logits(self, summary, features):
        """Minus the distances."""
        return -(features.unsqueeze(1) - summary["means"]).abs().sum(-1)
'''
MULTI_TASK = '''
"""Heads on different features."""

from torch import nn

from lightning_meta.multitask.base import MultiTaskModule


class SmallHeads(MultiTaskModule):
    """Heads that see the first four features of one backbone.

    At a glance:
        - Shared: a backbone.
        - Own: a small head.
        - New task: train a head.

    Run it:
        `python scripts/fit.py --config configs/small_heads_glyphs.yaml`.

    Logged:
        - `test/score`: the mean over tasks.

    Deviations:
        - No paper.
    """

    def build(self, spec):
        """Make the heads."""
        self.heads = nn.ModuleList(self.head(name, 4) for name in spec.tasks)

    def forward(self, x, rows):
        """Predict for several tasks."""
        features = self.backbone(x)[:, :4]
        return {name: self.heads[self.names.index(name)](features[i]) for name, i in rows.items()}
'''
WEIGHTING = '''
"""Half of each loss."""

import torch

from lightning_meta.weightings.base import Weighting


class Halves(Weighting):
    """Half of each loss.

    Run it:
        `python scripts/fit.py --config configs/multi_head_glyphs.yaml --model.init_args.weighting Halves`.

    Logged:
        - `train/weight/<task>`: 1/2.

    Deviations:
        - No paper.
    """

    def configure(self, tasks):
        """One weight a task."""
        self.register_buffer("weight", torch.full((len(tasks),), 0.5), persistent=False)

    def weights(self):
        """Halves."""
        return self.weight
'''


def add(file: Path, beginning: str, line: str) -> None:
    """Write a line before the first that begins so."""
    before, found, after = file.read_text().partition(f"\n{beginning}")
    assert found
    file.write_text(f"{before}\n{line}{found}{after}")


@pytest.mark.slow
def test_a_method_a_weighting_and_their_rows_are_all_that_it_takes(tmp_path: Path) -> None:
    for part in ("lightning_meta", "scripts", "tests", "configs", "docs"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("README.md", "CONTRIBUTING.md", "pyproject.toml"):
        shutil.copy(ROOT / part, tmp_path)
    package, rows = tmp_path / "lightning_meta", tmp_path / "tests" / "methods.py"

    def add_config(method: str, like: str, name: str, own: str) -> None:
        """Write the configuration of another method without its own option."""
        text = (ROOT / "configs" / f"{like}_glyphs.yaml").read_text().replace(f"configs/{like}", f"configs/{name}")
        text = re.sub(
            rf"    {own}: .*\n", "", re.sub(r"lightning_meta\.[A-Z]\w+", f"lightning_meta.{method}", text, count=1)
        )
        (tmp_path / "configs" / f"{name}_glyphs.yaml").write_text(text)

    (package / "meta" / "nearest.py").write_text(META_LEARNER)
    add(package / "__init__.pyi", "from .meta.predictor", "from .meta.nearest import Nearest as Nearest")
    add_config("Nearest", "protonet", "nearest", "distance")
    add(rows, '    "ProtoNet":', '    "Nearest": lambda **options: lm.Nearest(conv4(), **options),')

    (package / "multitask" / "small_heads.py").write_text(MULTI_TASK)
    add(package / "__init__.pyi", "from .run", "from .multitask.small_heads import SmallHeads as SmallHeads")
    add_config("SmallHeads", "multi_head", "small_heads", "shared_depth")
    add(rows, '    "MultiHead":', '    "SmallHeads": lambda **options: lm.SmallHeads(MLP(4, (8,)), **options),')

    (package / "weightings" / "halves.py").write_text(WEIGHTING)
    add(package / "weightings" / "__init__.pyi", "from .random_weights", "from .halves import Halves as Halves")

    def run(*arguments: str) -> str:
        command, environment = [sys.executable, *arguments], {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    run("scripts/make_tables.py")
    assert "[`Nearest`](lightning_meta/meta/nearest.py)" in (tmp_path / "README.md").read_text()
    nearest = "| [`Nearest`](../lightning_meta/meta/nearest.py) | an embedding θ | class means |"
    assert nearest in (tmp_path / "docs" / "methods.md").read_text()
    halves = "- [`Halves`](../lightning_meta/weightings/halves.py): Half of each loss."
    assert halves in (tmp_path / "docs" / "multi_task.md").read_text()
    whole = ("tests/test_public_api.py", "tests/test_docs.py", "tests/test_configs.py")
    new = "Nearest or SmallHeads or Halves or nearest_ or small_heads_ or place or page_are or table"
    options = ("-q", "-p", "no:cacheprovider", "-k", f"({new}) and not blocks and not ranks")
    summary = run("-m", "pytest", *options, *whole, "tests/testing/test_shipped.py", "tests/test_arguments.py")
    assert "passed" in summary
    assert "skipped" not in summary
