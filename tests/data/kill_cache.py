"""Builds a cache in forked processes that are killed at random moments, and looks at what they left.

python -m tests.data.kill_cache FOLDER KILLS SEED toy|images
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from lightning_meta.data.cache import Cached, load_or_build
from lightning_meta.data.hashes import Hashes
from lightning_meta.data.pool import Pool
from lightning_meta.sources import ImageFolder
from tests.forking import fork
from tests.run.moments import kill_after


def toy() -> Cached:
    """Pools of 12 MB that are made at once: most of the time is that of writing."""
    x = torch.arange(4_000_000).to(torch.uint8).reshape(8, -1)
    return load_or_build(
        "toy", "k", lambda: {s: Pool(x.clone(), torch.tensor([8]), (s,), ("",)) for s in ("train", "val", "test")}
    )


def images() -> Cached:
    """A source as it is: most of the time is that of decoding."""
    source = ImageFolder(Path("images"), image_size=84)
    source.prepare()
    return Cached(source.pools(), Hashes(source.fingerprint(), {}))


def draw_images(count: int) -> None:
    """A folder of ten classes."""
    for i in range(count):
        file = Path("images", str(i % 10), f"{i}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((100, 100), 40 + i % 50).save(file)


BUILD: dict[str, Callable[[], Cached]] = {"toy": toy, "images": images}


def forked(build: Callable[[], Cached]) -> int:
    """Start a process that builds."""
    pid = fork()
    if pid == 0:
        try:
            build()
        except BaseException:
            traceback.print_exc()
            os._exit(70)
        os._exit(0)
    return pid


def ended(pid: int) -> tuple[str, float]:
    """How a process ended ("killed", "ended" or "failed"), and its CPU time in seconds."""
    _, status, used = os.wait4(pid, 0)
    how = "killed" if os.WIFSIGNALED(status) else {0: "ended"}.get(os.waitstatus_to_exitcode(status), "failed")
    return how, used.ru_utime + used.ru_stime


def moment(cache: Path, seconds: float, both: bool, build: Callable[[], Cached]) -> list[str]:
    """Two builds of one cache at once, of which one or both are killed; how each ended, and what is left."""
    os.environ["LIGHTNING_META_CACHE"] = str(cache)
    first, second = forked(build), forked(build)
    kill_after(first, seconds)
    if both:
        os.kill(second, signal.SIGKILL)
    how = [ended(first)[0], ended(second)[0]]
    files = list((cache / "decoded").glob("*.safetensors"))
    return [*how, "whole" if files else "absent"]


def drive(folder: Path, kills: int, seed: int, build: Callable[[], Cached]) -> dict[str, object]:
    """Kill builds at random moments of one; what was left must be a whole cache or none."""
    tqdm.monitor_interval = 0  # a bar of progress would start a thread, and this process forks
    draw, seen = random.Random(seed), Counter[str]()
    os.environ["LIGHTNING_META_CACHE"] = str(folder / "whole")
    both = forked(build), forked(build)
    seconds = min(ended(pid)[1] for pid in both)  # of CPU time, which does not depend on what else the machine does
    expected = build().hashes.whole
    for number in range(kills):
        kill_both = number % 2 == 0
        *how, left = moment(folder / str(number), draw.uniform(0, 0.7 * seconds), kill_both, build)
        if "failed" in how or (not kill_both and "ended" not in how):
            raise SystemExit(f"kill {number}: {how}")
        for kind in how:
            seen[kind] += 1
        seen[f"{left} after both were killed" if how == ["killed"] * 2 else f"{left} after one ended"] += 1
        files = {f: f.stat().st_mtime_ns for f in folder.joinpath(str(number)).rglob("*.safetensors")}
        if build().hashes.whole != expected:
            raise SystemExit(f"kill {number}: another content")
        if any(f.stat().st_mtime_ns != time_of for f, time_of in files.items()):
            raise SystemExit(f"kill {number}: the file was not whole, and was built again")
        rest = [f for f in folder.joinpath(str(number)).rglob("*") if f.is_file() and f.suffix != ".safetensors"]
        if not files and any(f.suffix == ".tmp" for f in rest):  # safetensors' own has no process in its name
            raise SystemExit(f"kill {number}: the next build left {rest}")
        seen["temporary files"] += len(rest)
    return dict(seen)


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, count, start, name = sys.argv[1:]
    os.chdir(place)
    draw_images(1000 if name == "images" else 0)
    print(json.dumps(drive(Path(place), int(count), int(start), BUILD[name])))
