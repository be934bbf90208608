"""What an upstream streams, as an engine's pieces (https://platform.openai.com/docs/api-reference/chat/streaming).

Nobody has checked its JSON, so here `Any` is what it is; what cannot be read as an answer is an `AnswerError`.
"""

import json
import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from pydantic_core import from_json

from hfchat.chat import CallPart
from hfchat.serving.engines.engine import FinishReason, Logprob, Piece, TokenLogprobs
from hfchat.serving.engines.sse import EventReader
from hfchat.serving.engines.upstream_calls import CallAssembler, whole_characters

_DONE = b"[DONE]"
# In lower case: OpenAI's own, and the words of TGI, Mistral, Cohere, Together, Gemini and Anthropic for the same.
_FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "end_turn": "stop",
    "complete": "stop",
    "length": "length",
    "max_tokens": "length",
    "max_length": "length",
    "model_length": "length",
    "tool_calls": "tool_calls",
    "tool_call": "tool_calls",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "safety": "content_filter",
}
_WORD = re.compile(r"[\w.-]{1,40}")
_MAX_CHARACTERS = 16 * 2**20  # in an answer
_MAX_TOKENS = 2**18
_MORE_CHUNKS = 16  # than twice the tokens that were asked for
_LONGEST_TOKEN = 256  # characters; those of known tokenizers have up to 128
_MAX_COUNT = 2**31
_MIN_LOGPROB = -9999.0  # OpenAI's for a token that is as good as impossible; JSON has no infinity
_SURROGATE = re.compile("[\ud800-\udfff]")


class AnswerError(Exception):
    """What came is not an answer in OpenAI's shape. The message completes "it sent ..."."""


class ErrorEvent(Exception):  # noqa: N818 - it is what came, and not what went wrong here
    """The upstream gave up in the middle of its stream, and said why; `body` is the JSON of that."""

    def __init__(self, body: Any):
        super().__init__("the upstream gave up")
        self.body = body


