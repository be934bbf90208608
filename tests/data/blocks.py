"""Blocks of datatrove that tests run in other processes, so they must be importable there."""

import errno
import os
import time

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from hfchat.errors import UserError


class Numbers(PipelineStep):
    """Makes `count` documents per task, `delay` seconds each."""

    type = "📖 - READER"
    name = "🔢 Numbers"

    def __init__(self, count: int = 3, delay: float = 0.0):
        super().__init__()
        self.count, self.delay = count, delay

    def run(self, data=None, rank=0, world_size=1):
        for i in range(self.count):
            time.sleep(self.delay)
            self.stat_update("read")
            yield Document(f"Document {i} of task {rank}.", f"{rank}/{i}", {"source": "numbers"})


class Refuses(PipelineStep):
    """Raises a `UserError` in one task."""

    type = "🔻 - FILTER"
    name = "🙅 Refuses"

    def __init__(self, refused_rank: int):
        super().__init__()
        self.refused_rank = refused_rank

    def run(self, data, rank=0, world_size=1):
        if rank == self.refused_rank:
            raise UserError(f"task {rank} does not like its input")
        yield from data


class Dies(PipelineStep):
    """Ends its process in one task, as the system does that has no memory left."""

    type = "🔻 - FILTER"
    name = "💀 Dies"

    def run(self, data, rank=0, world_size=1):
        if rank == 1:
            os._exit(9)
        yield from data


class FindsTheDiskFull(PipelineStep):
    """Fails in one task as a write does when no space is left."""

    type = "🔻 - FILTER"
    name = "💾 Full"

    def run(self, data, rank=0, world_size=1):
        if rank == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield from data
