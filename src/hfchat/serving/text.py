"""From tokens to the text that may be sent: whole characters only, and nothing of a stop string."""

import json
from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from transformers.convert_slow_tokenizer import bytes_to_unicode

_REPLACEMENT = "\ufffd"  # what the decoder puts for bytes that are no character (yet)


class IncrementalDecoder:
    """Decodes an answer token by token; the parts joined are the text of all tokens, special ones left out."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._sent = 0

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is still in parts."""
        self._ids.append(token)
        text = self._stream.step(self._tokenizer, token) or ""
        self._sent += len(text)
        return text

    def flush(self) -> str:
        """What is still held back. A character that was never completed is dropped."""
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)[self._sent :].rstrip(_REPLACEMENT)
        self._sent += len(text)
        return text


class TokenBytes:
    """The bytes that each token stands for; they need not be whole characters."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._added = {id: token.content for id, token in tokenizer.get_added_tokens_decoder().items()}
        decoder = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder else {}
        kinds = {part["type"] for part in decoder.get("decoders", [decoder]) if part}
        self._bytes = {character: byte for byte, character in bytes_to_unicode().items()}
        self._byte_level = "ByteLevel" in kinds

    def __call__(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        text = self._tokenizer.id_to_token(token)
        if text is None:  # a model may have more embeddings than its tokenizer has tokens
            return b""
        if self._byte_level:
            return bytes(self._bytes[character] for character in text)
        if text.startswith("<0x") and text.endswith(">") and len(text) == 6:  # SentencePiece's fallback to bytes
            return bytes.fromhex(text[3:5])
        return text.replace("\u2581", " ").encode()


class StopStrings:
    """Cuts a streamed text before the stop string that is complete first; what may become one is held back."""

    def __init__(self, stops: Sequence[str]):
        self._stops = stops
        self._held = ""
        self.matched = False

    def push(self, text: str) -> str:
        """The text that is safe to send. Once `matched` is true, the answer has ended."""
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.matched, self._held = True, ""
            _, start = min(found)  # the one that is complete first, so the split of the text does not matter
            return text[:start]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """The held text, when the answer ends by itself."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
