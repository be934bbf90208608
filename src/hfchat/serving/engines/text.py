"""From tokens to the text that may be sent: whole characters only, and nothing of a stop string."""

import codecs
import json
import re
from collections.abc import Collection, Sequence

from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

_REPLACEMENT = "\ufffd"  # what a decoder puts in place of bytes that are not a character
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")  # SentencePiece's fallback to bytes
_MOST_HELD = 64  # tokens
_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}


def _decoders(tokenizer: Tokenizer) -> dict[str, list[dict]]:
    """The decoders that a tokenizer applies one after the other, by their types."""
    decoder = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder else {}
    decoders: dict[str, list[dict]] = {}
    for part in filter(None, decoder.get("decoders", [decoder])):
        decoders.setdefault(part["type"], []).append(part)
    return decoders


def _byte_level(token: str) -> bytes:
    """The bytes of a token of byte-level BPE; one that was added to the vocabulary stands for its own text."""
    try:
        return bytes(_BYTES[character] for character in token)
    except KeyError:
        return token.encode()


class IncrementalDecoder:
    """Decodes an answer token by token; the parts joined are the text of all tokens, special ones left out, except for
    those that are to be kept: the marks of calls and reasoning.

    That holds for any tokens, with U+FFFD where the whole decoding has it. Only the very end may differ: an answer
    that reaches its length often ends in half a character, which is dropped.

    tokenizers' own `DecodeStream` (0.23) fails where bytes are tokens ("Invalid prefix encountered", in 27 of 30
    random answers of a SentencePiece model), and takes eight times as long for byte-level tokens.

    Where bytes are tokens of their own (SentencePiece's byte fallback), the whole decoding turns a run of them into
    characters only if the whole run is valid, so a run is held back until it is over.
    """

    def __init__(self, tokenizer: Tokenizer, kept: Collection[int] = ()):
        self._tokenizer = tokenizer
        special = {id: token.content for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._special = special.keys() - kept
        self._kept = {id: content for id, content in special.items() if id in kept}
        kinds = _decoders(tokenizer)
        # Byte-level tokens are bytes and nothing else, so they are decoded without looking back.
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace") if set(kinds) == {"ByteLevel"} else None
        self._falls_back = "ByteFallback" in kinds
        # Texts that become others; tokens may hold parts of them.
        self._replaced = [part["pattern"].get("String", "") for part in kinds.get("Replace", ())]
        self._before: list[int] = []  # tokens whose text is out; a decoder may treat the beginning in its own way
        self._held: list[int] = []  # tokens whose text is not out yet
        self._replacements = 0  # how many come next, and are dropped if nothing else comes after them

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is still in parts."""
        if token in self._special or (text := self._tokenizer.id_to_token(token)) is None:
            return ""
        if token in self._kept:
            return self.flush() + self._kept[token]
        if self._utf8 is not None:
            return self._out(self._utf8.decode(_byte_level(text)))
        self._held.append(token)
        if self._falls_back and _BYTE_TOKEN.fullmatch(text):
            return ""
        if self._replaced and len(self._held) < _MOST_HELD:
            text = self._tokenizer.decode(self._held)
            if any(_overlap(text, replaced) for replaced in self._replaced):
                return ""
        return self._out(self._decode_held())

    def flush(self) -> str:
        """What is still held back. A character that was never completed is dropped."""
        return self._out(self._decode_held()) if self._held else ""

    def _decode_held(self) -> str:
        before = self._tokenizer.decode(self._before)
        text = self._tokenizer.decode(self._before + self._held)
        self._before, self._held = self._held, []
        return text[len(before) :]

    def _out(self, text: str) -> str:
        whole = text.rstrip(_REPLACEMENT)
        if whole:
            whole = _REPLACEMENT * self._replacements + whole
            self._replacements = 0
        self._replacements += len(text) - len(text.rstrip(_REPLACEMENT))
        return whole


class TokenBytes:
    """Tells the bytes that each token stands for; they need not be whole characters."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._added = {id: token.content for id, token in tokenizer.get_added_tokens_decoder().items()}
        self._byte_level = "ByteLevel" in _decoders(tokenizer)

    def __call__(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        text = self._tokenizer.id_to_token(token)
        if text is None:  # a model may have more embeddings than its tokenizer has tokens
            return b""
        if self._byte_level:
            return _byte_level(text)
        if byte := _BYTE_TOKEN.fullmatch(text):
            return bytes.fromhex(byte[1])
        return text.replace("\u2581", " ").encode()


class StopStrings:
    """Cuts a streamed text before the stop string that is complete first; what may become one is held back."""

    def __init__(self, stops: Sequence[str]):
        self._stops = stops
        self._held = ""
        self.matched = False

    def push(self, text: str) -> str:
        """The text that is safe to send. Once `matched` is true, the answer has ended."""
        if not self._stops:
            return text
        text = self._held + text
        matches = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if matches:
            self.matched, self._held = True, ""
            _, start = min(matches)  # the one that is complete first, so the split of the text does not matter
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
