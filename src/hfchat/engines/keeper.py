"""Runs a command that must not outlive whoever wants it: `python keeper.py COMMAND ...`.

It stands between a program and its child engine, and knows that the program is gone, however it went, because its
standard input ends then. The command and all that it has started are ended with it: they are one group of processes.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

_GRACE_S = 5.0  # for the command to end by itself


def main(command: Sequence[str]) -> int:
    """Run the command until it ends, or until standard input does. Returns its exit status, as `Popen` tells it."""
    child, input_ended = subprocess.Popen(command, stdin=subprocess.DEVNULL), threading.Event()
    ending = threading.Thread(target=_end_with_input, args=(child, input_ended), daemon=True)
    ending.start()
    status = child.wait()
    if input_ended.is_set():
        ending.join()  # or what the command has left behind would outlive us
    return status


def _end_with_input(child: subprocess.Popen[bytes], input_ended: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    input_ended.set()
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(_GRACE_S)
    os.killpg(0, signal.SIGKILL)  # what the command has left behind, and this process itself


if __name__ == "__main__":
    # A signal that ends the command is told by the status that shells use for it.
    status = main(sys.argv[1:])
    sys.exit(128 - status if status < 0 else status)
