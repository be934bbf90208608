"""Chats with tools, or with a format of the answer, under one model's tokenizer: as ids, bound, and read."""

import copy
from collections.abc import Collection, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessor

from hfchat.chat import CallPart, Chat, Json
from hfchat.chat_template import set_chat_template
from hfchat.errors import UserError
from hfchat.evaluation.encoding import answer_of
from hfchat.response_template import response_style
from hfchat.structured.grammars import GrammarError, Thinking, answer_grammar, special_tokens
from hfchat.structured.masks import GrammarCompiler, Matcher, MatcherError
from hfchat.structured.parsing import AnswerParser, begun_answer
from hfchat.token_ids import encode_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SWITCHES = ("enable_thinking",)  # variables of chat templates that turn reasoning on
_PROMPT_END = 64  # tokens at the end of a prompt, of which the last ones may begin the answer


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
        tools = [_shown(tool) for tool in chat.tools]
        return encode_conversation(self.tokenizer, chat.messages, tools or None, add_generation_prompt=True)

    def encode_answer(self, chat: Chat, answer: Json, place: str) -> tuple[list[int], list[int]]:
        """The ids of a chat, and those of an answer to it, a message, up to its end-of-turn token.

        Raises:
            UserError: As `hfchat.evaluation.encoding.encode_target`.
        """
        tools = [_shown(tool) for tool in chat.tools]
        context = self.encode(chat)
        whole = encode_conversation(self.tokenizer, [*chat.messages, answer], tools or None)
        return context, answer_of(self.tokenizer, whole, context, place)

    def grammar(self, chat: Chat, ids: Sequence[int]) -> str | None:
        """What the answer may be, see `answer_grammar`.

        Args:
            chat: What is asked.
            ids: The same, from `encode`.
        """
        return answer_grammar(chat, self.style, self._thinking(ids), self._specials)

    def _thinking(self, ids: Sequence[int]) -> Thinking:
        if self.style is None or self.style.thinking is None:
            return "no"
        # The prompt itself may have begun the reasoning, or begun and ended it.
        opening, closing = self.style.thinking
        begun = begun_answer(self.style.template, self._end(ids))
        if opening.strip() in begun and closing.strip() not in begun:
            return "open"
        has_switch = any(name in (self.tokenizer.chat_template or "") for name in _SWITCHES)
        return "may" if has_switch and closing.strip() not in begun else "no"

    @property
    def kept(self) -> frozenset[int]:
        """Special tokens that answers are read by: their text stays in them."""
        return frozenset() if self.style is None else self.style.special_tokens(self.tokenizer, with_calls=True)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, which `read` takes."""
        dropped = set(self._specials.values()) - self.kept
        return self.tokenizer.decode([id for id in ids if id not in dropped])

    def read(self, chat: Chat, ids: Sequence[int], answer: str) -> tuple[str, tuple[CallPart, ...]]:
        """What an answer says, without its reasoning, and what it calls.

        Args:
            chat: What was asked.
            ids: The same, from `encode`.
            answer: Its text, with that of the `kept` tokens.
        """
        parser = AnswerParser(self.tokenizer, self.style, chat.functions, self._end(ids))
        parts = [parser.push(answer), parser.finish()]
        calls = chain.from_iterable(part.calls for part in parts)
        return "".join(part.text for part in parts), tuple(calls)

    def _end(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids[-_PROMPT_END:])


def _shown(tool: Json) -> Json:
    """A tool as the template writes it: `strict` is for who binds the answer, and not for the model."""
    function = {key: value for key, value in tool["function"].items() if key != "strict"}
    return {**tool, "function": function}


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
        if matcher.done:  # by its grammar: the token that ends the answer is still to come
            ends = torch.zeros(matcher.vocabulary, dtype=torch.bool)
            ends[self._ends] = True
            return ends
        try:
            return matcher.allowed()
        except MatcherError as error:
            raise UserError(f"mask: an answer cannot be bound ({error}); simplify the schema") from error

    def _go_on(self, tokens: Sequence[int]) -> None:
        """Take the last token of each answer; those that have ended are followed no longer."""
        self._matchers = {row: one for row, one in self._matchers.items() if tokens[row] not in self._ends}
        for row, matcher in self._matchers.items():
            matcher.accept(tokens[row])