class StreamedAnswer:
    """Reads one answer, of a chat or a completion, from the packets of its stream.

    Attributes:
        finish_reason: Why it ended, once it has.
        done: Whether the stream has said that nothing else comes.
        is_cut: Whether it was ended here, because its upstream did not end it.

    Args:
        max_tokens: As asked for; an answer that goes far beyond is cut, and ends with "length". None is no limit.
        offered: Names of the functions that it may call.
    """

    def __init__(self, max_tokens: int | None = None, offered: Collection[str] = ()):
        self.finish_reason: FinishReason | None = None
        self.done = False
        self.is_cut = False
        self._max_tokens = max_tokens
        self._characters_read = 0
        self._events = EventReader()
        self._tokens = 0
        self._usage: dict[str, int] = {}
        self._text, self._reasoning, self._calls = _Characters(), _Characters(), CallAssembler(offered)

    def push(self, packet: bytes) -> list[Piece]:
        """The pieces that this packet completes; what came without log probabilities is one.

        Raises:
            AnswerError: If something in it is not a chunk of an answer.
            ErrorEvent: If the upstream says that it failed.
            EventError: If an event is too large.
        """
        pieces: list[Piece] = []
        text, reasoning, chunks = "", "", 0
        calls: list[CallPart] = []
        for event in self._events.push(packet):
            if event == _DONE:
                self.done = True
                break
            try:
                delta = self._read(parsed(event))
            except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
                raise AnswerError("an event that is not a chunk of an answer") from error

            # A server that ignores `max_tokens` is stopped here; one that never stops has failed.
            count = len(delta.logprobs) or bool(delta.characters)
            if self._is_too_long(delta.characters, count):
                self.finish_reason, self.is_cut = "length", True
                break
            self._count(delta.characters, count)

            # Tokens with log probabilities stay apart; all else is one piece, however it came.
            if delta.logprobs:
                pieces += _pieces(delta.text, delta.logprobs)
            else:
                text += delta.text
                chunks += count
            reasoning += delta.reasoning
            calls += delta.calls
        if text or chunks or reasoning or calls:
            pieces.append(Piece(text, chunks, reasoning=reasoning, calls=tuple(calls)))
        return pieces

    def last(self) -> Piece:
        """The piece that ends the answer, with what the usage tells of its tokens.

        Chunks were counted as tokens until now. If there were more chunks than tokens, this takes the difference back.
        """
        counted = self._usage.get("completion_tokens", self._tokens)
        if self.is_cut and self._max_tokens is not None:
            counted = self._max_tokens
        text, calls = _apart(self._calls.close())
        reason = self.finish_reason
        if reason in ("stop", "tool_calls"):  # some say that it has stopped where it calls
            reason = "tool_calls" if self._calls.count else "stop"
        return Piece(
            self._text.rest() + text,
            counted - self._tokens,
            reason,
            prompt_tokens=self._usage.get("prompt_tokens"),
            reasoning=self._reasoning.rest(),
            calls=tuple(calls),
        )

    def _is_too_long(self, characters: int, tokens: int) -> bool:
        """Whether so much more is too much. A chunk counts as a token, but some servers send less than that in one."""
        if self._max_tokens is None:
            return False
        most = 2 * self._max_tokens + _MORE_CHUNKS
        return self._tokens + tokens > most or self._characters_read + characters > most * _LONGEST_TOKEN

    def _count(self, characters: int, tokens: int) -> None:
        self._tokens += tokens
        self._characters_read += characters
        if self._tokens > _MAX_TOKENS or self._characters_read > _MAX_CHARACTERS:
            raise AnswerError("an answer without an end")

    def _read(self, chunk: Any) -> "_Delta":
        """What a chunk adds."""
        if chunk.get("error") or chunk.get("object") == "error":  # the latter is vLLM's older shape
            raise ErrorEvent(chunk)
        if counts := chunk.get("usage"):
            self._usage |= {
                name: counts[name] for name in ("prompt_tokens", "completion_tokens") if _is_count(counts, name)
            }
        added = _Delta()
        for choice in chunk.get("choices") or ():
            if choice.get("index"):  # only one was asked for
                continue
            delta = choice.get("delta") or {}
            content, thought, fragments = _text(choice), _thought(delta), _calls(delta)
            text, calls = _apart(self._calls.push(fragments))
            is_text = bool(content) or not (thought or fragments)  # only text has log probabilities
            named = choice.get("logprobs") if is_text else None
            added = _Delta(
                # What was no call after all came before the text of this chunk.
                text=text + self._text.push(content),
                reasoning=self._reasoning.push(thought),
                calls=calls,
                logprobs=list(_logprobs(named)) if named else [],
                characters=len(content) + len(thought) + sum(len(str(fragment)) for fragment in fragments),
            )
            self.finish_reason = _finish_reason(choice) or self.finish_reason
        return added


@dataclass(frozen=True)
class _Delta:
    """What a chunk adds to an answer; `characters` is how much of it came, whether or not it is handed out yet."""

    text: str = ""
    reasoning: str = ""
    calls: Sequence[CallPart] = ()
    logprobs: Sequence[TokenLogprobs] = ()
    characters: int = 0


class _Characters:
    """Makes whole characters of a text: JSON can spell them in two halves, which may come apart."""

    def __init__(self) -> None:
        self._half = ""  # of a surrogate pair, whose other half is in the next chunk

    def push(self, text: str) -> str:
        text = self._half + text
        self._half = ""
        if not _SURROGATE.search(text):
            return text
        if "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return whole_characters(text)

    def rest(self) -> str:
        """What is left at the end."""
        return "\ufffd" if self._half else ""


def _apart(closed: Sequence[CallPart | str]) -> tuple[str, list[CallPart]]:
    """The texts and the calls of a `CallAssembler`."""
    text = "".join(part for part in closed if isinstance(part, str))
    return text, [part for part in closed if isinstance(part, CallPart)]


