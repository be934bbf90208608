"""Processes: those of a launch, those that must not outlive the one that started them, and the memory of one."""

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState

_CGROUP = Path("/sys/fs/cgroup")


def launched() -> "PartialState":
    """This process among those that `accelerate launch` started.

    Left to itself, `PartialState` takes each process for the only one where there is no accelerator.
    """
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


def signal_with_parent(number: int) -> None:
    """Have the kernel send this process a signal when the one that started it ends. Only Linux can."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, number)


def end_with_parent(parent: int) -> None:
    """Have this process killed when the one that started it ends, even by SIGKILL. Only on Linux.

    Args:
        parent: Number of the process that started this one, as it was then: it may have ended since.
    """
    if sys.platform == "linux":
        signal_with_parent(signal.SIGKILL)
        if os.getppid() != parent:  # it was killed before this process could ask to be told
            os._exit(1)


def available_bytes() -> int:
    """Memory that this machine has left, or this container, where it may take less than that."""
    import psutil

    available = psutil.virtual_memory().available
    try:  # version 2 of cgroups; "max" where there is no limit
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        counts = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        # What has been read of files is counted as used, and given back when it is needed.
        reclaimable = int(counts["active_file"]) + int(counts["inactive_file"])
    except (OSError, ValueError, KeyError):
        return available
    return min(available, max(limit - used + reclaimable, 0))


def peak_resident_bytes() -> int:
    """The most memory that this process has held since its start, or since `reset_peak_resident_bytes`."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_resident_bytes() -> None:
    """Count the peak from here on, where the kernel can: Linux (proc(5), `/proc/pid/clear_refs`)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
