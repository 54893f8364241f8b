"""How the C library reuses freed memory, and how much memory a process uses."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

SHARE = 8  # a process keeps at most an eighth of the available memory

# glibc's names and numbers, from malloc.h, and how many blocks it maps by default.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_MAPPED_BLOCKS = 65536


def keep_freed_memory() -> bool:
    """Stop glibc from returning all freed memory to the system, so that the next step can reuse it.

    A training step on a CPU frees its tensors. By default glibc returns large blocks immediately, and the next step
    waits while the system clears and maps the same pages again, a fifth to two fifths of its time. This function grows
    the heap to an eighth of the memory of the machine or its cgroup. Blocks that fit are reused; others are mapped and
    returned as before, so the process holds at most about that eighth more than it needs. Results do not change.

    Returns:
        Whether it took effect: not without glibc, or if the user has set one of its variables (`MALLOC_...`).
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    return _grow_heap(memory_limit() // SHARE)


@cache  # once per process, or the heap would grow again
def _grow_heap(size: int) -> bool:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # another C library
        return False
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes, libc.free.restype = [ctypes.c_void_p], None
    # Never return the top of the heap. While mapping is off, `malloc` extends the heap by `size`.
    taken = [libc.mallopt(_TRIM_THRESHOLD, -1), libc.mallopt(_MMAP_MAX, 0)]
    block = libc.malloc(size)  # only addresses: a page takes memory when it is first written
    libc.free(block)
    # From now on large blocks are mapped if the heap has no room for them; smaller ones extend the heap.
    taken += [libc.mallopt(_MMAP_MAX, _MAPPED_BLOCKS), libc.mallopt(_MMAP_THRESHOLD, 1 << 20)]
    # A forked worker does not need the kept memory; sharing it costs a copy of each page that the parent writes to.
    os.register_at_fork(after_in_child=lambda: libc.malloc_trim(0))
    return all(taken) and block is not None


def peak_memory(device: torch.device, root: Path = Path("/")) -> float | None:
    """Peak memory so far, in MB of 2^20 bytes; None if it is unknown.

    For a GPU, it is that of the tensors of this process; else that of the whole process as Linux counts it.
    """
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    # In kB; getrusage would include the peak of the parent process.
    peak = re.search(r"^VmHWM:\s+(\d+)", _text(root / "proc/self/status"), re.MULTILINE)
    return round(int(peak[1]) / 1024, 1) if peak else None


def memory_limit(root: Path = Path("/")) -> int:
    """Bytes that this process may use: the smallest of the machine's memory and the limits of cgroups and process."""
    import resource  # not on Windows

    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    own = [limit for limit in limits if limit != resource.RLIM_INFINITY]
    return min([machine, *own, *_cgroup_limits(root)])


def _cgroup_limits(root: Path) -> Iterator[int]:
    """The memory limits of the process's cgroups and their parents, for cgroup versions 1 and 2."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        mount, name = root / "sys/fs/cgroup", "memory.max"
        if controllers:  # version 1 has a hierarchy for each controller
            if "memory" not in controllers.split(","):
                continue
            mount, name = mount / "memory", "memory.limit_in_bytes"
        # In a container the path may be that of the host, and only the mount exists.
        folder = mount / path.strip("/")
        limits = [_text(place / name).strip() for place in (folder, *folder.parents) if place.is_relative_to(mount)]
        yield from (int(limit) for limit in limits if limit.isdecimal())  # "max" is no limit


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
