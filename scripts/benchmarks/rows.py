"""The rows of the speed table, one function for each kind of work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

from benchmarks import peers, work
from benchmarks.evaluation import easyfsl_evaluation, features, our_evaluation
from benchmarks.images import maml, protonet, sampling
from benchmarks.measure import Timing, peak_memory
from benchmarks.row import Row, Setting
from benchmarks.sine import sine


def memory(setting: Setting) -> Iterator[Row]:
    """What 20 inner steps hold at most, 5-way 5-shot, second order, with recomputation and without."""
    steps = 5 if setting.short else 20
    batch = work.random_images(4, 5, 5, 15, 28, setting.device)
    peaks = {}
    contestants: dict[str, Callable[[], object]] = {}
    for recompute in (True, False):
        module = work.image_maml(5, steps, 28, setting.device, recompute=recompute, strategy="vmap")
        contestants[str(recompute)] = work.gradient(module, batch)
        peaks[recompute] = float(peak_memory(contestants[str(recompute)], setting.device))
    took = setting._replace(repeats=2, seconds=0).compare(contestants)
    seconds = {name: timing.median for name, timing in took.items()}
    note = (
        f"{peaks[True] / 2**20:.0f} of {peaks[False] / 2**20:.0f} MiB; time {seconds['True'] / seconds['False']:.2f}x"
    )
    ours, theirs = Timing.of([peaks[True]]), Timing.of([peaks[False]])
    yield Row(f"peak memory of {steps} inner steps, recomputed (bytes)", ours, "all kept", theirs, 4.0, note)


def evaluation(setting: Setting) -> Iterator[Row]:
    """1000 ProtoNet tasks, 5-way 1-shot 15 queries, from stored embeddings, sampling included."""
    pool = features()
    easyfsl = peers.peer("easyfsl")
    contestants: dict[str, Callable[[], object]] = {"ours": our_evaluation(pool, setting.device)}
    if easyfsl is not None:
        contestants["easyfsl"] = easyfsl_evaluation(pool, setting.device)
        check_close_accuracies(*(float(function()) for function in contestants.values()))  # type: ignore[arg-type]
    took = setting._replace(repeats=3, seconds=0).compare(contestants)
    yield Row("evaluating 1000 ProtoNet tasks from embeddings", took["ours"], "easyfsl", took.get("easyfsl"), 20.0)


def check_close_accuracies(ours: float, theirs: float) -> None:
    """Refuse to time evaluations of other tasks than the peer's: their means over 1000 tasks are close.

    Raises:
        RuntimeError: Both.
    """
    if abs(ours - theirs) > 0.03:
        raise RuntimeError(f"evaluation: accuracy {ours:.3f} here and {theirs:.3f} there")


def imports(setting: Setting) -> Iterator[Row]:
    """Seconds of `import lightning`, and of `import lightning_meta` after it, in processes of their own."""
    code = "import time; t = time.perf_counter(); import lightning; u = time.perf_counter(); import lightning_meta; "
    code += "print(u - t, time.perf_counter() - u)"
    taken = []
    for _ in range(2 if setting.short else 5):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        taken.append([float(word) for word in done.stdout.split()[-2:]])
    theirs, ours = (Timing.of(column) for column in zip(*taken, strict=True))
    yield Row("import lightning_meta after lightning", ours, "import lightning", theirs, None, "the aim: under 300 ms")


ROWS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "sine": sine,
    "maml": maml,
    "protonet": protonet,
    "sampling": sampling,
    "memory": memory,
    "evaluation": evaluation,
    "imports": imports,
}