def parsed(content: bytes) -> Any:
    """The JSON of an upstream.

    Raises:
        ValueError: If it is not valid JSON, or too deep for Python.
    """
    try:
        return from_json(content)  # in a third of the time of json, which however knows halves of characters
    except ValueError:
        pass
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def _is_count(counts: Any, name: str) -> bool:
    count = counts.get(name)
    return isinstance(count, int) and 0 <= count < _MAX_COUNT


def _text(choice: Any) -> str:
    """The text of a choice: a string, a list of parts, or null for an empty text."""
    if "text" in choice:
        text = choice["text"]
    elif "delta" in choice:
        text = (choice["delta"] or {}).get("content")
    elif "finish_reason" in choice:  # the last chunk of some has nothing else
        text = ""
    else:
        raise KeyError("delta")
    if isinstance(text, list):
        text = "".join(part["text"] for part in text if part.get("type") == "text")
    if not isinstance(text, str | None):
        raise TypeError("a text that is not a string")
    return text or ""


def _thought(delta: Any) -> str:
    """The reasoning of a delta: vLLM and others have a field for it, Mistral parts of the content."""
    thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
    if not isinstance(thought, str):
        raise TypeError("a reasoning that is not a string")
    content = delta.get("content")
    parts = content if isinstance(content, list) else []
    thoughts = [part["thinking"] for part in parts if part.get("type") == "thinking"]
    texts = chain.from_iterable([{"text": part}] if isinstance(part, str) else part for part in thoughts)
    return thought + "".join(part["text"] for part in texts)


def _calls(delta: Any) -> Sequence[Any]:
    """The fragments of tool calls of a delta; an older shape has only one call."""
    older = delta.get("function_call")
    calls = delta.get("tool_calls") or ([{"function": older}] if older else [])
    if not isinstance(calls, list):
        raise TypeError("tool calls that are not a list")
    return calls


def _finish_reason(choice: Any) -> FinishReason | None:
    """Why the answer ends with this choice; None, and for several servers an empty text, while it goes on."""
    reason = choice.get("finish_reason")
    if not reason:
        return None
    if not isinstance(reason, str) or reason.lower() not in _FINISH_REASONS:
        word = repr(reason) if isinstance(reason, str) and _WORD.fullmatch(reason) else "something other than a word"
        raise AnswerError(f"an answer that ended with {word}")
    return _FINISH_REASONS[reason.lower()]


def _logprobs(logprobs: Any) -> Iterator[TokenLogprobs]:
    for token in logprobs.get("content") or ():  # a chat has these
        yield TokenLogprobs(_logprob(token), tuple(_logprob(top) for top in token.get("top_logprobs") or ()))
    tokens = logprobs.get("tokens") or ()  # a completion has these
    tops = logprobs.get("top_logprobs") or [None] * len(tokens)
    for token, logprob, top in zip(tokens, logprobs.get("token_logprobs") or (), tops, strict=True):
        named = sorted((top or {}).items(), key=lambda item: -item[1])
        others = tuple(_logprob({"token": name, "logprob": value}) for name, value in named)
        yield TokenLogprobs(_logprob({"token": token, "logprob": logprob}), others)


def _logprob(token: Any) -> Logprob:
    text, logprob, code = whole_characters(token["token"]), float(token["logprob"]), token.get("bytes")
    if math.isnan(logprob) or logprob == math.inf:
        raise AnswerError("a log probability that is not a number")
    if not isinstance(code, list | None):
        raise AnswerError("a token whose bytes are not a list")
    return Logprob(text, max(logprob, _MIN_LOGPROB), text.encode() if code is None else bytes(code))


def _pieces(text: str, logprobs: Sequence[TokenLogprobs]) -> list[Piece]:
    """A piece for each token, so that each has its own place in the text; one piece if the tokens are not the text."""
    tokens = [token.chosen.token for token in logprobs]
    if "".join(tokens) != text:
        return [Piece(text, len(logprobs), logprobs=tuple(logprobs))]
    return [Piece(token, 1, logprobs=(logprob,)) for token, logprob in zip(tokens, logprobs, strict=True)]
