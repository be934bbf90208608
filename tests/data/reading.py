"""What a source reads, for the tests of sources and readers."""

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datatrove.data import Document
from datatrove.io import DataFolder

from hfchat.data.readers import SKIPPED
from hfchat.data.shards import RemovedWriter
from hfchat.data.sources import Source


@dataclass
class Read:
    """Documents that a source gave, rows that it removed, and its statistics, of all tasks together."""

    documents: list[Document] = field(default_factory=list)
    removed: list[dict[str, Any]] = field(default_factory=list)
    read: int = 0
    skipped: int = 0
    skipped_for: Counter[str] = field(default_factory=Counter)

    @property
    def texts(self) -> list[str]:
        return [document.text for document in self.documents]

    @property
    def reasons(self) -> list[str]:
        return sorted(row["reason"] for row in self.removed)


def read_all(source: dict[str, Any], folder: Path, world_size: int = 1, **options: Any) -> Read:
    """Run every task of a source. Fails if a document is neither passed on nor removed."""
    result = Read()
    writer = partial(RemovedWriter, DataFolder(str(folder)), "00", "source0")
    for rank in range(world_size):
        step = Source.parse(source).step(writer, **options)
        result.documents += step.run(None, rank, world_size)
        result.read += step.stats["read"].total
        result.skipped += step.stats["skipped"].total
        for name, metric in step.stats.stats.items():
            if name.startswith(SKIPPED):
                result.skipped_for[name.removeprefix(SKIPPED)] += metric.total
    for file in sorted(folder.glob("removed/*/*.parquet")):
        result.removed += pq.read_table(file).to_pylist()
    assert result.skipped == result.skipped_for.total()
    assert result.read == len(result.documents) + len(result.removed)
    return result
