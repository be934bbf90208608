"""Prompts as token ids, for the engines whose prompts are made here: encoded, bounded, and checked."""

import asyncio
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from hfchat.chat import GREETING, Chat
from hfchat.chat_template import fingerprint
from hfchat.errors import UserError
from hfchat.serving.engines.encoding import NOTHING_RENDERED
from hfchat.serving.engines.encoding_process import ModelEncoder
from hfchat.serving.engines.engine import CompleteSampling, EngineError, PromptError, Sampling
from hfchat.serving.engines.model_sampling import ModelSampling
from hfchat.serving.http.limits import Slots
from hfchat.serving.http.record import current_record


@dataclass(frozen=True)
class TokenPrompt:
    """A `Prompt` as the ids of its tokens.

    Attributes:
        ids: The tokens.
        grammar: What the answer may be, as llguidance's Lark grammars say it; None for any text.
    """

    ids: Sequence[int]
    grammar: str | None = None

    @property
    def tokens(self) -> int:
        return len(self.ids)


class Prompting:
    """The part of an `Engine` (see `hfchat.serving.engines.engine`) that is the same for all whose prompts are ids.

    Attributes:
        tokenizer: The model's.
        sampling: How the model's generation config has it sampled.
        ends: Tokens that end an answer.
        context_length: Tokens that a prompt and its answer may take together.
        template_fingerprint: That of the chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        sampling: ModelSampling,
        ends: set[int],
        vocabulary: int,
        context: int,
    ):
        """
        Args:
            tokenizer: With a chat template.
            sampling: How the model is sampled.
            ends: Tokens that end an answer.
            vocabulary: Number of embeddings of the model.
            context: Tokens that a prompt and its answer may take together.

        Raises:
            UserError: If the tokenizer cannot decode incrementally or has tokens that the model has no embeddings for.
        """
        if not tokenizer.is_fast:
            raise UserError(f"{tokenizer.name_or_path}: serving needs a fast tokenizer (tokenizer.json)")
        _check_embedded(tokenizer, ends, vocabulary)
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.ends = ends
        self.context_length = context
        self.template_fingerprint = fingerprint(tokenizer)
        self._vocabulary = vocabulary
        self._encoder = ModelEncoder(tokenizer, vocabulary, context)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode")  # waits for the encoder
        self._turns = Slots(1, sys.maxsize, extra=0)  # the keys take turns

    async def try_template(self) -> None:
        """Refuse a model whose chat template renders a greeting as nothing, or takes too much time or memory for it.

        Raises:
            UserError: Says what is wrong with it.
        """
        try:
            await self.encode(GREETING)
        except PromptError as error:
            if str(error) == NOTHING_RENDERED:
                raise UserError(f"{self.tokenizer.name_or_path}: {NOTHING_RENDERED}") from error
            # The template may want another conversation, or a longer context; then it says so to those who ask.
        except EngineError as error:
            raise UserError(f"{self.tokenizer.name_or_path}: {error}") from error

    async def encode(self, chat: Chat) -> TokenPrompt:
        size = sum(len(message["content"]) for message in chat.messages)
        return await self._encode(self._encoder.conversation, chat.messages, size)

    async def encode_text(self, text: str | Sequence[int]) -> TokenPrompt:
        return await self._encode(self._encoder.text, text, len(text))

    async def _encode(self, encode: Callable, source: Sequence, size: int) -> TokenPrompt:
        with closing(self._turns.reserve(1, current_record().key_name)) as turn:
            async with turn.take():
                turn.charge(size)
                return TokenPrompt(await asyncio.get_running_loop().run_in_executor(self._thread, encode, source))

    def shortest(self) -> TokenPrompt:
        """The prompt of an answer that only shows that there is one."""
        return TokenPrompt([next(iter(self.ends), 0)])

    def check(self, prompt: TokenPrompt) -> None:
        """Refuse a prompt that no step can be made with, because it would end the generation for all.

        Raises:
            EngineError: If it is empty or too long, or the model has no embedding for one of its tokens.
        """
        if not 0 < prompt.tokens < self.context_length:
            raise EngineError(f"a prompt must have from 1 to {self.context_length - 1} tokens, not {prompt.tokens}")
        unknown = next((id for id in prompt.ids if not 0 <= id < self._vocabulary), None)
        if unknown is not None:
            raise EngineError(f"the model has no token {unknown}, only 0 to {self._vocabulary - 1}")

    def complete(self, prompt: TokenPrompt, sampling: Sampling) -> CompleteSampling:
        """The sampling with the model's own values where the request has none, no longer than the context holds.

        Raises:
            PromptError: If it has a bias for a token that the model does not have.
        """
        unknown = next((id for id in sampling.logit_bias if not 0 <= id < self._vocabulary), None)
        if unknown is not None:
            raise PromptError(f"the model has no token {unknown}, only 0 to {self._vocabulary - 1}", "logit_bias")
        room = self.context_length - prompt.tokens
        asked = {name: value for name, value in vars(sampling).items() if value is not None}
        longest = min(asked.pop("max_tokens", room), room)
        return CompleteSampling(**{**vars(self.sampling), **asked, "max_tokens": longest})

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._encoder.close()


def ends_of(configured: int | list[int] | None, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end an answer: those of the model's generation config, and the tokenizer's own."""
    return {*_as_list(configured), *_as_list(tokenizer.eos_token_id)}


def _as_list(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _check_embedded(tokenizer: PreTrainedTokenizerBase, ends: set[int], vocabulary: int) -> None:
    """Refuse a tokenizer with ids that the model has no embeddings for, because one such prompt would end all answers.

    Raises:
        UserError: Names the first of them.
    """
    beyond = min((id for id in {*tokenizer.get_vocab().values(), *ends} if not 0 <= id < vocabulary), default=None)
    if beyond is not None:
        token = tokenizer.convert_ids_to_tokens(beyond) if beyond >= 0 else None
        raise UserError(
            f"{tokenizer.name_or_path}: its tokenizer, or its generation_config.json (eos_token_id), has the token "
            f"{beyond} ({token!r}), and the model has embeddings for {vocabulary} tokens only; restore the tokenizer "
            "that it was trained with, or give the model embeddings for it (`model.resize_token_embeddings`)"
        )
