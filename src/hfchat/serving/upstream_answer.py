"""What an upstream streams, as an engine's pieces (https://platform.openai.com/docs/api-reference/chat/streaming)."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hfchat.serving.engine import FinishReason, Logprob, Piece, TokenLogprobs
from hfchat.serving.sse import EventReader

_DONE = b"[DONE]"
_FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content_filter",
    "eos_token": "stop",  # TGI's own words for `stop`
    "stop_sequence": "stop",
}
_SURROGATE = re.compile("[\ud800-\udfff]")


class AnswerError(Exception):
    """What came is no answer in OpenAI's shape."""


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
    """

    def __init__(self):
        self.finish_reason: FinishReason | None = None
        self.done = False
        self._events = EventReader()
        self._tokens = 0
        self._usage: Mapping[str, int] | None = None
        self._half = ""  # of a surrogate pair, whose other half is in the next chunk

    def push(self, packet: bytes) -> list[Piece]:
        """The pieces that this packet completes; text that came without log probabilities is one.

        Raises:
            AnswerError: If something in it is no chunk of an answer.
            ErrorEvent: If it is an error.
            EventError: If it is no stream of events.
        """
        pieces: list[Piece] = []
        text, tokens = "", 0
        for event in self._events.push(packet):
            if event == _DONE:
                self.done = True
                break
            try:
                more, logprobs = self._read(json.loads(event))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise AnswerError("an event that is no chunk of an answer") from error
            if logprobs:
                pieces += _pieces(more, logprobs)
            elif more:
                text += more
                tokens += 1
        if text:
            pieces.append(Piece(text, tokens))
        self._tokens += sum(piece.tokens for piece in pieces)
        return pieces

    def last(self) -> Piece:
        """The piece that ends the answer, with what the usage tells of its tokens.

        Chunks were counted as tokens until now. If there were more chunks than tokens, this takes the difference back.
        """
        usage = self._usage or {}
        tokens = usage.get("completion_tokens", self._tokens) - self._tokens
        return Piece("\ufffd" if self._half else "", tokens, self.finish_reason, (), usage.get("prompt_tokens"))

    def _read(self, chunk: Any) -> tuple[str, Sequence[TokenLogprobs]]:
        """The text of a chunk, and the log probabilities of its tokens."""
        if chunk.get("error") or chunk.get("object") == "error":  # the latter is vLLM's older shape
            raise ErrorEvent(chunk)
        if chunk.get("usage"):
            counts = {name: chunk["usage"][name] for name in ("prompt_tokens", "completion_tokens")}
            if not all(isinstance(count, int) and count >= 0 for count in counts.values()):
                raise AnswerError("a usage without counts")
            self._usage = counts
        text, logprobs = "", ()
        for choice in chunk.get("choices") or ():
            text = choice["text"] if "text" in choice else choice["delta"].get("content")
            text = self._characters(text or "")
            logprobs = list(_logprobs(choice.get("logprobs") or {}))
            if (reason := choice.get("finish_reason")) is not None:
                if reason not in _FINISH_REASONS:
                    raise AnswerError(f"an answer that ended with {reason!r}")
                self.finish_reason = _FINISH_REASONS[reason]
        return text, logprobs

    def _characters(self, text: str) -> str:
        """Whole characters: JSON can spell them in two halves, which may come apart."""
        text = self._half + text
        self._half = ""
        if not _SURROGATE.search(text):
            return text
        if "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return _joined(text)


def _joined(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _logprobs(logprobs: Mapping[str, Any]) -> Iterator[TokenLogprobs]:
    for token in logprobs.get("content") or ():  # of a chat
        yield TokenLogprobs(_logprob(token), tuple(_logprob(top) for top in token.get("top_logprobs") or ()))
    tokens = logprobs.get("tokens") or ()  # of a completion
    tops = logprobs.get("top_logprobs") or [None] * len(tokens)
    for token, logprob, top in zip(tokens, logprobs.get("token_logprobs") or (), tops, strict=True):
        named = sorted((top or {}).items(), key=lambda item: -item[1])
        others = tuple(Logprob(_joined(name), float(value), _joined(name).encode()) for name, value in named)
        yield TokenLogprobs(Logprob(_joined(token), float(logprob), _joined(token).encode()), others)


def _logprob(token: Mapping[str, Any]) -> Logprob:
    text = _joined(token["token"])
    bytes_ = text.encode() if token.get("bytes") is None else bytes(token["bytes"])
    return Logprob(text, float(token["logprob"]), bytes_)


def _pieces(text: str, logprobs: Sequence[TokenLogprobs]) -> list[Piece]:
    """A piece for each token, so that each has its own place in the text, if the tokens are the text."""
    tokens = [token.chosen.token for token in logprobs]
    if "".join(tokens) != text:
        return [Piece(text, len(logprobs), logprobs=tuple(logprobs))]
    return [Piece(token, 1, logprobs=(logprob,)) for token, logprob in zip(tokens, logprobs, strict=True)]
