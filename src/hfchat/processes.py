"""Processes that must not outlive the one that started them."""

import ctypes
import os
import signal
import sys


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
