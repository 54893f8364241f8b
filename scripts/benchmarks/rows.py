"""The rows of the speed table, one function for each kind of work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks import peers, work
from benchmarks.augmentation import augmentation
from benchmarks.evaluation import easyfsl_evaluation, features, our_evaluation, sklearn_evaluation
from benchmarks.graphs import graphs
from benchmarks.images import maml, protonet, sampling
from benchmarks.measure import Timing, peak_memory
from benchmarks.methods import evaluations, method_steps
from benchmarks.multi_task_graphs import multi_task_graphs
from benchmarks.row import Row, Setting
from benchmarks.sine import sine
from lightning_meta.meta import RFS


def memory(setting: Setting) -> Iterator[Row]:
    """Peak memory of 20 second-order inner steps on 5-way tasks, with and without recomputation."""
    steps = 5 if setting.short else 20
    for shots, queries, target in [(5, 15, 4.0)] if setting.short else [(5, 15, 4.0), (1, 5, None)]:
        batch = work.random_images(4, 5, shots, queries, 28, setting.device)
        peaks = {}
        contestants: dict[str, Callable[[], object]] = {}
        for recompute in (True, False):
            module = work.image_maml(5, steps, 28, setting.device, recompute=recompute, strategy="vmap")
            contestants[str(recompute)] = work.gradient(module, batch)
            peaks[recompute] = float(peak_memory(contestants[str(recompute)], setting.device))
        took = setting._replace(repeats=2, seconds=0).compare(contestants)
        slowdown = took["True"].median / took["False"].median
        note = f"{peaks[True] / 2**20:.0f} of {peaks[False] / 2**20:.0f} MiB; time {slowdown:.2f}x"
        ours, theirs = Timing.of([peaks[True]]), Timing.of([peaks[False]])
        what = f"peak memory of {steps} inner steps, {shots}-shot {queries} queries, recomputed (bytes)"
        yield Row(what, ours, "all kept", theirs, target, note)


def evaluation(setting: Setting) -> Iterator[Row]:
    """Evaluate 1000 ProtoNet tasks, 5-way 1-shot with 15 queries, from stored embeddings, including sampling."""
    pool = features()
    easyfsl = peers.peer("easyfsl")
    contestants: dict[str, Callable[[], object]] = {"ours": our_evaluation(pool, setting.device)}
    if easyfsl is not None:
        contestants["easyfsl"] = easyfsl_evaluation(pool, setting.device)
        check_close_accuracies(*(float(function()) for function in contestants.values()))  # type: ignore[arg-type]
    took = setting._replace(repeats=3, seconds=0).compare(contestants)
    yield Row("evaluating 1000 ProtoNet tasks from embeddings", took["ours"], "easyfsl", took.get("easyfsl"), 20.0)


def logistic(setting: Setting) -> Iterator[Row]:
    """Evaluate 1000 RFS tasks, 5-way with 15 queries, from stored embeddings, including sampling."""
    pool = features()
    for shots in [1] if setting.short else [1, 5]:
        contestants: dict[str, Callable[[], object]] = {"ours": our_evaluation(pool, setting.device, RFS, shots)}
        if peers.peer("sklearn") is not None:
            contestants["scikit-learn"] = sklearn_evaluation(pool, shots)
            check_close_accuracies(*(float(function()) for function in contestants.values()))  # type: ignore[arg-type]
        took = setting._replace(repeats=3, seconds=0).compare(contestants)
        yield Row(
            f"evaluating 1000 RFS tasks from embeddings, {shots}-shot",
            took["ours"],
            "scikit-learn",
            took.get("scikit-learn"),
        )


def check_close_accuracies(ours: float, theirs: float) -> None:
    """Check that both sides evaluate the same kind of tasks: their mean accuracies over 1000 tasks must be close.

    Raises:
        RuntimeError: The accuracies differ by more than 0.03.
    """
    if abs(ours - theirs) > 0.03:
        raise RuntimeError(f"evaluation: accuracy {ours:.3f} here and {theirs:.3f} there")


def imports(setting: Setting) -> Iterator[Row]:
    """Time of `import lightning`, and then of all public names of this package, in child processes."""
    code = "import time; t = time.perf_counter(); import lightning; u = time.perf_counter(); import lightning_meta; "
    code += "[getattr(lightning_meta, name) for name in lightning_meta.__all__]; "  # names are loaded lazily
    code += "print(u - t, time.perf_counter() - u)"
    taken = []
    for _ in range(2 if setting.short else 5):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        taken.append([float(word) for word in done.stdout.split()[-2:]])
    theirs, ours = (Timing.of(column) for column in zip(*taken, strict=True))
    name = "all names of lightning_meta after lightning"
    yield Row(name, ours, "import lightning", theirs, None, "the aim: under 300 ms")


STEP = """
import sys, time, warnings
warnings.simplefilter("ignore")
import torch
from benchmarks.graphs import graphs
from benchmarks.images import steps
from lightning_meta.run.memory import keep_freed_memory
threads, work, side, memory = sys.argv[1:]
torch.set_num_threads(int(threads))
if memory == "kept" and not keep_freed_memory():
    sys.exit("the C library offers no mallopt, or MALLOC_ variables are set")
step = steps(work, torch.device("cpu"))[side]
step(), step()
began = time.perf_counter()
for _ in range(5):
    step()
print((time.perf_counter() - began) / 5)
"""


def processes(setting: Setting) -> Iterator[Row]:
    """Training steps on a CPU in one process per side, with freed memory kept for this package as in `fit`."""
    if setting.device.type != "cpu":
        return
    for work_name in ["5-way"] if setting.short else ["MAML", "60-way", "5-way"]:
        sides = {"here": ("ours", "kept"), "here, memory given back": ("ours", "default")}
        if peers.peer("learn2learn") is not None:
            sides["learn2learn"] = ("learn2learn", "default")
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(2 if setting.short else 3):
            for name, (side, memory) in sides.items():
                taken[name].append(_in_a_process(work_name, side, memory))
        ours, *others = ((name, Timing.of(seconds)) for name, seconds in taken.items())
        for name, theirs in others:
            target = 1.5 if name == "learn2learn" and not setting.short else None
            yield Row(f"{work_name} on images, a process each, as it is run", ours[1], name, theirs, target)


def _in_a_process(work_name: str, side: str, memory: str) -> float:
    command = [sys.executable, "-c", STEP, str(torch.get_num_threads()), work_name, side, memory]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return float(done.stdout.split()[-1])


ROWS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "sine": sine,
    "maml": maml,
    "protonet": protonet,
    "sampling": sampling,
    "memory": memory,
    "evaluation": evaluation,
    "methods": evaluations,
    "steps": method_steps,
    "augmentation": augmentation,
    "logistic": logistic,
    "graphs": graphs,
    "multi_task_graphs": multi_task_graphs,
    "imports": imports,
    "processes": processes,
}
