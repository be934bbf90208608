"""Recall, precision and speed of the search for near-duplicates, ours and datatrove's default, with planted copies.

    python benchmarks/dedup.py --data ../shared/data/pretrain/wikitext2-valid.txt --documents 2000

A bucket holds the planted pairs of a true Jaccard similarity; `theory` is the mean of `1 - (1 - s^rows)^bands` over
them. A pair that was found and not planted counts against precision. MB/s are of the signatures, in one process.
"""

import argparse
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashConfig, MinhashDedupBuckets, MinhashDedupSignature
from datatrove.utils.binaryio import read_tuples_from_file
from datatrove.utils.hashing import HashConfig

from hfchat.data.near_duplicates import NearDuplicateSignatures, detection_probability, minhash_config

TASKS = 4
PASSAGE_WORDS = 200
BUCKETS = (0.0, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_ARTICLE = re.compile(r"(?m)^ (?== [^=].*[^=] = $)")


@dataclass
class Planted:
    """Documents, and which of them are an original and its copy with 0 to 40% of the words changed."""

    documents: list[str]
    pairs: list[tuple[int, int]]


def plant(data: Path, count: int, seed: int = 0) -> Planted:
    """A third of `count` distinct documents, a third originals, a third their copies.

    Args:
        data: WikiText. Half of its articles are documents, passages of the others originals; what is missing is drawn
            from the frequencies of its words.
        count: Documents in all.
        seed: Of edits and drawn documents.
    """
    generator = random.Random(seed)
    articles = [part for part in _ARTICLE.split(data.read_text(encoding="utf-8")) if part.strip()]
    whole, rest = articles[: len(articles) // 2], " ".join(articles[len(articles) // 2 :]).split()
    passages = [" ".join(rest[i : i + PASSAGE_WORDS]) for i in range(0, len(rest) - PASSAGE_WORDS, PASSAGE_WORDS)]
    frequencies = Counter(rest)
    vocabulary, weights = list(frequencies), list(frequencies.values())

    def filled(texts: list[str]) -> list[str]:
        missing = range(len(texts), count // 3)
        return texts[: count // 3] + [
            " ".join(generator.choices(vocabulary, weights, k=PASSAGE_WORDS)) for _ in missing
        ]

    distinct, originals = filled(whole), filled(passages)
    copies = [edit(text.split(), vocabulary, generator) for text in originals]
    first_copy = len(distinct) + len(originals)
    pairs = [(len(distinct) + i, first_copy + i) for i in range(len(copies))]
    return Planted([*distinct, *originals, *copies], pairs)


def edit(words: Sequence[str], vocabulary: Sequence[str], generator: random.Random) -> str:
    """The text with up to 40% of its words replaced: in one run, or one by one (and then mostly few)."""
    words = list(words)
    if generator.random() < 0.5:
        length = int(0.4 * generator.random() * len(words))
        start = generator.randrange(len(words) - length + 1)
        places = range(start, start + length)
    else:
        places = generator.sample(range(len(words)), int(0.4 * generator.random() ** 3 * len(words)))
    for place in places:
        words[place] = generator.choice(vocabulary)
    return " ".join(words)


def jaccard(signatures: MinhashDedupSignature, a: str, b: str) -> float:
    """True similarity of two texts by the shingles of a signature step."""
    first, second = (set(signatures.get_shingles(text).ravel().tolist()) for text in (a, b))
    return len(first & second) / max(len(first | second), 1)


def find_pairs(
    signatures: MinhashDedupSignature, config: MinhashConfig, documents: Sequence[str], folder: Path
) -> tuple[set[tuple[int, int]], float]:
    """Pairs of positions in `documents` that share a band, and the seconds that the signatures took."""
    signatures.get_shingles("loads what it needs")
    started = time.perf_counter()
    for rank in range(TASKS):
        signatures.run((Document(text, "") for text in documents[rank::TASKS]), rank, TASKS)
    seconds = time.perf_counter() - started
    buckets = MinhashDedupBuckets(str(folder / "signatures"), str(folder / "pairs"), config=config)
    for rank in range(config.num_buckets):
        buckets.run(None, rank, config.num_buckets)
    found = set()
    for file in (folder / "pairs").glob("*.dups"):
        with file.open("rb") as stream:
            for rank_a, a, rank_b, b in read_tuples_from_file(stream, "4I", lines_to_buffer=-1):
                first, second = sorted((a * TASKS + rank_a, b * TASKS + rank_b))
                found.add((first, second))
    return found, seconds


def report(
    name: str, signatures: MinhashDedupSignature, config: MinhashConfig, planted: Planted, folder: Path
) -> None:
    """Print the table of one configuration."""
    bands, rows = config.num_buckets, config.hashes_per_bucket
    found, seconds = find_pairs(signatures, config, planted.documents, folder)
    megabytes = sum(len(text.encode()) for text in planted.documents) / 1e6
    print(f"\n{name}: {bands} bands x {rows} rows, {config.n_grams}-grams, {megabytes / seconds:.2f} MB/s")
    print(f"{'similarity':>12} {'pairs':>6} {'found':>6} {'recall':>7} {'theory':>7}")
    similarities = {pair: jaccard(signatures, *(planted.documents[i] for i in pair)) for pair in planted.pairs}
    for low, high in zip(BUCKETS, (*BUCKETS[1:], None), strict=True):
        inside = [pair for pair, s in similarities.items() if low <= s and (high is None or s < high)]
        if inside:
            hits = len(found.intersection(inside))
            theory = sum(detection_probability(similarities[pair], bands, rows) for pair in inside) / len(inside)
            label = f"{low:.1f} - {high:.1f}" if high else "1.0"
            print(f"{label:>12} {len(inside):6} {hits:6} {hits / len(inside):7.3f} {theory:7.3f}")
    similar = [pair for pair, s in similarities.items() if s >= 0.8]
    false = found - set(planted.pairs)
    print(f"recall at 0.8 and above: {len(found.intersection(similar)) / max(len(similar), 1):.4f}")
    precision = 1 - len(false) / max(len(found), 1)
    print(f"precision: {precision:.4f} ({len(false)} of {len(found)} pairs were not planted)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/pretrain/wikitext2-valid.txt"))
    parser.add_argument("--documents", type=int, default=2000)
    arguments = parser.parse_args()
    planted = plant(arguments.data, arguments.documents)
    # SHA-1: datatrove 0.10 hands strings to xxhash, which xxhash 4 refuses.
    default = MinhashConfig(hash_config=HashConfig(hash_fc="sha1"))
    with tempfile.TemporaryDirectory() as scratch:
        for name, step, config in (
            ("hfchat", NearDuplicateSignatures, minhash_config()),
            ("datatrove's default", MinhashDedupSignature, default),
        ):
            folder = Path(scratch) / step.__name__
            report(name, step(str(folder / "signatures"), config), config, planted, folder)


if __name__ == "__main__":
    main()
