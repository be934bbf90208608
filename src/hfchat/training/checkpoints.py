"""Checkpoints that are whole or not there, and a training that neither SIGTERM nor an evaluation ends with a loss."""

import contextlib
import json
import math
import os
import shutil
import signal
import threading
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainerControl
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints, sort_checkpoints

from hfchat.errors import UserError, out_of_space
from hfchat.processes import signal_with_parent

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers.trainer_utils import TrainOutput

_WRITING = ".writing"
_WEIGHTS = ("*.safetensors", "pytorch_model_fsdp*", "global_step*", "adapter_model.*")
_OPTIMIZER = ("optimizer.pt", "optimizer.bin", "optimizer_0", "global_step*")


class CheckpointMixin(Trainer):
    """For a `Trainer`: checkpoints are written aside and renamed, so that a killed run leaves none cut in half.

    On SIGTERM, which schedulers send before they kill, a checkpoint is saved after the step at hand, and the process
    ends with status 143. Started by `accelerate launch`, the process gets SIGTERM also when its launcher is killed.

    An evaluation that fails during training does not end it: that would lose what comes after the last checkpoint.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._writing = self._signalled = self._terminated = False
        self.ended_before = False  # the end of the last epoch's batches: by a signal, or in the run that is resumed
        self.add_callback(_SaveOnSignal(self))

    def train(self, *args: Any, **kwargs: Any) -> "TrainOutput":
        if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
            return super().train(*args, **kwargs)
        before = signal.signal(signal.SIGTERM, self._remember_signal)
        if "ACCELERATE_MIXED_PRECISION" in os.environ:  # the launcher sets it, and does not pass signals on
            signal_with_parent(signal.SIGTERM)
        try:
            result = super().train(*args, **kwargs)
        finally:
            signal.signal(signal.SIGTERM, before)
        if self._terminated:
            if self.is_world_process_zero():
                print(f"SIGTERM: saved checkpoint-{self.state.global_step}; the same command goes on from there")
            raise SystemExit(128 + signal.SIGTERM)
        return result

    def _remember_signal(self, *_: object) -> None:
        self._signalled = True
        if self.args.world_size > 1:
            self.accelerator.set_trigger()

    def stops_now(self) -> bool:
        """Whether SIGTERM ends the training after this step, and not its regular end."""
        # One process must not wait for its device after every step; several must stop after the same one.
        signalled = self.accelerator.check_trigger() if self.args.world_size > 1 else self._signalled
        self._terminated = self.ended_before = signalled and self.state.global_step < self.state.max_steps
        return signalled

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], "torch.Tensor | int | None"]:
        """As in `Trainer`, but a run that is resumed from its last checkpoint gets no more batches."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = self.ended_before = True
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in `Trainer`, but what goes wrong during training is a warning, and leaves no metrics."""
        try:
            with self.pausing():
                return super().evaluate(*args, **kwargs)
        except Exception as error:  # out of memory, a metric, a sample: whatever it is
            if not self.is_in_train or self.args.world_size > 1:  # the processes would no longer be in step
                raise
            tqdm.write(f"warning: the evaluation failed, training goes on: {_in_a_line(error)}")
            best = self.args.metric_for_best_model  # `Trainer` looks for it; what is not a number is never the best
            return {f"eval_{best.removeprefix('eval_')}": math.nan} if best else {}

    def final_metrics(self) -> dict[str, float]:
        """The metrics of the last evaluation if it was made after the last step; else of one that is made now.

        If that one fails, the model is kept without metrics.
        """
        for entry in reversed(self.state.log_history):
            if "eval_loss" in entry and entry["step"] == self.state.global_step:
                return {key: value for key, value in entry.items() if key.startswith("eval_")}
        try:
            return self.evaluate()
        except Exception as error:  # as in `evaluate`
            tqdm.write(
                f"warning: the last evaluation failed, the model is kept without its metrics: {_in_a_line(error)}"
            )
            return {}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in `Trainer`, but the model of a run that keeps its checkpoints in shards is saved too, in one piece.

        Raises:
            UserError: If there is no room for it.
        """
        if _internal_call:  # a part of a checkpoint
            return super().save_model(output_dir, _internal_call)
        try:
            if not self.is_fsdp_enabled:
                return super().save_model(output_dir)
            weights = self.accelerator.get_state_dict(self.model)
            for name in self.model.all_tied_weights_keys:
                weights.pop(name, None)
            if self.args.should_save:
                model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
                model.save_pretrained(output_dir, state_dict=weights)
                self.processing_class.save_pretrained(output_dir)
        except Exception as error:  # each library that writes here has errors of its own
            self._explain_lack_of_space(error, f"the model cannot be written to {output_dir}")
            raise

    def pausing(self) -> contextlib.AbstractContextManager[None]:
        """What an evaluation and the writing of a checkpoint are within; for subclasses that measure time."""
        return contextlib.nullcontext()

    def save_beside(self, checkpoint: Path) -> None:
        """What each process adds to a checkpoint before it is moved into its place; for subclasses."""

    # The two private methods of `Trainer` that are overridden here, as they are in transformers 5.24: no callback is
    # called before a checkpoint is written, and `on_save` comes when older ones are deleted already. What they rely on
    # is tested by tests/training/test_checkpoints.py::test_a_checkpoint_is_written_aside.
    def _get_output_dir(self, trial: Any) -> str:
        return str(self._aside) if self._writing else self.args.output_dir

    def _save_checkpoint(self, model: "nn.Module", trial: Any) -> None:
        checkpoint = self._aside / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self._writing = True
        try:
            with self.pausing():
                shutil.rmtree(self._aside, ignore_errors=True)  # of a run that was killed
                self.accelerator.wait_for_everyone()
                super()._save_checkpoint(model, trial)
                self.save_beside(checkpoint)
                self.accelerator.wait_for_everyone()
                self._move_into_place(checkpoint)
        except Exception as error:
            shutil.rmtree(self._aside, ignore_errors=True)
            self._explain_lack_of_space(error, f"{checkpoint.name} cannot be written to {self.args.output_dir}")
            raise
        finally:
            self._writing = False
        self.accelerator.wait_for_everyone()

    @property
    def _aside(self) -> Path:
        return Path(self.args.output_dir) / _WRITING

    def _explain_lack_of_space(self, error: Exception, what: str) -> None:
        if (reason := out_of_space(error)) is None:
            return
        last = last_checkpoint(self.args.output_dir)
        kept = f"{Path(last).name} is whole" if last else "there is no checkpoint"
        raise UserError(f"{what}: {reason}; {kept}. Make room, and the same command goes on from there") from error

    def _move_into_place(self, checkpoint: Path) -> None:
        folder = Path(self.args.output_dir)
        target = folder / checkpoint.name
        is_best = self.state.best_model_checkpoint == str(checkpoint)
        if is_best:  # `load_best_model_at_end` and a resumed run look for it where it is going to be
            self.state.best_model_checkpoint = str(target)
        if not self.args.should_save:
            return
        if is_best:
            self.state.save_to_json(str(checkpoint / TRAINER_STATE_NAME))
        shutil.rmtree(target, ignore_errors=True)
        checkpoint.rename(target)
        self._aside.rmdir()
        for damaged in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
            if int(damaged.name.rpartition("-")[2]) > self.state.global_step:  # passed over when this run was resumed
                shutil.rmtree(damaged, ignore_errors=True)
        best = self.state.best_model_checkpoint
        rotate_checkpoints(str(folder), save_total_limit=self.args.save_total_limit, best_model_checkpoint=best)


