"""The Parquet files of a corpus: what their rows hold, and how they are written and read in bounded memory."""

from collections import Counter
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document, DocumentsPipeline
from datatrove.io import DataFolderLike
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import ParquetWriter

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
# Characters that a writer holds before it writes a row group, which is what a reader has to hold.
ROW_GROUP_CHARACTERS = 16_000_000


class DocumentWriter(ParquetWriter):
    """Writes documents as rows of `SCHEMA`.

    Args:
        folder: Where.
        name: File name, in which `${rank}` stands for the task and other keys for the document's metadata.
    """

    name = "🗄 Documents"
    schema_of_rows = SCHEMA

    def __init__(self, folder: DataFolderLike, name: str = "${rank}.parquet"):
        super().__init__(folder, name, compression="zstd", max_file_size=-1, schema=self.schema_of_rows)
        self._characters: Counter[str] = Counter()

    def _default_adapter(self, document: Document) -> dict[str, Any]:
        row = {name: document.metadata.get(name) for name in SCHEMA.names}
        return {**row, "text": document.text, "id": document.id}

    def _write(self, document: dict[str, Any], file_handler: IO, filename: str) -> None:
        if filename not in self._writers:
            self._writers[filename] = pq.ParquetWriter(
                file_handler,
                self.schema,
                compression=self.compression,
                use_content_defined_chunking=self.use_content_defined_chunking,
                write_page_index=self.write_page_index,
                write_page_checksum=True,  # what datatrove's writer leaves out: damage shows when a shard is read
            )
        super()._write(document, file_handler, filename)
        self._characters[filename] += len(document["text"])
        if self._characters[filename] >= ROW_GROUP_CHARACTERS:
            self._write_batch(filename)
        if not self._batches[filename]:
            self._characters[filename] = 0


class RemovedWriter(DocumentWriter):
    """Writes removed documents to `removed/<reason>/`, as rows of `REMOVED_SCHEMA`.

    Args:
        folder: Of the corpus.
        position: Of the step in the chain, and name of the step: a file belongs to one step and one task.
        step: The documents' metadata may name another (a source has two: `read` and `extract`).
        reason: For blocks of datatrove that give none.
    """

    name = "🗑 Removed documents"
    schema_of_rows = REMOVED_SCHEMA

    def __init__(self, folder: DataFolderLike, position: str, step: str, reason: str = ""):
        self.step, self.reason = step, reason
        super().__init__(folder, f"removed/${{filter_reason}}/{position}-{step}-${{rank}}.parquet")

    @staticmethod
    def pattern(position: str, step: str) -> str:
        """Glob of what one task writes."""
        return f"removed/*/{position}-{step}-{{rank:05d}}.parquet"

    def write(self, document: Document, rank: int = 0, **kwargs: Any) -> None:
        document.metadata.setdefault("filter_reason", self.reason or "removed")
        super().write(document, rank, **kwargs)

    def _default_adapter(self, document: Document) -> dict[str, Any]:
        about = document.metadata
        return {
            **super()._default_adapter(document),
            "step": about.get("step", self.step),
            "reason": about["filter_reason"],
            "score": about.get("filter_score"),
            "detail": about.get("filter_detail"),
        }


class ClusterWriter(ParquetWriter):
    """Passes documents on, and writes those kept of a near-duplicate cluster to `clusters/`, for the report."""

    name = "👯 Kept of a cluster"

    def __init__(self, folder: DataFolderLike):
        super().__init__(folder, "clusters/${rank}.parquet", max_file_size=-1, schema=CLUSTER_SCHEMA)

    def _default_adapter(self, document: Document) -> dict[str, Any]:
        return {
            "cluster": document.metadata["cluster"],
            "id": document.id,
            "text": document.text[:2000],
        }

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
            position = 0
            for group in range(parquet.num_row_groups):  # iter_batches would join row groups
                for row in parquet.read_row_group(group).to_pylist():
                    yield self.get_document_from_dict(row, filepath, position)
                    position += 1
