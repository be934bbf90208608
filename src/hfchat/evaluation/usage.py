"""What asking a model took of the machine."""

import platform
import sys
from contextlib import suppress
from pathlib import Path

import torch

from hfchat.processes import peak_resident_bytes, reset_peak_resident_bytes
from hfchat.results import Hardware


def device_name() -> str:
    """The device that models run on, for the report."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return str(accelerator or f"CPU ({torch.get_num_threads()} threads)")


def hardware() -> Hardware:
    """Describe this machine."""
    import psutil

    return Hardware(
        device=device_name(),
        cpu=_cpu_name() or platform.processor() or None,
        cores=psutil.cpu_count(logical=True),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
    )


def reset_peak_memory() -> None:
    """Begin a new measurement, see `peak_memory`. On a CPU only Linux can."""
    if torch.accelerator.is_available():
        torch.accelerator.reset_peak_memory_stats()
    else:
        reset_peak_resident_bytes()


def peak_memory() -> int | None:
    """Bytes of the accelerator, or of this process on a CPU, at their most since `reset_peak_memory`."""
    if torch.accelerator.is_available():
        return torch.accelerator.max_memory_allocated()
    return peak_resident_bytes() if sys.platform == "linux" else None  # others count from the start of the process


def _cpu_name() -> str | None:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return None
