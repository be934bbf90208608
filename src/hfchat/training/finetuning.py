"""Fine-tuning with TRL, at the cost of the supervised tokens only."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy, pad
from trl import SFTConfig, SFTTrainer

from hfchat.config import setting
from hfchat.errors import UserError
from hfchat.training.checkpoints import CheckpointMixin
from hfchat.training.mixture import MixedDataset, check_mixture
from hfchat.training.packing import IGNORE
from hfchat.training.run_arguments import TuningArguments, derived_dtype, replaced, settle_device
from hfchat.training.scoring import scoring_only

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datasets import Dataset
    from torch import nn
    from transformers.trainer_utils import EvalLoopOutput

    from hfchat.training.adapters import ModelArguments

_ASSISTANT = "recipes/data/assistant"
# All weights: TRL's own default. An adapter wants ten times that (arXiv:2405.09673; Schulman et al. 2025, "LoRA
# Without Regret"), also on weights in 4 bits (arXiv:2305.14314 trains at 2e-4), and DoRA's direction is LoRA's.
_FULL, _LORA = 2e-5, 2e-4
# Positions whose logits are made, up to a multiple: kernels are compiled, and memory is kept, for each new shape.
SUPERVISED_MULTIPLE = 64


@dataclass
class FinetuneArguments(TuningArguments, SFTConfig):
    """`SFTConfig` with the defaults of this recipe, and the conversations to learn from."""

    dataset_name: str = setting(_ASSISTANT, "Rows with `messages`: a folder, file or Hub id.", identity=False)
    dataset_mixture: list[MixedDataset] = setting(
        [], "Several such datasets in its place: mappings with a 'path' each (see hfchat.training.mixture)."
    )
    sample_answers: int = setting(16, "Held-out prompts that are answered before and after; 0 for none.")
    sample_max_new_tokens: int = setting(128, "Longest of these answers, in tokens.")
    allow_leakage: bool = setting(False, "Go on although conversations of the test split are in the train split.")
    system_message: str | None = setting(
        None,
        "What the system says where a conversation says nothing; empty for nothing, "
        "by default what it says in the template of the base.",
    )
    learning_rate: float | None = setting(None, f"By default {_LORA:g} for an adapter, {_FULL:g} for all weights.")
    packing: bool = setting(True, "Several conversations per sequence, apart from each other.")
    pad_to_multiple_of: int | str | None = setting(
        "auto", "Tokens to which batches are padded; auto: packed ones to whole sequences, others not."
    )

    def __post_init__(self) -> None:
        if self.output_dir is None:
            raise ValueError("output_dir: say where the model goes, e.g. --output_dir outputs/mine/assistant")
        if self.sample_answers < 0 or self.sample_max_new_tokens < 1:
            raise ValueError("sample_answers must be at least 0 and sample_max_new_tokens at least 1")
        if self.dataset_mixture and self.dataset_name != _ASSISTANT:
            raise ValueError(
                f"dataset_name {self.dataset_name}: stands beside dataset_mixture; make it an entry of that"
            )
        check_mixture(self.dataset_mixture)
        settle_device(self)
        if self.pad_to_multiple_of == "auto" and self.packing:  # next to nothing to pad, and one shape for all batches
            self.pad_to_multiple_of = self.max_length
        super().__post_init__()

    def derive(self, model: "ModelArguments") -> tuple["FinetuneArguments", "ModelArguments"]:
        """These settings and those of the model, with what was not set and follows from how the model is trained."""
        rate = self.learning_rate
        if rate is None:
            rate = _LORA if model.use_peft else _FULL
            if model.use_peft and model.use_rslora:  # it scales by sqrt(r) more (arXiv:2312.03732): as large a step
                rate /= model.lora_r**0.5
        return replaced(self, learning_rate=rate), replaced(model, dtype=derived_dtype(model, self))


class FinetuneTrainer(CheckpointMixin, SFTTrainer):
    """`SFTTrainer` whose checkpoints are whole or not there, and which scores only the tokens that are learned.

    A small model's time goes into the logits: SmolLM2-135M has 49,152 of them per token. For packed sequences they
    are computed at the supervised positions alone, which gives the same loss, with a third more tokens per second
    on a CPU than with `SFTTrainer`'s fused head, which recomputes them in the backward pass.

    Packed sequences stay rows of a batch, see `PackedRows`, unless flash attention is used, which is as fast on all of
    them in one. The held-out loss is the mean over all supervised tokens, whatever the batches.

    Args:
        eval_datasets: The datasets whose rows `eval_dataset` has, by name; the loss of each is measured at the end.

    Raises:
        UserError: If a token of the datasets did not arrive: TRL cuts what is longer than `max_length`.
    """

    def __init__(
        self,
        *args: Any,
        train_dataset: Any,
        eval_dataset: Any = None,
        eval_datasets: "Mapping[str, Dataset] | None" = None,
        **kwargs: Any,
    ):
        super().__init__(*args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        self._eval_datasets = eval_datasets or {}
        if self.padding_free and "flash" not in str(self.model.config._attn_implementation):
            self.data_collator = PackedRows(self.processing_class.pad_token_id, self.args.pad_to_multiple_of or 1)
        _check_arrived(train_dataset, self.train_dataset)
        if eval_dataset is not None:
            _check_arrived(eval_dataset, self.eval_dataset)

    def compute_loss(
        self,
        model: "nn.Module",
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        plain = self.args.loss_type == "nll" and not self.label_smoother and not self.aux_loss_enabled
        if return_outputs or not self.padding_free or not plain or self.args.torch_compile:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        labels = pad(inputs.pop("labels")[:, 1:], (0, 1), value=IGNORE).flatten()  # of the token after each
        positions = labels.ne(IGNORE).nonzero().squeeze(-1)
        padding = (0, -len(positions) % SUPERVISED_MULTIPLE)
        targets = pad(labels[positions], padding, value=IGNORE)
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        with scoring_only(head, pad(positions, padding)):
            logits = model(**inputs, use_cache=False).logits.squeeze(0)  # a view, whose gradient costs nothing
        loss = cross_entropy(logits.float(), targets, reduction="sum", ignore_index=IGNORE)
        if num_items_in_batch is None:
            return loss / max(len(positions), 1)
        loss = loss / num_items_in_batch
        # As in `Trainer`: the count is of all processes, whose gradients DDP then averages.
        return loss * self.accelerator.num_processes if self.args.average_tokens_across_devices else loss

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> "EvalLoopOutput":
        """As in `Trainer`, but the loss is the mean over all supervised tokens, not of the means of batches."""
        self._held_out_loss, self._held_out_tokens = 0.0, 0
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        sums = torch.tensor([self._held_out_loss, self._held_out_tokens], dtype=torch.float32)
        loss, tokens = self.accelerator.reduce(sums.to(self.args.device)).tolist()
        if tokens:
            output.metrics[f"{metric_key_prefix}_loss"] = loss / tokens
        return output

    def final_metrics(self) -> dict[str, float]:
        """As in `CheckpointMixin` and, where there are several datasets, the loss of each as `eval_<name>_loss`."""
        metrics = super().final_metrics()
        if metrics and len(self._eval_datasets) > 1:
            for name, dataset in self._eval_datasets.items():
                # By another prefix than `eval`, so that the loss curve is that of all of them.
                metrics[f"eval_{name}_loss"] = self.evaluate(dataset, metric_key_prefix="part")["part_loss"]
            if self.is_world_process_zero():
                each = (f"{name} {metrics[f'eval_{name}_loss']:.3f}" for name in self._eval_datasets)
                print("held-out loss of each:", ", ".join(each))
        return metrics

    def prediction_step(self, model: "nn.Module", inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        tokens = int(inputs["labels"][:, 1:].ne(IGNORE).sum())
        loss, *others = super().prediction_step(model, inputs, *args, **kwargs)
        self._held_out_loss += float(loss) * tokens
        self._held_out_tokens += tokens
        return loss, *others


class PackedRows:
    """Collates packed sequences as rows of a batch, in which conversations are apart by their positions.

    TRL lays the sequences of a batch end to end. Without flash attention, attention then computes every token against
    every other of the batch, and throws away what is not of its conversation: 8 sequences of 512 tokens take 2.4
    times as long on a CPU as 8 rows.

    Args:
        pad_token_id: What fills rows up.
        multiple: The length of rows is one of this.
    """

    def __init__(self, pad_token_id: int, multiple: int):
        self.pad_token_id, self.multiple = pad_token_id, multiple

    def __call__(self, sequences: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """`input_ids`, `position_ids` and `labels`, each of shape `(sequences, length)`; no attention mask."""
        length = max(len(sequence["input_ids"]) for sequence in sequences)
        length += -length % self.multiple
        rows: dict[str, list[torch.Tensor]] = {"input_ids": [], "position_ids": [], "labels": []}
        for sequence in sequences:
            ids, labels = torch.tensor(sequence["input_ids"]), torch.tensor(sequence["labels"])
            positions = torch.cat([torch.arange(count) for count in sequence.get("seq_lengths", [len(ids)])])
            labels = labels.masked_fill(positions == 0, IGNORE)  # the end of another conversation does not predict it
            padding = (0, length - len(ids))  # which is at position 0, so that each of its tokens is alone
            rows["input_ids"].append(pad(ids, padding, value=self.pad_token_id))
            rows["position_ids"].append(pad(positions, padding))
            rows["labels"].append(pad(labels, padding, value=IGNORE))
        return {name: torch.stack(tensors) for name, tensors in rows.items()}


def _check_arrived(given: Any, prepared: Any) -> None:
    lost = _tokens(given) - _tokens(prepared)
    if lost:
        raise UserError(f"max_length: {lost:,} tokens would be cut off; leave conversations that are longer out")


def _tokens(dataset: Any) -> int:
    import pyarrow.compute as pc

    return pc.sum(pc.list_value_length(dataset.with_format("arrow")["input_ids"])).as_py() or 0  # no row, no sum