class _SaveOnSignal(TrainerCallback):
    """Makes a training save and stop when SIGTERM asks for it, and log whenever it saves."""

    def __init__(self, trainer: CheckpointMixin):
        self.trainer = trainer

    def on_step_end(self, args: object, state: object, control: TrainerControl, **kwargs: object) -> None:
        if self.trainer.stops_now():
            control.should_save = control.should_training_stop = True
        # The sum of the losses since the last log is in no checkpoint: without this, a resumed run would log another
        # mean than an undisturbed one.
        control.should_log |= control.should_save

    def on_epoch_end(self, args: object, state: object, control: TrainerControl, **kwargs: object) -> None:
        if self.trainer.ended_before:  # the epoch did not end here
            control.should_log = control.should_evaluate = control.should_save = False
        control.should_log |= control.should_save


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def last_checkpoint(output_dir: str | Path) -> str | None:
    """The newest whole checkpoint of an earlier run, or None. One that is not whole is passed over with a warning."""
    if not Path(output_dir).is_dir():
        return None
    for checkpoint in reversed(sort_checkpoints(str(output_dir))):
        fault = find_damage(Path(checkpoint))
        if fault is None:
            return checkpoint
        print(f"warning: {checkpoint} is not whole ({fault}); passing it over")
    return None


def find_damage(checkpoint: Path) -> str | None:
    """What is missing or cut in a checkpoint of `Trainer`; None if nothing is."""
    from safetensors import SafetensorError, safe_open

    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "no trainer_state.json"
    except ValueError:
        return "trainer_state.json is cut"
    # What must be there, and what PyTorch writes last where there are shards.
    weights = [file for pattern in _WEIGHTS for file in checkpoint.glob(pattern)]
    if not weights:
        return "no weights"
    if not any(file for pattern in _OPTIMIZER for file in checkpoint.glob(pattern)):
        return "no state of the optimizer"
    if not (checkpoint / "scheduler.pt").exists():
        return "no scheduler.pt"
    for shards in [*checkpoint.glob("pytorch_model_fsdp_*/"), *checkpoint.glob("optimizer_*/")]:
        if not (shards / ".metadata").exists():  # PyTorch writes it last
            return f"{shards.name} is cut"
    # What is there must end as files of its kind do.
    for file in weights:
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, "pt"):
                    pass
            except (SafetensorError, OSError):
                return f"{file.name} is cut"
    for file in [*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth"), *checkpoint.glob("*.bin")]:
        if not zipfile.is_zipfile(file):  # as `torch.save` writes; its directory is at the end
            return f"{file.name} is cut"
    return None
