"""What this machine has, and what a process holds of it."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from hfchat.processes import available_bytes


@dataclass(frozen=True)
class Machine:
    """What there is to compute with.

    Attributes:
        device: What computes, in words.
        memory_bytes: Free now for a run: memory of the GPU, or of the machine within the limit of its container.
        has_gpu: Whether a GPU computes.
    """

    device: str
    memory_bytes: int
    has_gpu: bool = False

    @classmethod
    def here(cls, use_cpu: bool) -> "Machine":
        """This machine; a run that must not use its GPU has the CPU's memory."""
        import torch

        if torch.cuda.is_available() and not use_cpu:
            free, _ = torch.cuda.mem_get_info()
            return cls(torch.cuda.get_device_name(), free, has_gpu=True)
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return cls(f"CPU, {processors} cores", available_bytes())


def free_disk_bytes(folder: Path) -> int:
    """Room in the file system that holds, or will hold, a folder."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def resident_bytes() -> int:
    """Memory that this process holds now."""
    import psutil

    return psutil.Process().memory_info().rss


def peak_children_bytes() -> int:
    """The most memory that one process that this one has started and waited for has held."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def write_speed(folder: Path) -> float:
    """Bytes per second that the file system of a folder takes, from one file of 32 MiB."""
    import tempfile
    import time

    while not folder.exists():
        folder = folder.absolute().parent
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        block = os.urandom(2**20)
        began = time.perf_counter()
        for _ in range(32):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return 32 * 2**20 / (time.perf_counter() - began)
