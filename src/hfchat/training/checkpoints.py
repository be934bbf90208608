"""Checkpoints that are whole or not there, and a training that neither SIGTERM nor an evaluation ends with a loss."""

import json
import os
import shutil
import signal
import threading
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints, sort_checkpoints

from hfchat.errors import UserError, out_of_space
from hfchat.processes import signal_with_parent

if TYPE_CHECKING:
    from torch import nn

_WRITING = ".writing"
_WEIGHTS = ("*.safetensors", "pytorch_model_fsdp*", "global_step*", "adapter_model.*")
_OPTIMIZER = ("optimizer.pt", "optimizer.bin", "optimizer_0", "global_step*")


class CheckpointMixin:
    """For a `Trainer`: checkpoints are written aside and renamed, so that a killed run leaves none cut in half.

    On SIGTERM, which schedulers send before they kill, a checkpoint is saved after the step at hand, and the process
    ends with status 143. Started by `accelerate launch`, the process gets SIGTERM also when its launcher is killed.

    An evaluation that fails during training does not end it: that would lose what comes after the last checkpoint.
    """

    _writing = False
    _signalled = False
    _terminated = False

    def train(self, *args: Any, **kwargs: Any) -> Any:
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

    def _remember_signal(self, *_: Any) -> None:
        self._signalled = True
        if self.args.world_size > 1:
            self.accelerator.set_trigger()

    def _stops_now(self) -> bool:
        # One process must not wait for its device after every step; several must stop after the same one.
        return self.accelerator.check_trigger() if self.args.world_size > 1 else self._signalled

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # resumed from the last checkpoint: `Trainer` would go on
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self._stops_now():
            self._terminated = self.state.global_step < self.state.max_steps
            self.control.should_save = self.control.should_training_stop = True
        if self.control.should_save:
            # The sum of the losses since the last log is in no checkpoint: without this, a resumed run would log
            # another mean than an undisturbed one.
            self.control.should_log = True
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in `Trainer`, but what goes wrong during training is a warning, and no metrics."""
        try:
            return super().evaluate(*args, **kwargs)
        except Exception as error:  # out of memory, a metric, a sample: whatever it is
            if not self.is_in_train or self.args.world_size > 1:  # the processes would no longer be in step
                raise
            tqdm.write(f"warning: the evaluation failed, training goes on: {_in_a_line(error)}")
            return {}

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        return bool(metrics) and super()._determine_best_metric(metrics, trial)

    def final_metrics(self) -> dict[str, float]:
        """Those of the last evaluation of the training if it was made after the last step; else of one made now.

        Where that fails, the model is kept without them.
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
            if self.is_fsdp_enabled:
                weights = self.accelerator.get_state_dict(self.model)
                for name in self.model.all_tied_weights_keys:
                    weights.pop(name, None)
                self._save(output_dir, state_dict=weights)
            else:
                super().save_model(output_dir)
        except Exception as error:  # each library that writes here has errors of its own
            self._explain_lack_of_space(error, f"the model cannot be written to {output_dir}")
            raise

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, _WRITING) if self._writing else folder

    def _save_checkpoint(self, model: "nn.Module", trial: Any) -> None:
        self._writing = True
        try:
            shutil.rmtree(self._get_output_dir(trial), ignore_errors=True)  # of a run that was killed
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._move_into_place(Path(self._get_output_dir(trial)))
        except Exception as error:
            shutil.rmtree(self._get_output_dir(trial), ignore_errors=True)
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            self._explain_lack_of_space(error, f"{name} cannot be written to {self.args.output_dir}")
            raise
        finally:
            self._writing = False
        self.accelerator.wait_for_everyone()

    def _explain_lack_of_space(self, error: Exception, what: str) -> None:
        if (reason := out_of_space(error)) is None:
            return
        last = last_checkpoint(self.args.output_dir)
        kept = f"{Path(last).name} is whole" if last else "there is no checkpoint"
        raise UserError(f"{what}: {reason}; {kept}. Make room, and the same command goes on from there") from error

    def _move_into_place(self, aside: Path) -> None:
        for checkpoint in aside.iterdir():
            target = aside.parent / checkpoint.name
            shutil.rmtree(target, ignore_errors=True)
            checkpoint.rename(target)
        aside.rmdir()
        for other in aside.parent.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
            if int(other.name.rpartition("-")[2]) > self.state.global_step:  # passed over when this run was resumed
                shutil.rmtree(other, ignore_errors=True)
        rotate_checkpoints(str(aside.parent), save_total_limit=self.args.save_total_limit)


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
