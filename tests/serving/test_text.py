"""Incremental decoding and stop strings, as properties over random texts, tokens and splits."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models

from hfchat.serving.text import IncrementalDecoder, StopStrings, TokenBytes

TEXTS = [
    "Plain words, and a number: 42.",
    "Emoji: 🙂👩‍👩‍👧‍👦🏳️‍🌈 and on.",
    "日本語と中文 mixed with العربية and हिन्दी",
    "e\u0301 combining, \u200b invisible, \ufffd itself",
    "code: `if x:\n\treturn '𝕏'`\n\n",
]


@pytest.mark.parametrize("text", TEXTS)
def test_parts_join_to_the_text(tiny_tokenizer, text):
    tokens = tiny_tokenizer.encode(text, add_special_tokens=False)
    assert len(tokens) >= len(text.encode()) * (0.5 if text.isascii() else 0.9)  # its characters are split indeed
    decoder = IncrementalDecoder(tiny_tokenizer.backend_tokenizer)
    parts = [decoder.push(token) for token in tokens]
    assert "".join(parts) + decoder.flush() == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in parts)


def test_a_character_cut_by_the_limit_is_dropped(tiny_tokenizer):
    tokens = tiny_tokenizer.encode("ok 🙂", add_special_tokens=False)
    decoder = IncrementalDecoder(tiny_tokenizer.backend_tokenizer)
    assert "".join(decoder.push(token) for token in tokens[:-1]) + decoder.flush() == "ok "


def test_any_bytes_decode_as_they_do_at_once(tiny_tokenizer):
    """Small models emit bytes that are no text: nothing may be lost, doubled or raised for it."""
    generator = random.Random(0)
    for _ in range(300):
        tokens = [generator.randrange(len(tiny_tokenizer)) for _ in range(generator.randrange(1, 40))]
        decoder = IncrementalDecoder(tiny_tokenizer.backend_tokenizer)
        streamed = "".join(decoder.push(token) for token in tokens) + decoder.flush()
        whole = tiny_tokenizer.decode(tokens, skip_special_tokens=True)
        assert streamed.rstrip("\ufffd") == whole.rstrip("\ufffd"), tokens


def test_stops_do_not_depend_on_the_split():
    generator = random.Random(0)
    for _ in range(3000):
        text = "".join(generator.choice("ab ") for _ in range(generator.randrange(0, 14)))
        stops = ["".join(generator.choice("ab ") for _ in range(generator.randrange(1, 5))) for _ in range(2)]
        cuts = sorted(generator.randrange(len(text) + 1) for _ in range(4))
        filter = StopStrings(stops)
        sent = ""
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            sent += filter.push(text[start:end])
            # what is sent never has to be taken back
            assert not any(stop in sent for stop in stops)
            if filter.matched:
                break
        else:
            sent += filter.flush()
        ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
        expected = text[: min(ends)[1]] if ends else text
        assert filter.matched == bool(ends)
        assert sent == expected, (text, stops, cuts)


def test_the_bytes_of_tokens_join_to_the_text(tiny_tokenizer):
    token_bytes = TokenBytes(tiny_tokenizer.backend_tokenizer)
    text = "the quick 🙂 日本語\n\t é<|im_end|>"
    ids = tiny_tokenizer.encode(text)
    assert b"".join(map(token_bytes, ids)) == text.encode()
    assert any(len(token_bytes(id).decode(errors="ignore")) == 0 for id in ids)  # parts of characters
    assert token_bytes(10**6) == b""  # an embedding without a token


def test_the_bytes_of_sentencepiece_tokens():
    backend = Tokenizer(models.BPE({"▁a": 0, "<0xF0>": 1, "b": 2}, []))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    assert [TokenBytes(backend)(id) for id in range(3)] == [b" a", b"\xf0", b"b"]
