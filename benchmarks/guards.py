"""Guards: what they find, what they find wrongly, what they find in disguise, and how long they hold a stream back.

    python benchmarks/guards.py  # the default guards; about a minute
    python benchmarks/guards.py --guards my_guards.yaml --conversations 200

Four Markdown tables are printed:

- found: the share of texts in which a guard finds anything. The red team's prompts and the answers to them are those
  of HH-RLHF, which names no categories; its prompts are attempts to get a bad answer, not always bad by themselves, so
  nobody expects all of them to be found. Prompts by category are those of hfchat's probe of refusals.
- false: hits of the lexicon, without disguises and with them, and of personal data, in a million characters of texts
  that are harmless. What is found in them is printed too, so that one can see which of them are really false.
- disguised: of the words that the lexicon finds in the red team's turns, the share that it still finds when each is
  disguised; without and with the guard's reading of disguises.
- held back: answers streamed in tokens of hfchat's tokenizer. At each token, how many characters are not given out
  yet, and for each character, how many tokens later than without a guard it comes out; and the guard's own time.
  Means, 99th percentiles, and the most.
"""

import argparse
import asyncio
import gzip
import json
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import AutoTokenizer

from hfchat.evaluation.probes import load_probe
from hfchat.safety.finders import Finder, LexiconFinder, PIIFinder
from hfchat.safety.guards import AnswerStream, Finding, Guards
from hfchat.safety.guards_file import DEFAULT, load_guards
from hfchat.safety.lexicon import Lexicon
from hfchat.safety.streams import SpanStream

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
HARMLESS = {
    "Wikipedia (WikiText-2)": "pretrain/wikitext2-valid.txt",
    "plays (Shakespeare)": "pretrain/tinyshakespeare.txt",
    "dialogues (DialogSum)": "sft/dialogsum.dev.jsonl",
    "maths (GSM8K)": "sft/gsm8k.train.jsonl",
    "captions, German (Multi30k)": "translation/multi30k.train.de.gz",
    "captions, French (Multi30k)": "translation/multi30k.train.fr.gz",
}
LETTERS = re.compile(r"[a-z]")
LOOK_ALIKES = str.maketrans("aceiopsxyh", "асеіорѕхуһ")  # Cyrillic
DISGUISES: dict[str, Callable[[str, random.Random], str]] = {
    "none": lambda word, rng: word,
    "a letter as a digit": lambda word, rng: one_of(word, str.maketrans("asioe", "@$103"), rng),
    "a letter starred out": lambda word, rng: word[:1] + "*" + word[2:],
    "letters apart": lambda word, rng: " ".join(word),
    "letters with dots": lambda word, rng: ".".join(word),
    "Cyrillic look-alikes": lambda word, rng: word.translate(LOOK_ALIKES),
    "full-width letters": lambda word, rng: LETTERS.sub(lambda c: chr(ord(c[0]) + 0xFEE0), word),
    "accents": lambda word, rng: LETTERS.sub(lambda c: c[0] + rng.choice("\u0300\u0301\u0308\u0336"), word),
    "zero-width spaces": lambda word, rng: "\u200b".join(word),
    "a letter repeated": lambda word, rng: re.sub(r"[aeiou]", lambda c: c[0] * 4, word, count=1),
    "letters swapped": lambda word, rng: word[0] + word[2] + word[1] + word[3:],
    "a space in the word": lambda word, rng: f"{word[:2]} {word[2:]}",
}


def one_of(word: str, table: dict[int, int], rng: random.Random) -> str:
    """The word with one of the letters in the table replaced, not the first if there is another."""
    places = [i for i, letter in enumerate(word) if ord(letter) in table]
    place = rng.choice(places[1:] or places or [0])
    return word[:place] + word[place].translate(table) + word[place + 1 :]


def read(path: Path) -> str:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8").read()
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return "\n".join(str(value) for line in text.splitlines() for value in json.loads(line).values())
    return text


def red_team(count: int) -> dict[str, list[str]]:
    """The turns of HH-RLHF: what was asked, and the last answers that people preferred and did not."""
    turns: dict[str, list[str]] = {"first turns": [], "all turns": [], "preferred answers": [], "other answers": []}
    for line in read(DATA / "safety" / "hh_rlhf_harmless.first1000.jsonl.gz").splitlines()[:count]:
        pair = json.loads(line)
        asked, answers = {}, {}
        for side, conversation in pair.items():
            parts = re.split(r"\n\n(Human|Assistant): ", conversation)
            asked[side] = [text for role, text in zip(parts[1::2], parts[2::2], strict=True) if role == "Human"]
            answers[side] = parts[-1]
        turns["first turns"].append(asked["chosen"][0])
        turns["all turns"] += asked["chosen"]
        turns["preferred answers"].append(answers["chosen"])
        turns["other answers"].append(answers["rejected"])
    return turns


async def whole_answer(stream: AnswerStream, text: str) -> list[Finding]:
    await stream.push(text)
    await stream.finish()
    return stream.findings


async def findings(guards: Guards, text: str, place: str) -> list[Finding]:
    if place == "prompt":
        return (await guards.prompt([text])).findings
    return await whole_answer(guards.answer(), text)


async def table_of_found(guards: Guards, sets: dict[str, tuple[str, Sequence[str]]]) -> list[str]:
    rows = ["| texts | n | found | what |", "| --- | --: | --: | --- |"]
    for name, (place, texts) in sets.items():
        found = [await findings(guards, text, place) for text in texts]
        what = Counter(f"{one.guard}: {category}" for each in found for one in each for category in one.categories)
        listed = ", ".join(f"{category} {count}" for category, count in what.most_common())
        rows.append(f"| {name} | {len(texts)} | {sum(map(bool, found)) / len(texts):.1%} | {listed} |")
    return rows


