"""Work for llama.cpp's code in a process of its own: native code that crashes ends that process and nothing else."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable

from hfchat.errors import UserError, out_of_space
from hfchat.processes import end_with_parent

_PARENT = "HFCHAT_GGUF_PARENT"


def work_in_process(module: str, *arguments: str) -> str:
    """Run `python -m MODULE ARGUMENTS`, whose progress bars go to this process's stderr.

    Args:
        module: One that calls `as_process`.
        arguments: Its arguments.

    Returns:
        What it printed.

    Raises:
        UserError: If it failed or crashed; the message is its reason.
    """
    # No bar for what is done soon, and in a log file only a line now and then.
    interval = "0.1" if sys.stderr.isatty() else "10"
    environment = {
        "OMP_WAIT_POLICY": "PASSIVE",  # where others want the processors too, waiting actively takes ten times as long
        "TQDM_DELAY": "3",
        "TQDM_MININTERVAL": interval,
        **os.environ,
        _PARENT: str(os.getpid()),
    }
    command = [sys.executable, "-m", module, *arguments]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if finished.returncode < 0:
        name = signal.Signals(-finished.returncode).name
        advice = "is there enough memory?" if name == "SIGKILL" else "report it to the makers of the wheel"
        raise UserError(f"its process was ended by {name}; {advice}")
    if finished.returncode != 0:
        *_, reason = finished.stdout.strip().splitlines() or ["its process ended without a word"]
        raise UserError(reason)
    return finished.stdout


def as_process(main: Callable[[], object]) -> None:
    """Call `main` as the body of such a process, which ends with its parent; what it raises becomes the reason."""
    end_with_parent(int(os.environ.get(_PARENT, os.getppid())))
    try:
        main()
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split()) or "it gave no reason"
        if (space := out_of_space(error)) is not None:
            reason = f"{space}; make room"
        elif not isinstance(error, UserError):
            reason = f"{type(error).__name__}: {reason}"
        print(reason)
        sys.exit(2)
