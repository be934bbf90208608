import asyncio
import random

from benchmarks.guards import DISGUISES, Unseen, findings, held, table_of_disguised

from hfchat.safety.finders import LexiconFinder
from hfchat.safety.guards_file import load_guards
from hfchat.safety.streams import SpanStream


def test_findings_are_those_of_the_place():
    guards = load_guards("default")
    for place, action in (("prompt", "flag"), ("answer", "redact")):
        [found] = asyncio.run(findings(guards, "oh shit", place))
        assert (found.place, found.action) == (place, action)


def test_every_disguise_changes_the_word():
    rng = random.Random(0)
    changed = [disguise("shit", rng) for name, disguise in DISGUISES.items() if name != "none"]
    assert len(set(changed)) == len(DISGUISES) - 1
    assert "shit" not in changed


def test_the_plain_words_are_all_found():
    rows = table_of_disguised(["oh shit, porn", "fine"])
    assert "| none | 2 | 100% | 100% |" in rows


def test_held_characters_and_waits_are_counted():
    pieces = ["He", "llo", " wor", "ld", ". "]
    backlog, waits, _ = asyncio.run(held(lambda: SpanStream(Unseen(LexiconFinder()), None, whole=False), pieces))
    assert backlog == [2, 5, 3, 5, 0]
    assert waits == [2, 2, 1, 1, 1, 0, 2, 2, 2, 1, 1, 0, 0]
