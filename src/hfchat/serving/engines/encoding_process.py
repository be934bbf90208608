"""Encoding in a process of its own, because a model brings programs: its chat template, its regular expressions.

A template may loop for ever or make gigabytes, and a regular expression may take hours for a short text. The process
has no torch (60 MB instead of 300), and there is one for all models, because prompts are encoded one by one.
"""

from collections.abc import Mapping, Sequence
from typing import TypedDict, cast

from transformers import PreTrainedTokenizerBase

from hfchat.bounded_process import BoundedProcess, ProcessStoppedError, Subject, serve
from hfchat.chat import Chat
from hfchat.serving.engines.encoding import EncodedChat, PromptEncoder
from hfchat.serving.engines.engine import EngineError, PromptError, PromptTooLongError

_TIME_LIMIT_S = 10.0  # the longest prompt that a context can hold takes a tenth of a second or so
_MEMORY_BYTES = 2**30  # beyond what the process has when it has read its tokenizers
_process = BoundedProcess("hfchat.serving.engines.encoding_process")


class _Answer(TypedDict, total=False):
    """What the process answers: the ids of a prompt, or the reason why it has no ids to give."""

    ids: list[int]
    may_think: bool
    refused: str  # by the template or the tokenizer
    field: str | None  # that is to blame for it
    too_long: int  # tokens
    failed: str


class ModelEncoder:
    """A model's `PromptEncoder`, in the process that all models share. Its methods block; any thread may call them.

    Args:
        tokenizer: As for `PromptEncoder`.
        vocabulary: As for `PromptEncoder`.
        context: Most tokens of a prompt.

    Raises, from both methods:
        PromptError: As `PromptEncoder`; if the prompt is longer than the context, `PromptTooLongError`.
        EngineError: If it took too much time or memory.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, context: int):
        self._subject = Subject(tokenizer, vocabulary)
        self._context = context
        # A token stands for no more characters than it is written with, so what is longer need not be encoded.
        self._most_characters = context * max(map(len, tokenizer.get_vocab()), default=1)

    def conversation(self, chat: Chat) -> EncodedChat:
        self._check_length(size_of(chat))
        answer = self._encode("conversation", chat)
        return EncodedChat(answer["ids"], answer["may_think"])

    def text(self, text: str | Sequence[int]) -> list[int]:
        if not isinstance(text, str):
            if len(text) > self._context:
                raise self._too_long(f"{len(text)} tokens")
        else:
            self._check_length(len(text))
        return self._encode("text", text if isinstance(text, str) else list(text))["ids"]

    def close(self) -> None:
        """Let the process forget this model when it is next asked something."""
        _process.forget(self._subject)

    def _check_length(self, characters: int) -> None:
        if characters > self._most_characters:
            raise self._too_long(
                f"{characters} characters are more than {self._most_characters // self._context} a token"
            )

    def _too_long(self, length: str) -> PromptTooLongError:
        return PromptTooLongError(f"{length}, but the context holds {self._context}, the answer included.")

    def _encode(self, method: str, source: object) -> _Answer:
        try:
            answer = _process.ask(self._subject, _TIME_LIMIT_S, method, source, self._context)
        except ProcessStoppedError as error:
            raise EngineError(f"the model's chat template or tokenizer took {error} for a prompt") from error
        if "refused" in answer:
            raise PromptError(answer["refused"], answer["field"])
        if "too_long" in answer:
            raise self._too_long(f"{answer['too_long']} tokens")
        if "failed" in answer:
            raise EngineError(answer["failed"])
        return cast("_Answer", answer)


def size_of(chat: Chat) -> int:
    """The characters that a template must write: those of messages, calls and tools, without what it may leave out."""
    messages = [[message["content"], message.get("tool_calls", ())] for message in chat.messages]
    return _characters([messages, chat.tools if chat.functions else ()])


def _characters(value: object) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_characters(key) + _characters(item) for key, item in value.items())
    return sum(map(_characters, value)) if isinstance(value, list | tuple) else 0


def _answer(encoder: PromptEncoder, method: str, source: object, context: int) -> _Answer:
    try:
        encoded = getattr(encoder, method)(source)
    except PromptError as error:
        return {"refused": str(error), "field": error.field}
    except (MemoryError, OverflowError):
        return {"failed": "the model's chat template or tokenizer took too much memory for a prompt"}
    except Exception as error:  # it comes from a template or a tokenizer that nobody here knows
        return {"failed": f"the model's chat template or tokenizer failed: {type(error).__name__}: {error}"[:500]}
    ids, may_think = (encoded.ids, encoded.may_think) if isinstance(encoded, EncodedChat) else (encoded, False)
    return {"ids": ids, "may_think": may_think} if len(ids) <= context else {"too_long": len(ids)}


if __name__ == "__main__":
    serve(PromptEncoder, _answer, _MEMORY_BYTES, _TIME_LIMIT_S)
