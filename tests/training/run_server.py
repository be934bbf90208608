"""Runs of `recipes/pretrain.py` in processes of their own, without the seconds that the imports take each time.

A line of input describes a run, as JSON: its `arguments`, the number of `processes`, and their `environment`. Answers
with the numbers of the processes, then, when all have ended, with their exit statuses: 0, or -9 for one that was
killed.
"""

import json
import os
import sys

from recipes.pretrain import main


def start(run: dict, rank: int) -> int:
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        os.environ.update(run["environment"])
        if run["processes"] > 1 or run["environment"]:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(run["processes"]))
        main(run["arguments"])
        status = 0
    except SystemExit as error:
        status = error.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def serve() -> None:
    for line in sys.stdin:
        run = json.loads(line)
        processes = [start(run, rank) for rank in range(run["processes"])]
        print(*processes, flush=True)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
        print(*statuses, flush=True)


if __name__ == "__main__":
    serve()
