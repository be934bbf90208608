"""What comes out of a stream is what would come out of the whole text, however the text is split."""

import asyncio
import random
import threading

import pytest

from hfchat.safety.finders import LexiconFinder, PIIFinder
from hfchat.safety.guards import AnswerStream, Guards
from hfchat.safety.guards_file import LexiconGuard
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


def test_so_it_is_of_long_texts_in_which_little_is_settled(finders):
    rng = random.Random(5)
    for _ in range(25):
        text = "".join(rng.choices([*WORDS[:11], "650 ", "253-", "0000 ", *PERSONAL[:9], "-", "."], k=300))
        for finder in finders:
            stream = SpanStream(finder, redact, whole=False)
            assert "".join(run(stream, split(rng, text))) == redacted(text, finder)


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


class Counting:
    """A finder that counts the characters that it is given to read."""

    def __init__(self, finder):
        self.finder = finder
        self.read = 0

    def find(self, text):
        self.read += len(text)
        return self.finder.find(text)

    def settled(self, text):
        self.read += len(text)
        return self.finder.settled(text)

    def context(self, text, position):
        self.read += position
        return self.finder.context(text, position)


@pytest.mark.parametrize(
    "token", ["abcd", "a", "a ", "12", "1 2 ", "jane@gmail.com ", "jane@gmail.com,", "!", "  ", "\u200b"]
)
def test_what_is_read_of_a_text_grows_as_the_text_does(finders, token):
    for finder in finders:
        read = []
        for count in (1500, 3000):
            counting = Counting(finder)
            stream = SpanStream(counting, redact, whole=False)
            outputs = run(stream, [token] * count)
            assert "".join(outputs) == redacted(token * count, finder)
            # What is kept back until the next reading is no more than a share of what cannot be given out anyway.
            read.append(counting.read / count)
        assert read[1] < 1.5 * read[0] + 100, (token, read)


@pytest.mark.parametrize("text", ["a b " * 25_000 + " " * 5, "a." * 50_000, "a_a" + "_" * 99_000, "a" * 100_000])
def test_a_long_text_is_settled_without_going_over_it_again_and_again(finders, text):
    # Of the first, 20 kB took 13 s, and four times as long for twice as much.
    for finder in finders:
        assert 0 <= finder.settled(text) <= len(text)
        stream = SpanStream(finder, redact, whole=False)
        assert "".join(run(stream, [text])) == text


def test_the_event_loop_does_not_wait_for_a_long_text(finders):
    threads = set()

    class Where(Counting):
        def find(self, text):
            threads.add(threading.current_thread())
            return super().find(text)

    stream = SpanStream(Where(finders[0]), redact, whole=False)
    assert asyncio.run(stream.whole("a" * 10_000)) == "a" * 10_000
    assert threading.main_thread() not in threads
    assert threads


@pytest.mark.parametrize("action", ["flag", "redact", "block"])
def test_nor_for_many_short_ones(action, monkeypatch):
    threads = set()
    find = LexiconFinder.find
    monkeypatch.setattr(
        LexiconFinder, "find", lambda self, text: (threads.add(threading.current_thread()), find(self, text))[1]
    )
    guard = LexiconGuard(type="lexicon", action=action, applies_to=["prompt"])
    verdict = asyncio.run(Guards([guard]).prompt(["oh", "shit"] * 100))
    assert [finding.categories for finding in verdict.findings] == [("obscene",)]
    assert threads
    assert threading.main_thread() not in threads


class Lengths:
    """A judge that counts the characters that it is given, and that finds nothing."""

    def __init__(self):
        self.lengths = []

    async def __call__(self, texts):
        self.lengths.append(sum(map(len, texts)))
        return [[] for _ in texts]


def test_a_prompt_is_judged_once_whatever_is_released_of_answers():
    judge = Lengths()
    text = "a. " * 100_000
    assert asyncio.run(JudgedStream(judge, whole=False).whole(text)) == text
    assert judge.lengths == [len(text)]


def test_a_prompt_with_something_bad_in_it_is_blocked_as_a_whole():
    stream = JudgedStream(Script(), whole=False)
    assert asyncio.run(stream.whole("Fine. All is bad. ")) == ""
    assert (stream.blocked, stream.found) == (True, ["bad"])


def test_not_all_that_comes_at_once_is_copied_at_once():
    judge = Lengths()
    text = "a. " * 2_000
    assert "".join(run(JudgedStream(judge, whole=False), [text])) == text
    assert max(judge.lengths) <= 16 * len(text)


@pytest.mark.parametrize("text", ["\n" * 60_000, "." * 60_000, "。" * 60_000, ". " + '"' * 60_000, " " * 60_000])
def test_the_ends_of_sentences_are_looked_for_once(text):
    # Of newlines, 64,000 took 4 s, four times as long as 32,000.
    assert "".join(run(JudgedStream(Lengths(), whole=False), [text])) == text
    assert "".join(run(JudgedStream(Lengths(), whole=False), [text[:100]] * 20)) == text[:100] * 20


def test_no_guards_change_nothing():
    async def body():
        stream = AnswerStream([])
        return [await stream.push("a"), await stream.push("b"), await stream.finish()]

    assert asyncio.run(body()) == ["a", "b", ""]
