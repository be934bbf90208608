"""What comes out of a stream is what would come out of the whole text, however the text is split."""

import asyncio
import random

import pytest

from hfchat.safety.finders import LexiconFinder, PIIFinder
from hfchat.safety.guards import AnswerStream
from hfchat.safety.streams import JudgedStream, SpanStream, Watch

WORDS = ["shit", "s h i t", "s", "h", "i", "t", "ѕ", "һ", "sh", "it", "*", "$", "@", "1", "0", "a", "I ", "wor", "d"]
JOINTS = [
    " ",
    " ",
    " ",
    "  ",
    "\n",
    ".",
    ". ",
    ", ",
    "-",
    "/",
    ":",
    "\xa0",
    "\u2013",
    "…",
    "½",
    "\u200b",
    "\u0301",
    "，",
]
PERSONAL = [
    "jane@gmail.com", "@gmail.com", "jane.doe", "jörg@größe", ".de", "git@github.com:o/n", "联系", "in 1998 ",
    "650 253 0000", "(650) 253-0000", "+49 30 227 32152", " 650", "253", "-0000", "212 020 7946 0018", "0201 ",
    "x12", " ext. 7", " x", "4111 1111 1111 1111", "4111 1111", "1111", "93.184.215.14", "93.184", ".215.14",
    "2a00:1450:4001:830::200e", "::", "2a00:", "version ", "tel ", "call me at ", "tel at@no.me ",
    "(555) 555-0100", "0000 0000 0000 0000", "email@example.com", "192.0.2.1",
    "the weather was so nice then that they all went home ",
]  # fmt: skip
CHARACTERS = "sSh1iIt!$*@. -\n\u200b4567890()+x:"


def texts(seed, count):
    rng = random.Random(seed)
    for _ in range(count):
        if rng.random() < 0.2:
            yield rng, "".join(rng.choices(CHARACTERS, k=rng.randrange(60)))
        else:
            yield rng, "".join(rng.choices(WORDS + JOINTS + PERSONAL, k=rng.randrange(1, 14)))


def split(rng, text):
    if rng.random() < 0.3:
        return list(text)
    cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(6)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def run(stream, parts):
    """What comes out, part by part, and at the end."""

    async def body():
        outputs = []
        for part in parts:
            outputs.append(await stream.push(part))
            if stream.blocked:
                return outputs
        return [*outputs, await stream.finish()]

    return asyncio.run(body())


def redacted(text, finder):
    parts, position = [], 0
    for span in finder.find(text):
        parts += [text[position : span.start], f"<{span.category}>"]
        position = span.end
    return "".join([*parts, text[position:]])


@pytest.fixture(scope="module")
def finders():
    return LexiconFinder(), PIIFinder()


def redact(category):
    return f"<{category}>"


def test_what_is_streamed_is_what_is_left_of_the_whole_text(finders):
    changed = 0
    for rng, text in texts(seed=1, count=1500):
        for finder in finders:
            expected = redacted(text, finder)
            stream = SpanStream(finder, redact, whole=False)
            parts = split(rng, text)
            assert "".join(run(stream, parts)) == expected, (text, parts)
            assert stream.found == [span.category for span in finder.find(text)]
            changed += expected != text
    assert changed > 500


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("They had left by then, but my phone number is on 6502530000, ", ["phone"]),
        ("They had left by then, but my old number is 6502530000, as was said. ", []),
        ("It has been so since the firmware     93.184.215.14 came out. ", []),
        ("Or, since nothing is before it, it is 93.184.215.14 that came. ", ["ip"]),
    ],
)
def test_what_stands_before_a_number_counts_though_it_is_out(text, kinds):
    stream = SpanStream(PIIFinder(), redact, whole=False)
    run(stream, list(text))
    assert stream.found == kinds == [span.category for span in PIIFinder().find(text)]


def test_a_block_ends_before_the_first_that_the_whole_text_has(finders):
    blocked = 0
    for rng, text in texts(seed=2, count=800):
        for finder in finders:
            spans = finder.find(text)
            stream = SpanStream(finder, None, whole=False)
            assert "".join(run(stream, split(rng, text))) == (text[: spans[0].start] if spans else text), text
            assert stream.blocked == bool(spans)
            blocked += stream.blocked
    assert blocked > 200


def test_nothing_of_a_text_that_is_blocked_as_a_whole_comes_out(finders):
    for rng, text in texts(seed=3, count=200):
        stream = SpanStream(finders[0], None, whole=True)
        *early, last = run(stream, split(rng, text))
        assert not any(early)
        assert last == ("" if finders[0].find(text) else text)


def test_only_the_last_word_of_prose_is_held_back(finders):
    text = "The committee, which met in March, has read all 12 reports; its chair thanked those who had written them. "
    for finder in finders:
        stream = SpanStream(finder, redact, whole=False)
        outputs = run(stream, list(text))
        held = [i + 1 - len("".join(outputs[: i + 1])) for i in range(len(text))]
        assert max(held) <= len("committee,")


class Script:
    """A judge that flags each text with the word `bad` in it, and counts."""

    def __init__(self):
        self.seen = []

    async def __call__(self, texts):
        self.seen += texts
        return [["bad"] if "bad" in text else [] for text in texts]


SENTENCES = [
    "One. ",
    "Is it? ",
    'He said "no." ',
    "Wait... ",
    "一。",
    "二！？",
    "line\n\n",
    "v1.2 is out ",
    "bad ",
    "end",
]


def test_sentences_are_the_same_however_they_come():
    rng = random.Random(4)
    for _ in range(500):
        text = "".join(rng.choices(SENTENCES, k=rng.randrange(8)))
        judges = Script(), Script()
        streams = [JudgedStream(judge, whole=False) for judge in judges]
        outputs = [
            "".join(run(stream, parts)) for stream, parts in zip(streams, ([text], split(rng, text)), strict=True)
        ]
        assert outputs[0] == outputs[1], text
        if "bad" not in text:  # what follows it in the same part is judged with it
            assert judges[0].seen == judges[1].seen, text
        assert streams[0].blocked == streams[1].blocked == ("bad" in text)
        assert "bad" not in outputs[0]
        assert outputs[0] == text or streams[0].blocked


def test_a_sentence_comes_out_when_the_next_begins():
    judge = Script()
    outputs = run(JudgedStream(judge, whole=False), ["Hi", " you. ", "How", " are bad", " things? ", "I"])
    assert outputs == ["", "", "Hi you. ", "", "", ""]
    assert judge.seen == ["Hi you. ", "Hi you. How are bad things? "]


def test_a_whole_text_is_judged_once_and_held_until_then():
    judge = Script()
    assert run(JudgedStream(judge, whole=True), ["Fine. ", "So far"]) == ["", "", "Fine. So far"]
    assert judge.seen == ["Fine. So far"]
    assert run(JudgedStream(judge, whole=True), ["Fine. ", "bad"]) == ["", "", ""]


def test_a_watch_holds_nothing_and_tells_at_the_end():
    stream = Watch(Script())
    assert run(stream, ["ba", "d", " one"]) == ["ba", "d", " one", ""]
    assert (stream.blocked, stream.found) == (False, ["bad"])


def test_an_empty_text_is_not_judged():
    judge = Script()
    for stream in (Watch(judge), JudgedStream(judge, whole=True), JudgedStream(judge, whole=False)):
        assert run(stream, ["", ""]) == ["", "", ""]
    assert judge.seen == []


def test_no_guards_change_nothing():
    assert run(AnswerStream([]), ["a", "b"]) == ["a", "b", ""]
