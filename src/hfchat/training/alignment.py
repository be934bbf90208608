"""Preference tuning with TRL, at the cost of the completions only, and what it changed on held-out pairs."""

import contextlib
import copy
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import is_peft_model
from torch.nn.functional import logsigmoid, pad
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import DPOTrainer, KTOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference
from trl.trainer.utils import FusedCausalLMOutput

from hfchat.intervals import paired_interval
from hfchat.training.checkpoints import CheckpointMixin
from hfchat.training.packing import IGNORE

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
    - On a CPU, log-probabilities are computed as in `score_completions`.
    - `evaluate` compares policy and reference on held-out pairs, see there. The start is in the log as step 0.

    Attributes:
        start: The held-out pairs before the first step, when the policy is the reference.
        outcome: The held-out pairs as `evaluate` last measured them.

    Args:
        model: From `hfchat.training.adapters.load_trainable`.
        args: Derived.
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
        reference = None
        if not is_peft_model(model):
            if not (args.precompute_ref_log_probs or is_deepspeed_zero3_enabled()):  # shards cannot be copied
                reference = copy.deepcopy(model)
            elif commit := getattr(model.config, "_commit_hash", None):  # if TRL loads one, then of this commit
                args.model_init_kwargs = {**(args.model_init_kwargs or {}), "revision": commit}
        super().__init__(
            model=model,
            ref_model=reference,
            args=args,
            data_collator=self._collator(pad_token_id=tokenizer.pad_token_id, max_length=None),
            train_dataset=preferences.train,
            eval_dataset=preferences.held_out,
            processing_class=tokenizer,
        )
        if is_peft_model(self.model) and "ref" in self.model.peft_config:  # TRL's copy of the fresh adapter
            self.model.delete_adapter("ref")
        self._score_completions()
        self._thumbs_collator = DataCollatorForUnpairedPreference(pad_token_id=tokenizer.pad_token_id)
        references = self._held_out_log_probs(reference=True)
        self.start = self.outcome = Outcome(references, references, args.beta)
        self._measured_at, self._measured = None, {}
        self.add_callback(_LogStart(self))

    def evaluate(
        self, eval_dataset: None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """What the training changed on the held-out pairs.

        Returns:
            - `rewards/accuracies`: share of pairs whose chosen answer has the higher implicit reward, beta times the
              log-probability's ratio to the reference (arXiv:2305.18290); a tie is half a one, so the start is 0.5.
            - `logps/accuracies`: share of pairs whose chosen answer is the more probable one.
            - `rewards/margins`: mean reward of the chosen less that of the rejected.
            - `loss`: mean of -log sigmoid(margin), the loss of DPO, for either method.
            - `kl`: divergence of the policy from its reference in nats per token, see `divergence`.
        """
        if self._measured_at == self.state.global_step:  # at the end of the training, and asked for again
            return self._measured
        self.outcome = Outcome(self._held_out_log_probs(reference=False), self.start.policy, self.args.beta)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.outcome.means().items()}
        divergence = self.divergence()
        if divergence is not None:
            metrics[f"{metric_key_prefix}_kl"] = divergence
        self._measured_at, self._measured = self.state.global_step, dict(metrics)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def divergence(self) -> float | None:
        """KL divergence of the policy from its reference, in nats per token.

        Of answers that the policy samples (temperature 1) to held-out prompts, the mean over their tokens of
        `r - 1 - log r` with `r` the reference's probability over the policy's: Schulman's k3, unbiased and never
        negative (http://joschu.net/blog/kl-approx.html). The same random numbers are drawn each time.

        Returns:
            None if nothing is to be sampled, or if no reference is held.
        """
        held = is_peft_model(self.model) or self.ref_model is not None
        prompts = [list(ids) for ids in dict.fromkeys(map(tuple, self.eval_dataset["prompt_ids"]))]
        prompts = prompts[: self.args.sampled_prompts][self.args.process_index :: self.args.world_size]
        if not self.args.sampled_prompts or not held:
            return None
        total = torch.zeros(2, device=self.args.device)
        if prompts:
            answers = self._sample(prompts)
            rows = [
                {"prompt_ids": prompt, "completion_ids": answer, "label": True}
                for prompt, answer in zip(prompts, answers, strict=True)
            ]
            batch = self._prepare_inputs(self._thumbs_collator(rows))
            difference = self._log_probs(batch, reference=True) - self._log_probs(batch, reference=False)
            total[0] = (difference.exp() - 1 - difference).sum()  # 0 where no token is scored
            total[1] = batch["completion_mask"].sum()
        divergence, tokens = self.accelerator.reduce(total).tolist()
        return divergence / tokens

    def _sample(self, prompts: list[list[int]]) -> list[list[int]]:
        tokenizer = self.processing_class
        batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(self.args.device)
        model = self.accelerator.unwrap_model(self.model)
        with self._evaluating(), torch.random.fork_rng(), self.accelerator.autocast():
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
        answers = ids[:, batch["input_ids"].shape[1] :].tolist()
        ends = (answer.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in answer else None
                for answer in answers)  # fmt: skip
        return [answer[:end] for answer, end in zip(answers, ends, strict=True)]

    def _held_out_log_probs(self, reference: bool) -> np.ndarray:
        """Shape `(pairs, 2)`: log-probability of the chosen and of the rejected answer, in nats."""
        loader = self.accelerator.prepare(
            DataLoader(
                self.eval_dataset,
                batch_size=2 * self.args.per_device_eval_batch_size,  # both answers to a prompt are in one batch
                collate_fn=self._thumbs_collator,
            )
        )
        sums = []
        for batch in loader:
            log_probs = self._log_probs(self._prepare_inputs(batch), reference).sum(1)
            sums.append(self.accelerator.gather_for_metrics(log_probs).float().cpu())
        return torch.cat(sums).double().numpy().reshape(-1, 2)

    @torch.no_grad()
    def _log_probs(self, batch: Mapping[str, torch.Tensor], reference: bool) -> torch.Tensor:
        """Shape `(rows, width - 1)`: of each next token of a completion; 0 elsewhere."""
        model, adapter_off = self.model, contextlib.nullcontext()
        if reference and is_peft_model(model):
            adapter_off = model.disable_adapter()
        elif reference and self.ref_model is not None:
            model = self.ref_model
        with self._evaluating(), adapter_off, self.compute_loss_context_manager():
            return model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                labels=batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORE),
                fused_lm_head=True,
            ).log_probs

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)

    def _score_completions(self) -> None:
        if self.args.device.type != "cpu":
            return
        for model in (self.model, self.ref_model):
            if model is not None:
                score_completions(model.get_base_model() if is_peft_model(model) else model)

    def _prepare_dataset(self, dataset: "Dataset", *_: Any) -> "Dataset":
        return dataset

    def _precompute_ref_logps(self, dataset: "Dataset", name: str, batch_size: int) -> "Dataset":
        return dataset if name == "eval" else super()._precompute_ref_logps(dataset, name, batch_size)


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

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            means = {f"eval_{name}": value for name, value in self.trainer.start.means().items()}
            self.trainer.log(means | {"eval_kl": 0.0})


