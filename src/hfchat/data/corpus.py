"""Build a corpus: read, clean, filter, deduplicate, split. datatrove runs it, in tasks that can be resumed."""

import contextlib
import hashlib
import io
import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from datatrove.data import Document, DocumentsPipeline
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import ExactDedupConfig, ExactDedupFilter, ExactDedupSignature, ExactFindDedups
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import ParquetWriter
from loguru import logger
from tqdm import tqdm

from hfchat.data.cleaning import CleanText, QualityFilter
from hfchat.data.sources import Source
from hfchat.errors import UserError

COLUMNS = ["text", "id", "source", "license", "url"]
_SCHEMA = pa.schema([(name, pa.string()) for name in COLUMNS])


def build_corpus(
    sources: Sequence[Source],
    folder: Path,
    *,
    min_characters: int,
    validation_fraction: float,
    tasks: int,
    workers: int,
) -> dict[str, Any]:
    """Write `data/{train,validation}-*.parquet` (columns `text, id, source, license, url`) and `removed/<reason>/`.

    Args:
        sources: What to read.
        folder: Where to write. Tasks that an interrupted call finished there are not done again.
        min_characters: Shorter documents are removed.
        validation_fraction: Share of documents, chosen by a hash of the text, that become the validation split.
        tasks: Pieces of the work, and files per split. The output depends on it, but not on `workers`.
        workers: Tasks run at a time.

    Returns:
        Counts: `documents` and `bytes` per split, `removed` per reason, `read`, `licenses`, `sources`.
    """
    scratch = folder / "scratch"
    dedup = ExactDedupConfig(content_getter=_text)
    read_and_filter = [
        *(source.reader() for source in sources),
        _qualify_ids,
        CleanText(),
        QualityFilter(min_characters, exclusion_writer=_removed_writer(folder)),
        _writer(scratch / "filtered", "${rank}.parquet"),
        ExactDedupSignature(str(scratch / "signatures"), dedup),
    ]
    find_duplicates = [ExactFindDedups(str(scratch / "signatures"), str(scratch / "duplicates"), dedup)]
    deduplicate_and_split = [
        _OwnShardReader(str(scratch / "filtered")),
        ExactDedupFilter(
            str(scratch / "duplicates"), dedup, exclusion_writer=_removed_writer(folder, reason="exact_duplicate")
        ),
        SplitByHash(validation_fraction),
        _writer(folder / "data", "${split}-${rank}.parquet"),
    ]
    _execute("read, clean, filter", read_and_filter, scratch / "logs/1", tasks, workers)
    _execute("find duplicates", find_duplicates, scratch / "logs/2", 1, 1)
    _execute("deduplicate, split", deduplicate_and_split, scratch / "logs/3", tasks, workers)
    counts = _count(folder, read=_documents_read(scratch / "logs/1"))
    for split in ("train", "validation"):
        if not counts["documents"][split]:
            raise UserError(
                f"the {split} split came out empty ({counts['read']} documents read, removed: {counts['removed']}); "
                "add sources, give text files a `separator`, or change validation_fraction or min_characters"
            )
    write_card(folder, counts)
    shutil.rmtree(scratch)
    return counts


class SplitByHash(PipelineStep):
    """Sends each document to `train` or `validation` by a hash of its text: the same one whatever else is added.

    Args:
        validation_fraction: Share of documents in the validation split.
    """

    type = "✂️ - SPLIT"
    name = "🎲 By hash"

    def __init__(self, validation_fraction: float):
        super().__init__()
        self.threshold = int(validation_fraction * 2**64)

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        for document in data:
            value = int.from_bytes(hashlib.sha256(document.text.encode()).digest()[:8], "big")
            document.metadata["split"] = "validation" if value < self.threshold else "train"
            yield document


def write_card(folder: Path, counts: dict[str, Any]) -> None:
    """Write the dataset card; its header tells `datasets.load_dataset` where the splits are."""
    header = {
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": split, "path": f"data/{split}-*.parquet"} for split in ("train", "validation")
                ],
            }
        ],
        "task_categories": ["text-generation"],
    }
    megabytes = {split: size / 1e6 for split, size in counts["bytes"].items()}
    lines = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n# Corpus\n",
        "Made by `recipes/prepare_data.py` of hfchat; `lineage.json` holds the settings and versions.\n",
        "| split | documents | megabytes |\n| --- | ---: | ---: |",
        *(f"| {split} | {counts['documents'][split]:,} | {megabytes[split]:.1f} |" for split in megabytes),
        f"\n{counts['read']:,} documents were read. Removed, each kept with its reason in `removed/`:\n",
        "| reason | documents |\n| --- | ---: |",
        *(f"| {reason} | {count:,} |" for reason, count in counts["removed"].items()),
        "\n| licence, as each source states it | documents |\n| --- | ---: |",
        *(f"| {license} | {count:,} |" for license, count in counts["licenses"].items()),
        "\n| source | documents |\n| --- | ---: |",
        *(f"| {source} | {count:,} |" for source, count in counts["sources"].items()),
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


