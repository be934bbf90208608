"""The Parquet files of a corpus: what their rows hold, and how they are written and read in bounded memory."""

from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document, DocumentsPipeline
from datatrove.io import DataFolder
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers.disk_base import DiskWriter

from hfchat.data.removal import Removal

# Names as in FineWeb (arXiv:2406.17557) where it has them.
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("text", "id", "source", "license", "url", "date", "language")),
        ("language_score", pa.float64()),
        ("token_count", pa.int64()),
    ]
)
REMOVED_SCHEMA = pa.schema(
    [*SCHEMA, ("step", pa.string()), ("reason", pa.string()), ("score", pa.float64()), ("detail", pa.string())]
)
CLUSTER_SCHEMA = pa.schema([("cluster", pa.int64()), ("id", pa.string()), ("text", pa.string())])
# What a writer holds before it writes a row group, which is what a reader has to hold.
ROW_GROUP_CHARACTERS = 16_000_000
ROW_GROUP_ROWS = 1000


class DocumentWriter(DiskWriter):
    """Writes documents as rows of Parquet, with checksums of their pages: damage shows when a shard is read.

    datatrove's `ParquetWriter` (read in 0.10.1) cuts row groups by the number of documents alone, and a thousand books
    do not fit into memory; it has no checksums either.

    Args:
        folder: Where.
        name: File name, in which `${rank}` stands for the task and other keys for the document's metadata.
    """

    name = "🗄 Documents"
    schema = SCHEMA

    def __init__(self, folder: DataFolder, name: str = "${rank}.parquet"):
        super().__init__(folder, name, compression=None, mode="wb")
        self.adapter = self.row  # what datatrove makes of a function that it is given cannot be pickled
        self._files: dict[str, pq.ParquetWriter] = {}
        self._rows: dict[str, list[dict[str, object]]] = {}
        self._characters: dict[str, int] = {}

    def row(self, document: Document) -> dict[str, object]:
        """What is kept of a document."""
        row = {name: document.metadata.get(name) for name in SCHEMA.names}
        return {**row, "text": document.text, "id": document.id}

    def _write(
        self, document: dict[str, object], file_handler: IO[bytes], filename: str
    ) -> None:  # the method to implement
        if filename not in self._files:
            self._files[filename] = pq.ParquetWriter(
                file_handler,
                self.schema,
                compression="zstd",
                use_content_defined_chunking=True,
                write_page_index=True,
                write_page_checksum=True,
            )
            self._rows[filename], self._characters[filename] = [], 0
        rows = self._rows[filename]
        rows.append(document)
        self._characters[filename] += len(str(document["text"]))
        if len(rows) == ROW_GROUP_ROWS or self._characters[filename] >= ROW_GROUP_CHARACTERS:
            self._end_row_group(filename)

    def _end_row_group(self, filename: str) -> None:
        if rows := self._rows[filename]:
            self._files[filename].write_batch(pa.RecordBatch.from_pylist(rows, schema=self.schema))
        self._rows[filename], self._characters[filename] = [], 0

    def close(self) -> None:
        for filename, file in self._files.items():
            self._end_row_group(filename)
            file.close()
        self._files.clear()
        super().close()


class RemovedWriter(DocumentWriter):
    """Writes removed documents to `removed/<reason>/`, as rows of `REMOVED_SCHEMA`.

    Args:
        folder: The corpus.
        position: Number of the step in the chain. With the step's name it is in the names of the files, each of which
            belongs to one step and one task.
        step: Name of the step. A removal may name another (a source has two: `read` and `extract`).
        reason: For blocks of datatrove that give none.
    """

    name = "🗑 Removed documents"
    schema = REMOVED_SCHEMA

    def __init__(self, folder: DataFolder, position: str, step: str, reason: str = "removed"):
        self.step, self.reason = step, reason
        super().__init__(folder, f"removed/${{reason}}/{position}-{step}-${{rank}}.parquet")

    @staticmethod
    def pattern(position: str, step: str) -> str:
        """Glob of what one task writes."""
        return f"removed/*/{position}-{step}-{{rank:05d}}.parquet"

    def write(self, document: Document, rank: int = 0, **kwargs: str) -> None:
        super().write(document, rank, reason=self._removal(document).reason, **kwargs)

    def row(self, document: Document) -> dict[str, object]:
        removal = self._removal(document)
        return {
            **super().row(document),
            "step": removal.step or self.step,
            "reason": removal.reason,
            "score": removal.score,
            "detail": removal.detail,
        }

    def _removal(self, document: Document) -> Removal:
        return Removal.of(document) or Removal(self.reason)


class ClusterWriter(DocumentWriter):
    """Passes documents on, and writes those kept of a near-duplicate cluster to `clusters/`, for the report."""

    name = "👯 Kept of a cluster"
    schema = CLUSTER_SCHEMA

    def __init__(self, folder: DataFolder):
        super().__init__(folder, "clusters/${rank}.parquet")

    def row(self, document: Document) -> dict[str, object]:
        return {"cluster": document.metadata["cluster"], "id": document.id, "text": document.text[:2000]}

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        with self:
            for document in data:
                if "cluster" in document.metadata:
                    self.write(document, rank)
                yield document


class OwnShardReader(ParquetReader):
    """Reads what the task of the same rank wrote, so that positions agree with its signatures."""

    name = "🗄 Own shard"

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        file = f"{rank:05d}.parquet"
        if self.data_folder.isfile(file):  # a task without documents writes none
            yield from self.read_files_shard([file])

    def read_file(self, filepath: str) -> DocumentsPipeline:
        with (
            self.data_folder.open(filepath, "rb") as file,
            pq.ParquetFile(file, page_checksum_verification=True) as parquet,
        ):
            for group in range(parquet.num_row_groups):  # iter_batches would join row groups
                for row in parquet.read_row_group(group).to_pylist():
                    yield Document(row.pop("text"), row.pop("id"), metadata=row)
