"""Prompts as token ids, for the engines whose prompts are made here: encoded, bounded, and checked."""

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from dataclasses import dataclass, replace
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from hfchat.chat import GREETING, Chat
from hfchat.chat_template import fingerprint
from hfchat.errors import UserError
from hfchat.response_template import response_style
from hfchat.serving.engines.encoding import NOTHING_RENDERED, EncodedChat
from hfchat.serving.engines.encoding_process import ModelEncoder, size_of
from hfchat.serving.engines.engine import CompleteSampling, EngineError, Piece, PromptError, Sampling
from hfchat.serving.engines.model_sampling import ModelSampling
from hfchat.serving.http.limits import Slots
from hfchat.serving.http.record import current_record
from hfchat.structured.checking import GrammarChecker
from hfchat.structured.parsing import AnswerParser, Parsed, end_of_prompt, thinking_at
from hfchat.structured.schemas import GrammarError

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class TokenPrompt:
    """A `Prompt` as the ids of its tokens.

    Attributes:
        ids: The tokens.
        grammar: What the answer may be, as llguidance's Lark grammars say it; None for any text.
        parser: Makes what takes the answer apart; None where all of it is text.
        kept: Special tokens whose text the parser must see.
        calls_once: Whether the answer ends after one call.
    """

    ids: Sequence[int]
    grammar: str | None = None
    parser: Callable[[], AnswerParser] | None = None
    kept: frozenset[int] = frozenset()
    calls_once: bool = False

    @property
    def tokens(self) -> int:
        return len(self.ids)


class _Turns:
    """A thread that waits for a process. The keys take turns, so that none fills it with long work."""

    def __init__(self, name: str):
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._slots = Slots(1, sys.maxsize, extra=0)

    async def run(self, size: int, ask: Callable[..., _Answer], *arguments: object) -> _Answer:
        """The answer to a question; `size` is what it counts among those of its key."""
        with closing(self._slots.reserve(1, current_record().key_name)) as turn:
            async with turn.take():
                turn.charge(size)
                return await asyncio.get_running_loop().run_in_executor(self._thread, ask, *arguments)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


class Prompting:
    """The part of an `Engine` (see `hfchat.serving.engines.engine`) that is the same for all whose prompts are ids.

    Attributes:
        tokenizer: The model's.
        sampling: How the model's generation config has it sampled.
        ends: Tokens that end an answer.
        vocabulary: Number of embeddings of the model.
        context_length: Tokens that a prompt and its answer may take together.
        template_fingerprint: That of the chat template.
        style: How the model writes calls and reasoning; None if that is not known.
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
            UserError: If the tokenizer cannot decode incrementally, the model has no embeddings for one of its tokens,
                or its response template cannot be used.
        """
        if not tokenizer.is_fast:
            raise UserError(f"{tokenizer.name_or_path}: serving needs a fast tokenizer (tokenizer.json)")
        _check_embedded(tokenizer, ends, vocabulary)
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.ends = ends
        self.context_length = context
        self.template_fingerprint = fingerprint(tokenizer)
        self.style = response_style(tokenizer)
        self._kept = {
            with_calls: self.style.special_tokens(tokenizer, with_calls=with_calls) if self.style else frozenset()
            for with_calls in (False, True)
        }
        self.vocabulary = vocabulary
        self._encoder = ModelEncoder(tokenizer, vocabulary, context)
        self._checker = GrammarChecker(tokenizer, vocabulary, ends)
        self._encoding, self._checking = _Turns("encode"), _Turns("check")

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
        if chat.functions and (self.style is None or not self.style.has_calls):
            raise PromptError("it is not known how this model writes calls", "tools")
        encoded = await self._encoding.run(size_of(chat), self._encoder.conversation, chat)
        prompt_end = end_of_prompt(self.tokenizer, encoded.ids)
        return self._answerable(chat, encoded.ids, prompt_end, await self._grammar(chat, encoded, prompt_end))

    async def encode_text(self, text: str | Sequence[int]) -> TokenPrompt:
        return TokenPrompt(await self._encoding.run(len(text), self._encoder.text, text))

    async def _grammar(self, chat: Chat, encoded: EncodedChat, prompt_end: str) -> str | None:
        """What the answer may be."""
        if not chat.functions and chat.answer_schema is None:
            return None
        thinking = thinking_at(self.style, prompt_end, encoded.may_think)
        try:
            return await self._checking.run(1, self._checker.grammar, chat, self.style, thinking)
        except GrammarError as error:
            raise PromptError(str(error), error.field) from error

    def _answerable(self, chat: Chat, ids: Sequence[int], prompt_end: str, grammar: str | None) -> TokenPrompt:
        """A prompt with what its answer may be, and how it is read."""
        style, functions = self.style, chat.functions
        if style is None or not (functions or style.has_reasoning):
            return TokenPrompt(ids, grammar)
        return TokenPrompt(
            ids,
            grammar,
            parser=lambda: AnswerParser(self.tokenizer, style, functions, prompt_end),
            kept=self._kept[bool(functions)],
            calls_once=not chat.parallel_tool_calls,
        )

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
        unknown = next((id for id in prompt.ids if not 0 <= id < self.vocabulary), None)
        if unknown is not None:
            raise EngineError(f"the model has no token {unknown}, only 0 to {self.vocabulary - 1}")

    def complete(self, prompt: TokenPrompt, sampling: Sampling) -> CompleteSampling:
        """The sampling with the model's own values where the request has none, no longer than the context holds.

        Raises:
            PromptError: If it has a bias for a token that the model does not have.
        """
        unknown = next((id for id in sampling.logit_bias if not 0 <= id < self.vocabulary), None)
        if unknown is not None:
            raise PromptError(f"the model has no token {unknown}, only 0 to {self.vocabulary - 1}", "logit_bias")
        room = self.context_length - prompt.tokens
        asked = {name: value for name, value in vars(sampling).items() if value is not None}
        longest = min(asked.pop("max_tokens", room), room)
        return CompleteSampling(**{**vars(self.sampling), **asked, "max_tokens": longest})

    def close(self) -> None:
        for turns, asked in ((self._encoding, self._encoder), (self._checking, self._checker)):
            turns.close()
            asked.close()


async def parsed(prompt: TokenPrompt, pieces: AsyncGenerator[Piece]) -> AsyncGenerator[Piece]:
    """An answer whose pieces are text, taken apart: reasoning, calls, and text."""
    parser = None if prompt.parser is None else prompt.parser()
    has_calls = False
    async with aclosing(pieces):
        async for piece in pieces:
            if parser is None:
                yield piece
                continue
            part = parser.push(piece.text)
            rest = Parsed() if piece.finish_reason is None else parser.finish()
            calls = part.calls + rest.calls
            has_calls = has_calls or bool(calls)
            is_over = has_calls and (prompt.calls_once or piece.finish_reason == "stop")
            yield replace(
                piece,
                text=part.text + rest.text,
                reasoning=part.reasoning + rest.reasoning,
                calls=calls[:1] if prompt.calls_once else calls,
                finish_reason="tool_calls" if is_over else piece.finish_reason,
            )
            if is_over:
                return


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
