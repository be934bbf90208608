"""Checkpoints that are whole or not there."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

if TYPE_CHECKING:
    from torch import nn

_WRITING = ".writing"


class AtomicCheckpointMixin:
    """For a `Trainer`: checkpoints are written aside and renamed, so that a killed run leaves none cut in half."""

    _writing = False

    def _get_output_dir(self, trial) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, _WRITING) if self._writing else folder

    def _save_checkpoint(self, model: "nn.Module", trial) -> None:
        self._writing = True
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._move_into_place(Path(self._get_output_dir(trial)))
        finally:
            self._writing = False
        self.accelerator.wait_for_everyone()

    def _move_into_place(self, aside: Path) -> None:
        for checkpoint in aside.iterdir():
            target = aside.parent / checkpoint.name
            shutil.rmtree(target, ignore_errors=True)
            checkpoint.rename(target)
        aside.rmdir()
        rotate_checkpoints(str(aside.parent), save_total_limit=self.args.save_total_limit, use_mtime=True)


def last_checkpoint(output_dir: str | Path) -> str | None:
    """The newest whole checkpoint of an earlier run, or None. What a killed run was writing is ignored."""
    return get_last_checkpoint(str(output_dir)) if Path(output_dir).is_dir() else None
