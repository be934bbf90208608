"""What a model says to a few real prompts, and how far apart two models are on them."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, TypeAlias

import torch

from hfchat.errors import UserError
from hfchat.generation import answering, generate_answers
from hfchat.messages import ROLES_WITH_TOOLS, find_fault
from hfchat.token_ids import Messages, encode_conversation

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

AnyModel: TypeAlias = "PreTrainedModel | PeftModel"

MAX_CONVERSATIONS = 8
MAX_TOKENS = 128  # of each, so that the logits of a large vocabulary fit in memory: 200 MB at 49,152 tokens
MAX_NEW_TOKENS = 32


def context_length(config: "PreTrainedConfig") -> int:
    """Tokens that a model with that configuration can take; without a limit, as many as anyone asks."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or sys.maxsize


def default_conversations() -> list[Messages]:
    """A few neutral conversations, for when no held-out ones are at hand."""
    lines = files("hfchat").joinpath("neutral_conversations.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines]


@dataclass
class Prompts:
    """Conversations as token ids, cut to what the model's context allows.

    Attributes:
        messages: The conversations.
        sequences: All turns of each: what logits are compared on.
        prompts: All but the last answer, and the start of a new one: what answers are generated to.
    """

    messages: list[Messages]
    sequences: list[list[int]]
    prompts: list[list[int]]

    @classmethod
    def render(
        cls, conversations: Sequence[Messages], tokenizer: "PreTrainedTokenizerBase", context: int
    ) -> "Prompts":
        """The first `MAX_CONVERSATIONS` of them by the tokenizer's chat template.

        Args:
            conversations: Each a list of messages, with or without an answer at the end.
            tokenizer: With a chat template.
            context: Tokens that the model can take.

        Raises:
            UserError: If there are no conversations, or if one is not a conversation.
        """
        if not conversations:
            raise UserError("conversations: the list is empty, so that nothing can be compared; give at least one")
        used: list[Messages] = [list(messages) for messages in conversations[:MAX_CONVERSATIONS]]
        for number, messages in enumerate(used):
            fault = find_fault(messages, ROLES_WITH_TOOLS)
            if fault is not None and fault[0] != "no_assistant_turn":
                raise UserError(f"conversations: number {number} {fault[1]}")
        length = min(MAX_TOKENS, context - MAX_NEW_TOKENS)
        sequences, prompts = [], []
        for messages in used:
            asked = messages[:-1] if messages[-1]["role"] == "assistant" and len(messages) > 1 else messages
            sequences.append(encode_conversation(tokenizer, messages)[:length])
            prompts.append(encode_conversation(tokenizer, asked, add_generation_prompt=True)[-length:])
        return cls(used, sequences, prompts)

    def sha256(self) -> str:
        """Digest of the conversations, whatever the tokenizer."""
        return hashlib.sha256(json.dumps(self.messages, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@dataclass
class Behaviour:
    """What a model says.

    Attributes:
        logits: For each sequence, shape `(positions, vocabulary)`, on the CPU.
        answers: Greedy, for each prompt; token ids up to and including the end-of-turn token.
    """

    logits: list[torch.Tensor]
    answers: list[list[int]]


@dataclass(frozen=True)
class Parting:
    """Where two greedy answers to a prompt part.

    Attributes:
        prompt: Number of the prompt, from 0.
        token: Position in the answers, from 0.
        gap_nats: How far apart in log-probability the model holds their two tokens there.
    """

    prompt: int
    token: int
    gap_nats: float


@dataclass
class Difference:
    """How far two behaviours are apart.

    Attributes:
        mean_kl_nats: Mean over all positions of KL(before || after).
        max_kl_nats: The largest.
        top_token_agreement: Share of the positions where the likeliest token is the same.
        identical_answers: Share of the greedy answers that are the same.
        first_difference: Where the first of the differing answers part; None where all are the same.
        max_gap_nats: The largest gap of all differing answers, 0 where all are the same. Rounding changes a greedy
            answer only where two tokens are nearly as likely.
    """

    mean_kl_nats: float
    max_kl_nats: float
    top_token_agreement: float
    identical_answers: float
    first_difference: Parting | None
    max_gap_nats: float


def behaviour(model: AnyModel, prompts: Prompts, tokenizer: "PreTrainedTokenizerBase") -> Behaviour:
    """Logits and greedy answers of a model, which is left as it was."""
    with answering(model, tokenizer, MAX_NEW_TOKENS, [tokenizer.eos_token_id]):
        return Behaviour(logits(model, prompts), generate_answers(model, prompts.prompts))


@torch.inference_mode()
def logits(model: AnyModel, prompts: Prompts) -> list[torch.Tensor]:
    """The logits of each sequence on its own, because padding would add rounding; `(positions, vocabulary)` each."""
    device = model.get_input_embeddings().weight.device
    return [model(input_ids=torch.tensor([ids], device=device)).logits[0].cpu() for ids in prompts.sequences]


def kl_divergence(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> torch.Tensor:
    """KL(before || after) in nats at every position of all sequences, shape `(positions,)`.

    In float64: in float32, the rounding of the sum over the vocabulary (1e-8) would hide an adapter's smaller parts.
    """
    return torch.cat(
        [
            torch.nn.functional.kl_div(
                new.double().log_softmax(-1), old.double().log_softmax(-1), log_target=True, reduction="none"
            ).sum(-1)
            for old, new in zip(before, after, strict=True)
        ]
    )


def compare(
    before: Behaviour, after: Behaviour, prompts: Prompts, model: AnyModel, tokenizer: "PreTrainedTokenizerBase"
) -> Difference:
    """How far `after` is from `before`.

    Args:
        before: What is meant to be kept.
        after: What became of it.
        prompts: Those that both were asked.
        model: One of the two: it says how near to each other two tokens are, where answers part.
        tokenizer: Its own.
    """
    divergences = kl_divergence(before.logits, after.logits)
    same_top = [
        (old.argmax(-1) == new.argmax(-1)).float() for old, new in zip(before.logits, after.logits, strict=True)
    ]
    partings = []
    with answering(model, tokenizer, MAX_NEW_TOKENS, [tokenizer.eos_token_id]):
        for number, (old, new) in enumerate(zip(before.answers, after.answers, strict=True)):
            if old != new:
                partings.append(Parting(number, *_gap(model, prompts.prompts[number], old, new)))
    return Difference(
        mean_kl_nats=divergences.mean().item(),
        max_kl_nats=divergences.max().item(),
        top_token_agreement=torch.cat(same_top).mean().item(),
        identical_answers=1 - len(partings) / len(before.answers),
        first_difference=partings[0] if partings else None,
        max_gap_nats=max((parting.gap_nats for parting in partings), default=0.0),
    )


@torch.inference_mode()
def _gap(model: AnyModel, prompt: list[int], old: list[int], new: list[int]) -> tuple[int, float]:
    """Where two answers part, and how far apart in log-probability the model holds the two tokens there."""
    token = next(i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1])
    ids = torch.tensor([prompt + old[:token]], device=model.get_input_embeddings().weight.device)
    last = model(input_ids=ids).logits[0, -1].float()
    return token, abs(last[old[token]] - last[new[token]]).item()