class _OwnShardReader(ParquetReader):
    """Reads the file that the task of the same rank wrote, so that positions agree with the task's signatures."""

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        file = f"{rank:05d}.parquet"
        if self.data_folder.isfile(file):  # a task without documents writes none
            yield from self.read_files_shard([file])


class _Executor(LocalPipelineExecutor):
    """A local executor that leaves what datatrove says of each task to its log files."""

    def _run_for_rank(self, *args: Any, **kwargs: Any):
        with contextlib.redirect_stderr(io.StringIO()):
            return super()._run_for_rank(*args, **kwargs)


def _execute(description: str, pipeline: list, logging_dir: Path, tasks: int, workers: int) -> None:
    logger.remove()
    executor = _Executor(pipeline, tasks=tasks, workers=min(workers, tasks), logging_dir=str(logging_dir))
    finished = threading.Event()
    with tqdm(total=tasks, desc=f"{description:>22}", unit="task") as bar:

        def follow() -> None:
            while True:
                last = finished.wait(0.2)
                if new := tasks - len(executor.get_incomplete_ranks()) - bar.n:
                    bar.update(new)
                if last:
                    return

        watcher = threading.Thread(target=follow, daemon=True)
        watcher.start()
        try:
            executor.run()
        finally:
            finished.set()
            watcher.join()


def _qualify_ids(data: DocumentsPipeline, rank: int, world_size: int) -> DocumentsPipeline:
    """Readers number documents within a source; two sources may have files of the same name."""
    for document in data:
        document.id = f"{document.metadata['source']}/{document.id}"
        yield document


def _text(document: Document) -> bytes:
    return document.text.encode()


def _writer(folder: Path, name: str) -> ParquetWriter:
    return ParquetWriter(str(folder), name, adapter=_as_row, schema=_SCHEMA, compression="zstd", max_file_size=-1)


def _removed_writer(folder: Path, reason: str | None = None) -> ParquetWriter:
    """Writes removed documents with their reason: the given one, or that of the filter."""
    return ParquetWriter(
        str(folder / "removed"),
        (reason or "${filter_reason}") + "/${rank}.parquet",
        adapter=_as_removed_row,
        schema=_SCHEMA.append(pa.field("reason", pa.string())),
        compression="zstd",
        max_file_size=-1,
    )


def _as_row(_writer: ParquetWriter, document: Document) -> dict[str, str]:
    provenance = {name: str(document.metadata.get(name, "")) for name in ("source", "license", "url")}
    return {"text": document.text, "id": document.id, **provenance}


def _as_removed_row(writer: ParquetWriter, document: Document) -> dict[str, str]:
    reason = document.metadata.get("filter_reason", Path(writer.output_filename.template).parts[0])
    return {**_as_row(writer, document), "reason": reason}


def _documents_read(logging_dir: Path) -> int:
    """Documents that came out of the readers, by datatrove's own count."""
    tasks = [json.loads(file.read_text()) for file in sorted((logging_dir / "stats").glob("*.json"))]
    return sum(
        step["stats"].get("total", {"total": 0})["total"] if isinstance(step["stats"].get("total"), dict)
        else step["stats"].get("total", 0)
        for task in tasks for step in task if CleanText.name in step["name"]
    )  # fmt: skip


def _count(folder: Path, read: int) -> dict[str, Any]:
    documents, size, licenses, sources = Counter(train=0, validation=0), Counter(), Counter(), Counter()
    for split in documents:
        for file in sorted((folder / "data").glob(f"{split}-*.parquet")):
            table = pq.read_table(file, columns=["text", "license", "source"])
            documents[split] += table.num_rows
            size[split] += pc.sum(pc.binary_length(table["text"].cast(pa.binary()))).as_py() or 0
            licenses.update(table["license"].to_pylist())
            sources.update(table["source"].to_pylist())
    removed = Counter(
        {
            reason.name: sum(pq.read_metadata(file).num_rows for file in reason.iterdir())
            for reason in _folders(folder / "removed")
        }
    )
    if read != documents.total() + removed.total():
        raise RuntimeError(f"{read} documents were read, but {documents.total()} kept and {removed.total()} removed")
    return {
        "documents": dict(documents),
        "bytes": dict(size),
        "removed": dict(removed.most_common()),
        "read": read,
        "licenses": dict(licenses.most_common()),
        "sources": dict(sources.most_common()),
    }


def _folders(path: Path) -> Iterator[Path]:
    return (entry for entry in sorted(path.iterdir()) if entry.is_dir()) if path.is_dir() else iter(())