def table_of_false() -> list[str]:
    lexicon, words, personal = Lexicon(), LexiconFinder(), PIIFinder()
    rows = [
        "| harmless texts | MB | words | words, disguised too | personal data | beside the plain words |",
        "| --- | --: | --: | --: | --: | --- |",
    ]
    for name, path in HARMLESS.items():
        text = read(DATA / path)
        plain = {(hit.start, hit.end) for hit in lexicon.find(text)}
        disguised, data = words.find(text), personal.find(text)
        added = [span for span in disguised if not any(span.start <= s and e <= span.end for s, e in plain)] + data
        shown = ", ".join(f"`{text[span.start : span.end]!r}`" for span in added[:6]).replace("|", "\\|")
        rates = [f"{1e6 * len(found) / len(text):.1f}" for found in (plain, disguised, data)]
        rows.append(f"| {name} | {len(text) / 1e6:.1f} | {' | '.join(rates)} | {shown} |")
    return rows


def table_of_disguised(turns: Sequence[str]) -> list[str]:
    lexicon, finder, rng = Lexicon(), LexiconFinder(), random.Random(0)
    words = [turn[hit.start : hit.end].lower() for turn in turns for hit in lexicon.find(turn)]
    words = [word for word in words if word.isalpha() and len(word) > 3]
    rows = ["| disguise | words | lexicon | guard |", "| --- | --: | --: | --: |"]
    for name, disguise in DISGUISES.items():
        texts = [f"you are a {disguise(word, rng)}, he said" for word in words]
        shares = [sum(bool(find(text)) for text in texts) / len(texts) for find in (lexicon.find, finder.find)]
        rows.append(f"| {name} | {len(words)} | {shares[0]:.0%} | {shares[1]:.0%} |")
    return rows


async def held(make: Callable[[], SpanStream], pieces: Sequence[str]) -> tuple[list[int], list[int], float]:
    """After each piece the characters held back; for each character the pieces it waits; and the guard's seconds.

    The finder replaces nothing here, so that characters that go in can be followed to where they come out.
    """
    stream, pushed, given, seconds = make(), 0, 0, 0.0
    backlog, arrivals, waits = [], [], []
    for number, piece in enumerate(pieces):
        pushed += len(piece)
        arrivals += [number] * len(piece)
        start = time.perf_counter()
        out = len(await stream.push(piece))
        seconds += time.perf_counter() - start
        waits += [number - arrival for arrival in arrivals[given : given + out]]
        given += out
        backlog.append(pushed - given)
    waits += [len(pieces) - 1 - arrival for arrival in arrivals[given:]]  # the end of the answer releases the rest
    return backlog, waits, seconds


class Unseen:
    """A finder that finds nothing and is as careful as another."""

    def __init__(self, finder: Finder):
        self._finder = finder
        self.settled, self.context = finder.settled, finder.context

    def find(self, text: str) -> list:
        self._finder.find(text)
        return []


async def table_of_held(texts: dict[str, Sequence[str]]) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tokenizer")
    rows = [
        "| answers | guard | tokens | characters held | 99% | most | tokens waited | 99% | most | µs/token |",
        "| --- | --- | " + " | ".join(["--:"] * 8) + " |",
    ]
    for name, answers in texts.items():
        split = [
            [answer[start:end] for start, end in tokenizer(answer, return_offsets_mapping=True)["offset_mapping"]]
            for answer in answers
        ]
        for guard, finder in (("lexicon", LexiconFinder()), ("pii", PIIFinder())):
            backlog: list[int] = []
            waits: list[int] = []
            seconds = 0.0
            for pieces in split:
                more = await held(lambda finder=finder: SpanStream(Unseen(finder), None, whole=False), pieces)
                backlog, waits, seconds = backlog + more[0], waits + more[1], seconds + more[2]
            figures = [f"{statistics.mean(backlog):.1f}", percentile(backlog), max(backlog)]
            figures += [f"{statistics.mean(waits):.1f}", percentile(waits), max(waits)]
            figures.append(f"{1e6 * seconds / len(backlog):.0f}")
            rows.append(f"| {name} | {guard} | {len(backlog)} | {' | '.join(map(str, figures))} |")
    return rows


def percentile(values: Sequence[int]) -> int:
    return sorted(values)[int(0.99 * (len(values) - 1))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guards", default=DEFAULT, help="a YAML file, or `default`")
    parser.add_argument("--conversations", type=int, default=1000, help="how many of the red team's (%(default)s)")
    args = parser.parse_args()
    guards = load_guards(args.guards)
    turns = red_team(args.conversations)
    sets = {
        "red team: first turns": ("prompt", turns["first turns"]),
        "red team: all turns": ("prompt", turns["all turns"]),
        "red team: answers that people preferred": ("answer", turns["preferred answers"]),
        "red team: the other answers": ("answer", turns["other answers"]),
    }
    for kind, categories in load_probe("refusal").items():
        sets |= {f"probe, {kind}: {category}": ("prompt", texts) for category, texts in categories.items()}
    lists = [line for line in read(DATA / HARMLESS["maths (GSM8K)"]).splitlines() if len(line) > 200]
    prose = [part for part in read(DATA / HARMLESS["Wikipedia (WikiText-2)"]).splitlines() if len(part) > 200]
    streams = {"red team's": turns["preferred answers"], "Wikipedia": prose[:300], "maths": lists[:300]}
    print("\n".join(asyncio.run(table_of_found(guards, sets))), end="\n\n", flush=True)
    print("\n".join(table_of_false()), end="\n\n", flush=True)
    print("\n".join(table_of_disguised(turns["all turns"])), end="\n\n", flush=True)
    print("\n".join(asyncio.run(table_of_held(streams))))


if __name__ == "__main__":
    main()
