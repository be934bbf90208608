"""Preference tuning with TRL on the project's tokens, measured on held-out pairs."""

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import is_peft_model
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerState
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import EvalLoopOutput
from trl import DPOTrainer, KTOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from hfchat.training.checkpoints import CheckpointMixin
from hfchat.training.held_out_pairs import PairScores
from hfchat.training.run_arguments import replaced
from hfchat.training.scoring import completion_log_probs, score_completions_only

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfchat.training.align_arguments import AlignArguments
    from hfchat.training.preferences import Preferences


class _PreferenceTrainer(CheckpointMixin):
    """What DPO and KTO share.

    - Tokens come as `hfchat.training.preferences` made them: TRL neither adds to them nor cuts them.
    - The reference of an adapter is its base, the same model with the adapter off: no second copy of it is held. That
      of all weights is a copy of the model as it is given, so of its revision and with rows for its new tokens.
    - An evaluation compares policy and reference on held-out pairs. TRL's own has no accuracy for KTO, counts a tie
      as lost, so that the start is at 0%, and leaves nothing of the single pairs to make intervals of. The start is in
      the log as step 0.

    On a CPU, completions are scored as in `score_completions_only`.

    What an evaluation returns, each with `eval_` before its name:

    - `rewards/accuracies`: share of pairs whose chosen answer has the higher implicit reward, beta times the
      log-probability's ratio to the reference (arXiv:2305.18290); a tie counts as a half, so the start is at 0.5.
    - `logps/accuracies`: share of pairs whose chosen answer is the more probable one.
    - `rewards/margins`: mean reward of the chosen less that of the rejected.
    - `loss`: mean of -log sigmoid(margin), the loss of DPO, for either method.
    - `kl`: divergence of the policy from its reference in nats per token, see `divergence`.

    Attributes:
        start: The held-out pairs before the first step, when the policy is the reference.
        outcome: The held-out pairs as they were last measured.

    Args:
        model: From `hfchat.training.adapters.load_trainable`.
        args: Derived; their `output_dir` is the folder of the checkpoints.
        preferences: From `hfchat.training.preferences.load_preferences`.
        tokenizer: That of the model.
    """

    _collator: type

    def __init__(
        self,
        model: "PreTrainedModel",
        args: "AlignArguments",
        preferences: "Preferences",
        tokenizer: "PreTrainedTokenizerBase",
    ):
        # What the policy is compared with, where it is not the same model without its adapter.
        reference = None
        if not is_peft_model(model):
            if not (args.precompute_ref_log_probs or is_deepspeed_zero3_enabled()):  # shards cannot be copied
                reference = copy.deepcopy(model)
            elif commit := getattr(model.config, "_commit_hash", None):  # if TRL loads one, then of this commit
                args = replaced(args, model_init_kwargs={**(args.model_init_kwargs or {}), "revision": commit})
        super().__init__(
            model=model,
            ref_model=reference,
            args=args,
            data_collator=self._collator(pad_token_id=tokenizer.pad_token_id, max_length=None),
            train_dataset=preferences.train,
            eval_dataset=preferences.train.select(range(1)),  # which TRL may compute the reference of, in vain
            processing_class=tokenizer,
        )
        self.eval_dataset = preferences.held_out
        if is_peft_model(self.model) and "ref" in self.model.peft_config:  # TRL's copy of the fresh adapter
            self.model.delete_adapter("ref")
        if self.args.device.type == "cpu":  # on a GPU, TRL's head has a kernel
            for scorer in filter(None, (self.model, self.ref_model)):
                inner = self.accelerator.unwrap_model(scorer)
                score_completions_only(inner, inner.get_output_embeddings(), inner.config)
        # The held-out pairs at the start.
        self._thumbs_collator = DataCollatorForUnpairedPreference(pad_token_id=tokenizer.pad_token_id)
        references = self._held_out_log_probs(reference=True)
        self.start = self.outcome = PairScores(references, references, args.beta)
        self._measured: dict[str, float] = {}
        self._measured_at: tuple[int, int] | None = None  # the step, and the number of answers
        self.add_callback(_LogStart(self))

    # The one private method of TRL that is overridden, as it is in TRL 1.16: nothing turns off what it does to a
    # dataset, and it takes rows of messages or text only. A test that fails when it is no longer called:
    # tests/training/test_alignment.py::test_what_the_model_gets_is_the_prompt_and_a_scored_answer_with_one_end.
    def _prepare_dataset(self, dataset: "Dataset", *_: object) -> "Dataset":
        return dataset

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in `CheckpointMixin`, but once a step: at the end of the training, it is asked for again."""
        if self._measured_at != (self.state.global_step, len(self.eval_dataset)):
            self._measured = super().evaluate(*args, **kwargs)
        return self._measured

    def get_eval_dataloader(self, eval_dataset: object = None) -> DataLoader:
        """The held-out pairs as thumbs; both answers to a prompt are in one batch."""
        size = 2 * self.args.per_device_eval_batch_size
        return self.accelerator.prepare(DataLoader(self.eval_dataset, size, collate_fn=self._thumbs_collator))

    def evaluation_loop(
        self, dataloader: DataLoader, *_: object, metric_key_prefix: str = "eval", **__: object
    ) -> EvalLoopOutput:
        policy = self._held_out_log_probs(reference=False)
        self.outcome = PairScores(policy, self.start.policy[: len(policy)], self.args.beta)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.outcome.means().items()}
        divergence = self.divergence()
        if divergence is not None:
            metrics[f"{metric_key_prefix}_kl"] = divergence
        self._measured_at = (self.state.global_step, len(self.eval_dataset))
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(dataloader.dataset))

    def _held_out_log_probs(self, reference: bool) -> np.ndarray:
        """Shape `(pairs, 2)`: log-probability of the chosen and of the rejected answer of each whole pair, in nats."""
        sums = []
        for batch in self.get_eval_dataloader():
            log_probs = self._log_probs(batch, reference).sum(1)
            sums.append(self.accelerator.gather_for_metrics(log_probs).cpu())
        values = torch.cat(sums).double().numpy()
        return values[: len(values) // 2 * 2].reshape(-1, 2)

    @torch.no_grad()
    def _log_probs(self, batch: Mapping[str, torch.Tensor], reference: bool) -> torch.Tensor:
        """Shape `(rows, width - 1)`: log-probability of each next token of a completion; 0 elsewhere."""
        model, adapter_off = self.model, nullcontext()
        if reference and is_peft_model(model):
            adapter_off = model.disable_adapter()
        elif reference and self.ref_model is not None:
            model = self.ref_model
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        model.eval()
        with adapter_off, self.compute_loss_context_manager():
            return completion_log_probs(model, head, batch)

    @torch.no_grad()
    def divergence(self) -> float | None:
        """KL divergence of the policy from its reference, in nats per token.

        The policy samples answers (temperature 1) to held-out prompts. Over their tokens, this is the mean of
        `r - 1 - log r` with `r` the reference's probability over the policy's: Schulman's k3, unbiased and never
        negative (http://joschu.net/blog/kl-approx.html). The same random numbers are drawn each time.

        Returns:
            None if nothing is to be sampled, or if no reference is held.
        """
        held = is_peft_model(self.model) or self.ref_model is not None
        if not self.args.sampled_prompts or not held:
            return None
        different = dict.fromkeys(map(tuple, self.eval_dataset["prompt_ids"]))
        prompts = [list(ids) for ids in islice(different, self.args.sampled_prompts)]
        prompts = prompts[self.args.process_index :: self.args.world_size]
        total = torch.zeros(2, device=self.args.device)
        if prompts:
            answers = zip(prompts, self._sample(prompts), strict=True)
            rows = [{"prompt_ids": prompt, "completion_ids": answer, "label": True} for prompt, answer in answers]
            batch = {name: values.to(self.args.device) for name, values in self._thumbs_collator(rows).items()}
            difference = self._log_probs(batch, reference=True) - self._log_probs(batch, reference=False)
            total[0] = (difference.exp() - 1 - difference).sum()  # 0 where no token is scored
            total[1] = batch["completion_mask"].sum()
        divergence, tokens = self.accelerator.reduce(total).tolist()
        return divergence / tokens

    def _sample(self, prompts: list[list[int]]) -> list[list[int]]:
        """An answer to each prompt, up to and including its end of turn."""
        tokenizer = self.processing_class
        batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(self.args.device)
        model = self.accelerator.unwrap_model(self.model).eval()
        with torch.random.fork_rng(), self.accelerator.autocast():
            torch.manual_seed(self.args.seed)
            ids = model.generate(
                **batch,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=self.args.sampled_tokens,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        answers = []
        for answer in ids[:, batch["input_ids"].shape[1] :].tolist():
            end = answer.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in answer else None
            answers.append(answer[:end])
        return answers


class AlignDPOTrainer(_PreferenceTrainer, DPOTrainer):
    """`DPOTrainer` on the project's tokens."""

    _collator = DataCollatorForPreference


class AlignKTOTrainer(_PreferenceTrainer, KTOTrainer):
    """`KTOTrainer` on the project's tokens."""

    _collator = DataCollatorForUnpairedPreference


TRAINERS = {"dpo": AlignDPOTrainer, "kto": AlignKTOTrainer}


class _LogStart(TrainerCallback):
    """The start of a curve: before the first step, the policy is the reference."""

    def __init__(self, trainer: _PreferenceTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: object, state: TrainerState, control: object, **kwargs: object) -> None:
        if state.global_step == 0:
            means = {f"eval_{name}": value for name, value in self.trainer.start.means().items()}
            self.trainer.log(means | {"eval_kl": 0.0})
