"""Chats with tools, or with a format of the answer, under one model's tokenizer: as ids, bound, and read."""

import copy
from collections.abc import Collection, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessor

from hfchat.chat import CallPart, Chat, Json
from hfchat.chat_template import set_chat_template, thinking_switch
from hfchat.errors import UserError
from hfchat.evaluation.encoding import answer_of
from hfchat.response_template import response_style
from hfchat.structured.grammars import GrammarError, answer_grammar
from hfchat.structured.masks import GrammarCompiler, Matcher, MatcherError
from hfchat.structured.parsing import AnswerParser, end_of_prompt, thinking_at
from hfchat.token_ids import encode_conversation, special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ChatReader:
    """Encodes chats, says what their answers may be, and takes answers apart, as a server of the model does.

    Args:
        tokenizer: The model's.
        project_template: Use the project's chat template where the model's own writes no tools.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", project_template: bool = False):
        self.tokenizer = tokenizer
        self.style = response_style(tokenizer)
        if project_template and not self._has_calls:
            self.tokenizer = copy.deepcopy(tokenizer)
            set_chat_template(self.tokenizer, system_message="")
            self.style = response_style(self.tokenizer)
        self._specials = special_tokens(self.tokenizer)
        self._switch = thinking_switch(self.tokenizer.chat_template or "")

    @property
    def _has_calls(self) -> bool:
        """Whether the template writes tools, and it is known how the model writes calls."""
        return self.style is not None and self.style.has_calls and "tools" in (self.tokenizer.chat_template or "")

    def refusal(self, chats: Sequence[Chat]) -> str | None:
        """Why the model cannot be asked these; None if it can."""
        if any(chat.functions for chat in chats) and not self._has_calls:
            return (
                "its chat template writes no tools, or it is not known how it writes calls; set `project_template` to "
                "ask it with the project's"
            )
        try:
            for chat in chats:
                answer_grammar(chat, self.style, "no", self._specials)
        except GrammarError as error:
            return f"{error.field}: {error}"
        return None

    def encode(self, chat: Chat) -> list[int]:
        """The ids of a chat up to the beginning of its answer."""
        tools = chat.shown_tools or None
        return encode_conversation(self.tokenizer, chat.messages, tools, add_generation_prompt=True)

    def encode_answer(self, chat: Chat, answer: Json, place: str) -> tuple[list[int], list[int]]:
        """The ids of a chat, and those of an answer to it, a message, up to its end-of-turn token.

        Raises:
            UserError: As `hfchat.evaluation.encoding.encode_target`.
        """
        context = self.encode(chat)
        whole = encode_conversation(self.tokenizer, [*chat.messages, answer], chat.shown_tools or None)
        return context, answer_of(self.tokenizer, whole, context, place)

    def grammar(self, chat: Chat, ids: Sequence[int]) -> str | None:
        """What the answer may be, see `answer_grammar`.

        Args:
            chat: What is asked.
            ids: The same, from `encode`.
        """
        may_think = self._switch is not None
        thinking = thinking_at(self.style, end_of_prompt(self.tokenizer, ids), may_think)
        return answer_grammar(chat, self.style, thinking, self._specials)

    @property
    def kept(self) -> frozenset[int]:
        """Special tokens that answers are read by: their text stays in them."""
        return frozenset() if self.style is None else self.style.special_tokens(self.tokenizer, with_calls=True)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, which `read` takes."""
        dropped = self._specials.keys() - self.kept
        return self.tokenizer.decode([id for id in ids if id not in dropped])

    def read(self, chat: Chat, ids: Sequence[int], answer: str) -> tuple[str, tuple[CallPart, ...]]:
        """What an answer says, without its reasoning, and what it calls.

        Args:
            chat: What was asked.
            ids: The same, from `encode`.
            answer: Its text, with that of the `kept` tokens.
        """
        parser = AnswerParser(self.tokenizer, self.style, chat.functions, end_of_prompt(self.tokenizer, ids))
        parts = [parser.push(answer), parser.finish()]
        calls = chain.from_iterable(part.calls for part in parts)
        return "".join(part.text for part in parts), tuple(calls)


class GrammarMask(LogitsProcessor):
    """Lets each answer of a batch go on by its grammar alone, and end where it may end.

    Args:
        compiler: The one for the model.
        grammars: One for each row; None for any text.
        prompt_length: Tokens of the prompts with their padding.
        ends: Tokens that end an answer; what follows them is padding.
    """

    def __init__(
        self,
        compiler: GrammarCompiler,
        grammars: Sequence[str | None],
        prompt_length: int,
        ends: Collection[int],
    ):
        self._matchers = {row: compiler.matcher(text) for row, text in enumerate(grammars) if text is not None}
        self._prompt_length = prompt_length
        self._ends = sorted(ends)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if input_ids.shape[1] > self._prompt_length:
            self._go_on(input_ids[:, -1].tolist())
        # Rows without a grammar, and those that have ended, stay as they are.
        masked = scores.clone()
        for row, matcher in self._matchers.items():
            masked[row].masked_fill_(~self._allowed(matcher).to(scores.device), -torch.inf)
        return masked

    def _allowed(self, matcher: Matcher) -> torch.Tensor:
        """The tokens that may come next, `[vocabulary]` of bool."""
        try:
            return matcher.allowed()
        except MatcherError as error:
            raise UserError(f"mask: an answer cannot be bound ({error}); simplify the schema") from error

    def _go_on(self, tokens: Sequence[int]) -> None:
        """Take the last token of each answer; those that have ended are followed no longer."""
        self._matchers = {row: one for row, one in self._matchers.items() if tokens[row] not in self._ends}
        for row, matcher in self._matchers.items():
            matcher.accept(tokens[row])