@dataclass(frozen=True)
class Outcome:
    """Log-probabilities of held-out pairs, each of shape `(pairs, 2)`: the chosen and the rejected answer's, in nats.

    Attributes:
        policy: Under the model as it is.
        reference: Under the model as it was.
        beta: Factor of the rewards.
    """

    policy: np.ndarray
    reference: np.ndarray
    beta: float

    @property
    def margins(self) -> np.ndarray:
        """Reward of each chosen answer less that of the rejected one."""
        rewards = self.beta * (self.policy - self.reference)
        return rewards[:, 0] - rewards[:, 1]

    @property
    def preferred(self) -> np.ndarray:
        """Whether the chosen answer of each pair has the higher reward; a tie is half a one."""
        return np.heaviside(self.margins, 0.5)

    @property
    def more_probable(self) -> np.ndarray:
        """Whether the chosen answer of each pair is the more probable one; a tie is half a one."""
        return np.heaviside(self.policy[:, 0] - self.policy[:, 1], 0.5)

    def means(self) -> dict[str, float]:
        """What `evaluate` returns of it."""
        return {
            "loss": float(-logsigmoid(torch.from_numpy(self.margins)).mean()),
            "rewards/accuracies": float(self.preferred.mean()),
            "rewards/margins": float(self.margins.mean()),
            "logps/accuracies": float(self.more_probable.mean()),
        }

    def compare(self, start: "Outcome") -> dict[str, list[float]]:
        """This outcome against that before the training, on the same pairs.

        Returns:
            `[mean, low, high]` with the 95% interval of `hfchat.intervals`: reward accuracy, the accuracy by
            probability before and after, and the difference of these two.
        """
        gain = self.more_probable - start.more_probable
        return {
            "rewards/accuracies": _share(self.preferred),
            "logps/accuracies_start": _share(start.more_probable),
            "logps/accuracies": _share(self.more_probable),
            "logps/accuracies_gain": [float(gain.mean()), *_limits(gain)],
        }


def _limits(outcomes: np.ndarray) -> tuple[float, float]:
    """The interval of a mean of outcomes between -1 and 1, of which halves count as such."""
    return paired_interval(outcomes.clip(min=0).sum(), -outcomes.clip(max=0).sum(), len(outcomes))


def _share(won: np.ndarray) -> list[float]:
    """The share of wins, of which a tie is half a one: wins less losses, moved from -1 and 1 to 0 and 1."""
    return [float(won.mean()), *((1 + limit) / 2 for limit in _limits(2 * won - 1))]


