"""Compare transductive methods with inductive ones on the features of one trained network.

    python scripts/compare_transductive.py runs/simple_shot_glyphs/0 --queries 2

Every method is tested on the same tasks, with the same number of queries of each class and with shares of the classes
that are drawn from a Dirichlet distribution. The first row is the method of the run; the others have their default
options, except for the cosine of `ProtoNet` and `SoftKMeans`. Accuracies are in per cent, with their 95 % intervals
over tasks. The last column is the processor time of the balanced tasks with the first number of shots.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

import lightning_meta as lm

DIRICHLET = 2.0  # Veilleux et al., NeurIPS 2021
COSINE: dict[str, Any] = {"scale_features": True, "temperature": 0.1}
METHODS: dict[str, Callable[[nn.Module], lm.MetaModule]] = {
    "`ProtoNet`, cosine": partial(lm.ProtoNet, distance="cosine", **COSINE),
    "`SoftKMeans`, cosine": partial(lm.SoftKMeans, **COSINE),
    "`SoftKMeans`, cosine, 10 steps": partial(lm.SoftKMeans, steps=10, **COSINE),
    "`BDCSPN`": lm.BDCSPN,
    "`LaplacianShot`": lm.LaplacianShot,
    "`PTMAP`": lm.PTMAP,
    "`TIM`": lm.TIM,
    "`AlphaTIM`": lm.AlphaTIM,
}


def main(args: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory with the network")
    parser.add_argument("--source", default="Glyphs", help="a class of lightning_meta.sources")
    parser.add_argument("--shots", type=int, nargs="+", default=[1])
    parser.add_argument("--queries", type=int, default=15, help="queries of each class, on average")
    parser.add_argument("--tasks", type=int, default=1000)
    options = parser.parse_args(args)
    source = getattr(lm.sources, options.source)()
    datas = [lm.EpisodicDataModule(source, queries=options.queries, test_dirichlet=d) for d in (None, DIRICHLET)]
    own = lm.load(options.run)
    modules = {f"`{type(own).__name__}`, the run": own} | {name: of(own.backbone) for name, of in METHODS.items()}
    cases = [f"{k} shot{'s' * (k > 1)}, {kind}" for k in options.shots for kind in ("balanced", "Dirichlet(2)")]
    print(f"| method | {' | '.join(cases)} | time |")
    print(f"| --- |{' ---: |' * (len(cases) + 1)}")
    for name, module in modules.items():
        cells, seconds = [], 0.0
        for shots in options.shots:
            for data in datas:
                began = time.process_time()
                (result,) = lm.evaluate(module, data, ways=5, shots=shots, tasks=options.tasks, accelerator="cpu")
                seconds = seconds or time.process_time() - began
                cells.append(f"{100 * result.score:.1f} ± {100 * result.interval:.1f}")
        print(f"| {name} | {' | '.join(cells)} | {seconds:.1f} s |", flush=True)


if __name__ == "__main__":
    main()
