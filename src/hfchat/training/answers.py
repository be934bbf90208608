"""How a chat model answers held-out prompts before and after it is trained, and whether it stops by itself."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerState

from hfchat.generation import answering, generate_answers, stop_token_ids
from hfchat.messages import parse_tools
from hfchat.storage import write_whole
from hfchat.token_ids import Messages, encode_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHOWN = 3
_SELDOM = 0.5  # of the answers that a model ends by itself
_BEFORE = "answers_before.json"


class SampledAnswer(TypedDict):
    """An answer of the model: to which conversation, its text, and whether the model ended it by itself."""

    row: int
    text: str
    ended: bool


class Comparison(TypedDict):
    """A prompt with the answer of the dataset and those of the model, as `answers.jsonl` has them."""

    prompt: Messages
    reference: str
    before: SampledAnswer
    after: SampledAnswer


class HeldOutAnswers(TrainerCallback):
    """Answers prompts greedily before the first step and after the last.

    Attributes:
        answers: One entry per prompt, when all answers are there.

    Args:
        tokenizer: The model's, with its chat template.
        conversations: Messages; the last of each is the reference answer, those before it the prompt.
        number: How many prompts: the first that leave room for an answer.
        folder: Where the answers before are kept for a run that is resumed.
        max_new_tokens: Longest answer. An answer that reaches it did not end.
        tools: The tools of each conversation, in any form that `hfchat.messages.parse_tools` takes; None for none.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        conversations: Sequence[Messages],
        number: int,
        folder: Path,
        max_new_tokens: int,
        tools: Sequence[object] | None = None,
    ):
        self.tokenizer = tokenizer
        self.conversations = conversations
        self.number = number
        self.file = folder / _BEFORE
        self.max_new_tokens = max_new_tokens
        self.tools = tools
        self.answers: list[Comparison] = []

    def on_train_begin(
        self, args: object, state: TrainerState, control: object, model: Any = None, **kwargs: object
    ) -> None:
        if state.is_world_process_zero and self.number and not self.file.exists():
            answers = self._answer(model)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.file, json.dumps(answers, ensure_ascii=False))

    def on_train_end(
        self, args: object, state: TrainerState, control: object, model: Any = None, **kwargs: object
    ) -> None:
        if not state.is_world_process_zero or not self.number or state.global_step < state.max_steps:
            return
        before = json.loads(self.file.read_text(encoding="utf-8"))
        for first, last in zip(before, self._answer(model), strict=True):
            prompt, reference = self.conversations[last["row"]][:-1], self._reference(last["row"])
            self.answers.append({"prompt": prompt, "reference": reference, "before": first, "after": last})

    def metrics(self) -> dict[str, float]:
        """The share of answers that the model ended by itself, before and after, and their number."""
        if not self.answers:
            return {}
        count = len(self.answers)
        return {
            "ended_before": sum(row["before"]["ended"] for row in self.answers) / count,
            "ended_after": sum(row["after"]["ended"] for row in self.answers) / count,
            "sample_answers": count,
        }

    def __str__(self) -> str:
        if not self.answers:
            return "no held-out prompt was answered"
        metrics = self.metrics()
        lines = [
            f"of {len(self.answers)} answers to held-out prompts, the model ended by itself (within "
            f"{self.max_new_tokens} tokens) {metrics['ended_before']:.0%} before, {metrics['ended_after']:.0%} after"
        ]
        if metrics["ended_after"] < _SELDOM:
            lines.append(
                "!!! warning: it rarely stops; train longer, or raise sample_max_new_tokens if answers are long"
            )
        for row in self.answers[:_SHOWN]:
            lines += [
                "",
                f"  prompt:    {_short(row['prompt'][-1]['content'])}",
                f"  reference: {_short(row['reference'])}",
                f"  before:    {_short(row['before']['text'])}",
                f"  after:     {_short(row['after']['text'])}",
            ]
        return "\n".join(lines)

    def save(self, file: Path) -> None:
        """Write the answers as JSON lines."""
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in self.answers]
        file.write_text("".join(lines), encoding="utf-8")

    def _encode(self, row: int, messages: Messages, *, add_generation_prompt: bool = False) -> list[int]:
        tools = parse_tools(self.tools[row]) if self.tools is not None else None
        return encode_conversation(
            self.tokenizer, messages, tools or None, add_generation_prompt=add_generation_prompt
        )

    def _reference(self, row: int) -> str:
        """The answer of the dataset, with its reasoning and calls as the chat template writes them."""
        *prompt, reference = self.conversations[row]
        if not reference.get("tool_calls") and not reference.get("reasoning_content"):
            return reference["content"]
        before = self._encode(row, prompt, add_generation_prompt=True)
        answer = self._encode(row, [*prompt, reference])[len(before) :]
        return self.tokenizer.decode(answer, skip_special_tokens=True).rstrip()

    def _answer(self, model: "PreTrainedModel") -> list[SampledAnswer]:
        context = getattr(model.config.get_text_config(), "max_position_embeddings", math.inf)
        # The first conversations whose answer has room in the context.
        prompts: dict[int, list[int]] = {}
        for row, messages in enumerate(self.conversations):
            ids = self._encode(row, messages[:-1], add_generation_prompt=True)
            if len(ids) + self.max_new_tokens <= context:
                prompts[row] = ids
            if len(prompts) == self.number:
                break
        stop = sorted(stop_token_ids(model.generation_config, self.tokenizer))
        with answering(model, self.tokenizer, self.max_new_tokens, stop):
            answers = generate_answers(model, list(prompts.values())) if prompts else []
        return [
            {
                "row": row,
                "text": self.tokenizer.decode(answer, skip_special_tokens=True),
                "ended": answer[-1] == self.tokenizer.eos_token_id,
            }
            for row, answer in zip(prompts, answers, strict=True)
        ]


def _short(text: str, characters: int = 200) -> str:
    text = " ".join(text.split())
    return text if len(text) <= characters else text[: characters - 1] + "…"