def describe_comparison(comparison: Mapping[str, list[float]], metrics: Mapping[str, float]) -> str:
    """Before and after, in words."""

    def share(name: str) -> str:
        mean, low, high = comparison[name]
        return f"{mean:.1%} [{low:.1%}, {high:.1%}]"

    lines = [
        "on held-out pairs (95% intervals):",
        f"  the chosen answer has the higher reward: 50.0% by construction -> {share('rewards/accuracies')}",
        f"  it is the more probable one: {share('logps/accuracies_start')} -> {share('logps/accuracies')}, "
        f"difference {share('logps/accuracies_gain')}",
        f"  reward margin: 0 -> {metrics['eval_rewards/margins']:.3f}",
    ]
    if "eval_kl" in metrics:
        lines.append(f"  divergence from the reference: 0 -> {metrics['eval_kl']:.4f} nats per token")
    return "\n".join(lines)


def score_completions(model: "PreTrainedModel") -> None:
    """Have the log-probabilities that TRL asks `model` for computed a prompt at a time, at the completions only.

    TRL's fused head scores every position of every padded row where there is no Triton, prompts and padding
    included, and computes a prompt anew for each of its completions. Here a prompt is computed once, followed by its
    completions, which do not see each other; the logits are those of the model's own forward, at the positions that
    are scored. It gives the same log-probabilities.

    Args:
        model: With TRL's fused head (`trl.trainer.utils.add_fused_lm_head`). Models whose positions or attention
            cannot be given as tensors (anything but rotary embeddings with full attention by SDPA) compute each row
            alone. What it is asked for otherwise does not change.
    """
    forward = model.forward
    shares = _shares_prompts(model)

    @functools.wraps(forward)  # `generate` looks into the signature for what it may pass
    def forward_by_prompt(
        *args: Any,
        fused_lm_head: bool = False,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, "use_cache": use_cache}
        given = {name: value for name, value in (given | kwargs).items() if value is not None}  # PEFT passes None on
        if not fused_lm_head:
            return forward(*args, **given)
        if args or given.keys() - {"use_cache"} != {"input_ids", "attention_mask", "labels"}:  # a router's logits, say
            return forward(*args, fused_lm_head=True, **given)
        scored, lengths = labels != IGNORE, attention_mask.sum(1).tolist()
        starts = scored.int().argmax(1).tolist()
        groups: dict[Any, list[int]] = {}
        for row, start in enumerate(starts):
            groups.setdefault(tuple(input_ids[row, :start].tolist()) if shares else row, []).append(row)
        rows: list[Any] = [None] * len(starts)
        for group in groups.values():
            start = starts[group[0]]
            completions = [input_ids[row, start : lengths[row]] for row in group]
            values = _score(forward, input_ids[group[0], :start], completions)
            for row, completion, part in zip(group, completions, values, strict=True):
                rows[row] = pad(part, (start - 1, input_ids.shape[1] - start - len(completion)))
        log_probs, entropy, mean_logits, is_top1 = torch.stack(rows).unbind(1)
        return FusedCausalLMOutput(
            log_probs=log_probs,
            entropy=entropy,
            mean_logits=mean_logits,
            is_top1=is_top1.bool(),
            label_mask=scored[:, 1:],
        )

    model.forward = forward_by_prompt


def _score(forward: Any, prompt: torch.Tensor, completions: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Of each completion, shape `(4, tokens)`: log-probability, and of the whole distribution at each token its
    entropy, its mean logit and whether the token is its most probable one; only the first has a gradient."""
    lengths = [len(ids) for ids in completions]
    targets = torch.cat(completions)
    options: dict[str, torch.Tensor] = {}
    ends = len(prompt) + torch.tensor(lengths).cumsum(0)
    # A token is predicted where the one before it is; the first of each completion at the end of the prompt.
    keep = [torch.tensor([len(prompt) - 1, *range(end - length, end - 1)])
            for end, length in zip(ends.tolist(), lengths, strict=True)]  # fmt: skip
    if len(completions) > 1:
        positions = torch.cat([torch.arange(len(prompt)), *(len(prompt) + torch.arange(n) for n in lengths)])
        part = torch.repeat_interleave(torch.arange(len(lengths) + 1), torch.tensor([len(prompt), *lengths]))
        seen = ((part[None] == 0) | (part[None] == part[:, None])).tril()
        options = {"position_ids": positions[None], "attention_mask": seen[None, None]}
    output = forward(
        input_ids=torch.cat([prompt, targets])[None], use_cache=False, logits_to_keep=torch.cat(keep), **options
    )
    logits = output.logits[0].float()
    normalizer = logits.logsumexp(-1)
    chosen = logits.gather(-1, targets[:, None]).squeeze(-1)
    with torch.no_grad():
        entropy = normalizer - ((logits - normalizer[:, None]).exp() * logits).sum(-1)
        rest = torch.stack([entropy, logits.mean(-1), (chosen >= logits.amax(-1)).float()])
    return torch.cat([(chosen - normalizer)[None], rest]).split(lengths, dim=1)


def _shares_prompts(model: "PreTrainedModel") -> bool:
    config = model.config.get_text_config()
    full = set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    rotary = hasattr(model.base_model, "rotary_emb")
    windows = getattr(config, "sliding_window", None) is not None
    return full and rotary and not windows and config._attn_implementation == "sdpa"
