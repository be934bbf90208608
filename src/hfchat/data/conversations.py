"""Conversations in the formats that people have -> clean datasets that TRL trains on, with every removal told.

`hfchat.data.conversation_sources` reads rows, `conversation_formats` makes examples of them, and
`conversation_checks` says which are kept; here they are split and written.
"""

import json
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from hfchat.data.conversation_checks import Cleaner
from hfchat.data.conversation_formats import FORMATS, KINDS, convert, expand
from hfchat.data.conversation_report import SourceCounts, Summary, card, report
from hfchat.data.conversation_sources import ConversationSource
from hfchat.data.decontamination import EvaluationSet, build_index
from hfchat.data.rows import Row
from hfchat.data.turns import ConversationError, Example, all_messages
from hfchat.dataset import conversation_features
from hfchat.errors import UserError
from hfchat.messages import digest_of
from hfchat.storage import remove_tree

SPLITS = ("train", "validation")


def split_of(example: Example, validation_fraction: float) -> str:
    """`train` or `validation`, by a hash of the first user turn: the same one whatever else is added.

    Conversations that begin alike, but for white space, are thus in one split, and an answer of validation is not seen
    in training.
    """
    first = " ".join(unicodedata.normalize("NFC", _first_asked(example)).split())
    value = int.from_bytes(digest_of(first)[:8], "big")
    return "validation" if value < int(validation_fraction * 2**64) else "train"


class _Splits:
    """The split of each conversation, twins in one: whose first user turns have the same letters and digits.

    The first of them decides. Case, accents, white space and punctuation do not count.
    """

    def __init__(self, validation_fraction: float):
        self._validation_fraction = validation_fraction
        self._of_twins: dict[bytes, str] = {}

    def of(self, example: Example) -> str:
        first = _first_asked(example)
        letters = "".join(filter(str.isalnum, unicodedata.normalize("NFKD", first).casefold()))
        split = split_of(example, self._validation_fraction)
        return self._of_twins.setdefault(digest_of(letters or first), split)


def _first_asked(example: Example) -> str:
    return next(turn["content"] for turn in all_messages(example) if turn["role"] == "user")


def prepare(
    sources: Sequence[ConversationSource],
    folder: Path,
    *,
    pii: Sequence[str],
    pii_regions: Sequence[str],
    evaluation_sets: Sequence[EvaluationSet],
    n_grams: int,
    validation_fraction: float,
    strict: bool,
) -> Summary:
    """Write `data/{train,validation}-00000.parquet`, `removed/<reason>/`, `report.md` and the dataset card.

    A removed row is there as JSON, its personal data replaced as in the others. The hashes of all conversations are
    held in memory, about 100 bytes each.

    Args:
        sources: What to read; all must make one kind of dataset.
        folder: Where to write.
        pii: Kinds of personal data to replace.
        pii_regions: Whose national phone numbers are replaced.
        evaluation_sets: Conversations that share an n-gram with one are removed (`hfchat.data.decontamination`).
        n_grams: Words of an n-gram.
        validation_fraction: Share of the validation split.
        strict: Make a row that is malformed an error.

    Raises:
        UserError: If the sources make different kinds of dataset, a split comes out empty, or for what cannot be read.
        RuntimeError: If the numbers of conversations read, kept and removed do not agree.
    """
    counts = [_nothing_read(source) for source in sources]
    kind = _only_kind(sources, counts)
    for leftover in ("data", "removed"):  # of an interrupted run
        remove_tree(folder / leftover)
    with tempfile.TemporaryDirectory() as scratch:
        index_folder = f"{scratch}/index" if evaluation_sets else None
        evaluation = build_index(evaluation_sets, index_folder, n_grams) if index_folder else {}
        cleaner = Cleaner(kind, pii, pii_regions, index_folder, n_grams)
        summary = Summary(kind, counts, Counter(dict.fromkeys(SPLITS, 0)), evaluation_sets=evaluation)
        # Each conversation is kept in one of the splits, or removed with its reason.
        with _Outputs(folder, Path(scratch), kind) as outputs:
            run = _Run(cleaner, summary, outputs, _Splits(validation_fraction), strict)
            for source, of_source in zip(sources, summary.sources, strict=True):
                run.read(source, of_source)
        summary.personal_data = cleaner.replaced
        for split in SPLITS:
            if not summary.kept[split] and (split == "train" or validation_fraction):
                raise UserError(
                    f"the {split} split came out empty ({summary.conversations} conversations read, removed: "
                    f"{dict(summary.removed)}); add sources, or change validation_fraction"
                )
        sizes = outputs.write_splits(summary.kept)
    # The report and the card come last: nothing calls a dataset whole in which a conversation is missing.
    _check_counts(folder, summary)
    (folder / "report.md").write_text(report(summary), encoding="utf-8")
    size = sum(file.stat().st_size for file in folder.glob("data/*.parquet"))
    (folder / "README.md").write_text(card(summary, sizes, size), encoding="utf-8")
    return summary


def _nothing_read(source: ConversationSource) -> SourceCounts:
    format = source.find_format()
    return SourceCounts(
        name=source.label, license=source.license, url=source.url, format=format, rows=0, conversations=0, kept=0
    )


