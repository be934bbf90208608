"""Processes: those of a launch, those that must not outlive their parent, and the memory of a process."""

import ctypes
import os
import signal
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState

_CGROUP = Path("/sys/fs/cgroup")
# How long OpenMP's threads spin at the end of a parallel part before they sleep. Who spins longer is woken sooner, and
# takes a core from whoever wants it, such as the browser with the chat page. Measured in tokens/s with 1 and 8 streams
# (SmolLM2-135M-Instruct, 2 cores), and beside one busy process: asleep at once 16.4 and 90, 12.3 and 64; 3,000 rounds
# 19.8 and 104, 9.3 and 45; 20,000 rounds 20.6 and 112, 3.8 and 17; without end 21 and 113, and beside it 0.3.
_SPINNING = {"GOMP_SPINCOUNT": "3000", "KMP_BLOCKTIME": "0"}  # of GNU's and of Intel's and LLVM's OpenMP


def launched() -> "PartialState":
    """This process among those that `accelerate launch` started.

    Without this argument, `PartialState` believes on a machine without an accelerator that it is the only process.
    """
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


def signal_with_parent(number: int) -> None:
    """Have the kernel send this process a signal when its parent ends. Only Linux can."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, number)


def end_with_parent(parent: int) -> None:
    """Have this process killed when its parent ends, even if that is killed itself. Only Linux can.

    Args:
        parent: Process id of the parent at the start; it may have ended since.
    """
    if sys.platform == "linux":
        signal_with_parent(signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended before this process asked to be told
            os._exit(1)


def limit_spinning(environ: MutableMapping[str, str]) -> None:
    """Say how long OpenMP's threads may spin while they wait, where the environment does not."""
    if "OMP_WAIT_POLICY" not in environ:  # these would have the last word over it
        for name, value in _SPINNING.items():
            environ.setdefault(name, value)


def available_bytes() -> int:
    """Bytes of memory that are left on this machine, or in this container if its limit is lower."""
    import psutil

    available = psutil.virtual_memory().available
    try:  # version 2 of cgroups; "max" where there is no limit
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        counts = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        # The page cache counts as used, but is given back when memory is needed.
        reclaimable = int(counts["active_file"]) + int(counts["inactive_file"])
    except (OSError, ValueError, KeyError):
        return available
    return min(available, max(limit - used + reclaimable, 0))


def peak_resident_bytes() -> int:
    """The peak of resident memory, in bytes, since the process started or `reset_peak_resident_bytes` was called."""
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
    """Count the peak from now on. Only Linux can (proc(5), `/proc/pid/clear_refs`)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
