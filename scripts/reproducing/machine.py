"""Description of the machine for the tables."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch

from reproducing.rows import Device


def describe(device: Device) -> str:
    """Describe the processor with its cores and threads, and the GPU if used.

    Args:
        device: Device of the training.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    parts = [f"{_processor()}, {cores} cores, {threads} thread{'' if threads == 1 else 's'}"]
    return ", ".join([*([torch.cuda.get_device_name()] if device == "gpu" else []), *parts])


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return " ".join(found[1].split()) if found else platform.processor() or platform.machine()