def _only_kind(sources: Sequence[ConversationSource], counts: Sequence[SourceCounts]) -> str:
    kinds = {FORMATS[count["format"]].kind: source.path for source, count in zip(sources, counts, strict=True)}
    if len(kinds) > 1:
        each = ", ".join(f"{path} makes {kind}" for kind, path in kinds.items())
        raise UserError(f"sources: one run makes one kind of dataset, but {each}; give each kind a run of its own")
    return next(iter(kinds))


@dataclass
class _Run:
    """One run over all sources: what it cleans with, and where it counts and writes each conversation."""

    cleaner: Cleaner
    summary: Summary
    outputs: "_Outputs"
    splits: _Splits
    strict: bool

    def read(self, source: ConversationSource, counts: SourceCounts) -> None:
        for row in tqdm(source.rows(), desc=source.label, unit=" rows", disable=None):
            counts["rows"] += 1
            for conversation in expand(counts["format"], row):
                counts["conversations"] += 1
                notes: Counter[str] = Counter()
                try:
                    example = convert(counts["format"], conversation, source.instruction, notes)
                    example, digest = self.cleaner.clean(example)
                except ConversationError as error:
                    self._remove(conversation, error, source)
                except RecursionError:
                    self._remove(conversation, ConversationError("malformed", "is nested too deeply"), source)
                else:
                    counts["kept"] += 1
                    split = self.splits.of(example)
                    self.summary.add_kept(example, digest, split, notes)
                    self.outputs.write_kept(example, source.label, split)

    def _remove(self, conversation: Row, error: ConversationError, source: ConversationSource) -> None:
        if self.strict and error.reason == "malformed":
            raise UserError(f"sources: {conversation.place}: {error.detail}") from error
        text, _ = self.cleaner.pii.replace(_row_text(conversation.value))
        detail, _ = self.cleaner.pii.replace(_encodable(error.detail))
        removed = {"row": text, "reason": error.reason, "detail": detail, "place": conversation.place}
        self.summary.add_removed(removed)
        self.outputs.write_removed({**removed, "source": source.label})


def _row_text(value: Any) -> str:
    try:
        return _encodable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
    except RecursionError:
        return "…"


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


class _Outputs:
    """The Parquet files.

    Kept conversations wait in a scratch file until all are known: only then it is clear which fields turns have, and
    whether there are tools. What no conversation has is no column.
    """

    def __init__(self, folder: Path, scratch: Path, kind: str):
        self.folder, self.scratch, self.kind = folder, scratch, kind
        self.fields: set[str] = set()  # of turns
        self.has_tools = False
        self._kept = {split: (scratch / f"{split}.jsonl").open("w", encoding="utf-8") for split in SPLITS}
        self._removed: dict[str, tuple[Any, IO[bytes]]] = {}

    def __enter__(self) -> "_Outputs":
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._kept.values():
            file.close()
        for writer, stream in self._removed.values():
            writer.finalize(close_stream=False)
            stream.close()

    def write_kept(self, example: Example, source: str, split: str) -> None:
        self.fields.update(*all_messages(example))
        self.has_tools |= "tools" in example
        self._kept[split].write(json.dumps({**example, "source": source}, ensure_ascii=False) + "\n")

    def write_removed(self, row: dict[str, str]) -> None:
        from datasets import Features, Value

        if row["reason"] not in self._removed:
            features = Features(dict.fromkeys(("row", "reason", "detail", "place", "source"), Value("string")))
            path = self.folder / "removed" / row["reason"] / "00000.parquet"
            self._removed[row["reason"]] = parquet_writer(path, features)
        self._removed[row["reason"]][0].write(row)

    def write_splits(self, kept: Mapping[str, int]) -> dict[str, int]:
        """Write those that are not empty. Returns the bytes of each in memory."""
        from datasets import Features, Value

        columns = conversation_features(KINDS[self.kind], self.fields, self.has_tools)
        features = Features(columns | {"source": Value("string")})
        sizes = {}
        for split in SPLITS:
            if not kept[split]:
                continue
            writer, stream = parquet_writer(self.folder / "data" / f"{split}-00000.parquet", features)
            with stream, (self.scratch / f"{split}.jsonl").open(encoding="utf-8") as lines:
                for line in lines:
                    row = dict.fromkeys(features) | json.loads(line)
                    if row.get("tools"):
                        row["tools"] = json.dumps(row["tools"], ensure_ascii=False)
                    for name in KINDS[self.kind]:
                        if name != "label":
                            row[name] = [dict.fromkeys(self.fields) | turn for turn in row[name]]
                    writer.write(row)
                _, sizes[split] = writer.finalize(close_stream=False)
        return sizes


def parquet_writer(path: Path, features: Any) -> tuple[Any, IO[bytes]]:
    """A writer of rows with these `datasets.Features`, and the open file, which is to be closed after `finalize`."""
    from datasets.arrow_writer import ParquetWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    stream = path.open("wb")
    return ParquetWriter(features=features, stream=stream, writer_batch_size=1000), stream


def _check_counts(folder: Path, summary: Summary) -> None:
    """Hold the files against what was read; each conversation must be in one of them."""
    import pyarrow.parquet as pq

    written = 0
    for file in (*(folder / "data").glob("*.parquet"), *(folder / "removed").glob("*/*.parquet")):
        with file.open("rb") as stream:
            written += pq.ParquetFile(stream).metadata.num_rows
    if written != summary.conversations:
        raise RuntimeError(f"{summary.conversations} conversations were read, but {written} are in the files")
