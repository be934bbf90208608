"""The data report: what was read, kept and removed, as numbers, as pictures, and as documents to look at."""

import difflib
import hashlib
import heapq
import html
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import yaml
from datatrove.io import DataFolder
from tqdm import tqdm

SAMPLES = 20
EXCERPT = 600
CLUSTERS_SHOWN = 5
# Bins of the histogram of lengths: three to a factor of ten, from 10 characters on.
_BINS_PER_DECADE = 3


@dataclass
class Summary:
    """What is in a corpus's folder.

    Attributes:
        chain: Names of the steps, in their order.
        read: Documents read.
        documents: Documents per split; `bytes` (UTF-8) and `tokens` (0 where not counted) likewise.
        removed: Documents removed per step and reason.
        licenses: Documents kept per licence; `sources`, `languages` and `domains` likewise.
        source_licenses: Licences of each source.
        lengths: Documents per bin of length, for `kept` and `removed`; bin b begins at `10 ** (b / 3)` characters.
        samples: Random documents, `kept` and `removed`.
        unreadable: Of records that could not be read: place and error of the first of them.
        cluster_sizes: Near-duplicate clusters per number of documents.
        clusters: Some of them: the kept document, and those removed.
        pii: Personal data replaced, per kind.
    """

    chain: list[str]
    read: int
    documents: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    removed: dict[str, Counter[str]] = field(default_factory=dict)
    licenses: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    domains: Counter[str] = field(default_factory=Counter)
    source_licenses: dict[str, set[str]] = field(default_factory=dict)
    lengths: dict[str, Counter[int]] = field(default_factory=lambda: {"kept": Counter(), "removed": Counter()})
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    cluster_sizes: Counter[int] = field(default_factory=Counter)
    clusters: list[tuple[dict[str, Any], list[dict[str, Any]]]] = field(default_factory=list)
    pii: dict[str, int] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        return self.documents.total()

    @property
    def reasons(self) -> Counter[str]:
        """Documents removed per reason, of all steps."""
        return sum(self.removed.values(), Counter())

    def funnel(self) -> list[tuple[str, int, Counter[str]]]:
        """Of each step: its name, the documents left after it, and those that it removed per reason."""
        left, rows = self.read, []
        for step in self.chain:
            removed = self.removed.get(step, Counter())
            left -= removed.total()
            rows.append((step, left, removed))
        return rows

    def counts(self) -> dict[str, Any]:
        """The numbers, as JSON."""
        return {
            "read": self.read,
            "documents": dict(self.documents),
            "bytes": dict(self.bytes),
            "tokens": dict(self.tokens),
            "removed": dict(self.reasons.most_common()),
            "licenses": dict(self.licenses.most_common()),
            "sources": dict(self.sources.most_common()),
            "languages": dict(self.languages.most_common()),
            "near_duplicate_clusters": self.cluster_sizes.total(),
        }


def summarize(folder: DataFolder, chain: Sequence[str], read: int) -> Summary:
    """Read all that was written, row group by row group.

    Args:
        folder: Of the corpus.
        chain: Names of the steps, in their order.
        read: Documents read, by the readers' own count.

    Raises:
        RuntimeError: If the documents that were read are not those kept and removed.
    """
    summary = Summary(list(chain), read)
    kept, removed = _Sample(SAMPLES), _Sample(SAMPLES)
    kept_files, removed_files = folder.glob("data/*.parquet"), folder.glob("removed/*/*.parquet")
    clusters: dict[str, list[dict[str, Any]]] = {}
    with tqdm(total=len(kept_files) + len(removed_files), desc=f"{'count and report':>34}", unit="file") as bar:
        for file in sorted(kept_files):
            split = file.split("/")[-1].rsplit("-", 1)[0]
            for row in _rows(folder, file):
                _add_kept(summary, split, row)
                kept.offer(row)
            bar.update()
        for file in sorted(removed_files):
            for row in _rows(folder, file):
                summary.removed.setdefault(row["step"], Counter())[row["reason"]] += 1
                summary.lengths["removed"][_bin(row["text"])] += 1
                removed.offer(row)
                if row["reason"] == "unreadable":
                    summary.unreadable.append((row["id"], row["detail"] or ""))
                if row["reason"] == "near_duplicate":
                    members = clusters.setdefault(row["detail"], [])
                    members.append({"id": row["id"], "text": row["text"][:2000]})
            bar.update()
    total = summary.kept + summary.reasons.total()
    if read != total:
        raise RuntimeError(
            f"{read} documents were read, but {summary.kept} kept and {summary.reasons.total()} removed"
        )
    summary.samples = {"kept": kept.rows(), "removed": removed.rows()}
    summary.cluster_sizes = Counter(len(members) + 1 for members in clusters.values())
    summary.clusters = _examples(folder, clusters)
    return summary


def _add_kept(summary: Summary, split: str, row: Mapping[str, Any]) -> None:
    summary.documents[split] += 1
    summary.bytes[split] += len(row["text"].encode())
    summary.tokens[split] += row["token_count"] or 0
    summary.licenses[row["license"] or "unknown"] += 1
    source = row["source"] or "unknown"
    summary.sources[source] += 1
    summary.source_licenses.setdefault(source, set()).add(row["license"] or "unknown")
    if row["language"]:
        summary.languages[row["language"]] += 1
    if host := _host(row["url"]):
        summary.domains[host] += 1
    summary.lengths["kept"][_bin(row["text"])] += 1


def _host(url: str | None) -> str | None:
    try:
        return urlsplit(url or "").hostname
    except ValueError:  # brackets that are no IPv6 address
        return None


def _rows(folder: DataFolder, file: str) -> Iterator[dict[str, Any]]:
    with folder.open(file, "rb") as stream, pq.ParquetFile(stream) as parquet:
        for group in range(parquet.num_row_groups):
            yield from parquet.read_row_group(group).to_pylist()


def _bin(text: str) -> int:
    return max(_BINS_PER_DECADE, math.floor(_BINS_PER_DECADE * math.log10(max(len(text), 1))))


class _Sample:
    """Random rows: those with the smallest hashes of their ids, which are the same whatever the order."""

    def __init__(self, size: int):
        self.size = size
        self._heap: list[tuple[int, str, dict[str, Any]]] = []

    def offer(self, row: Mapping[str, Any]) -> None:
        rank = -int.from_bytes(hashlib.sha256(row["id"].encode()).digest()[:8], "big")
        if len(self._heap) < self.size or rank > self._heap[0][0]:
            entry = (rank, row["id"], {**row, "text": row["text"][: 2 * EXCERPT], "characters": len(row["text"])})
            # Two removed rows can have the same id, and rows do not compare.
            if all(entry[:2] != other[:2] for other in self._heap):
                (heapq.heappush if len(self._heap) < self.size else heapq.heappushpop)(self._heap, entry)

    def rows(self) -> list[dict[str, Any]]:
        return [row for _, _, row in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


def _examples(
    folder: DataFolder, clusters: Mapping[str, list[dict[str, Any]]]
) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    largest = sorted(clusters, key=lambda cluster: (-len(clusters[cluster]), int(cluster)))[:CLUSTERS_SHOWN]
    kept = {
        str(row["cluster"]): row
        for file in sorted(folder.glob("clusters/*.parquet"))
        for row in _rows(folder, file)
        if str(row["cluster"]) in largest
    }
    return [(kept[cluster], clusters[cluster]) for cluster in largest if cluster in kept]


def write_report(
    folder: DataFolder, summary: Summary, config: Mapping[str, Any], evaluation_sets: Mapping[str, Mapping[str, int]]
) -> None:
    """Write `report.html`, which needs no other file, and `report.md`.

    Args:
        folder: Of the corpus.
        summary: What `summarize` found.
        config: The settings of the run.
        evaluation_sets: Of each set that was kept out: `rows`, `n_grams`, `too_short`.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hfchat.data"), autoescape=jinja2.select_autoescape(["html"]), trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"excerpt": _excerpt, "quote": _quote, "cell": _cell, "bar": _bar, "percent": _percent}
    context = {
        "summary": summary,
        "funnel": summary.funnel(),
        "lengths": _length_rows(summary),
        "clusters": [(kept, _differences(kept, removed)) for kept, removed in summary.clusters],
        "config": yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True, width=110),
        "evaluation_sets": evaluation_sets,
        "megabytes": sum(summary.bytes.values()) / 1e6,
        "tables": [
            ("Languages", "language", summary.languages),
            ("Licences, as each source states them", "licence", summary.licenses),
            ("Sources", "source", summary.sources),
            ("Domains", "domain", summary.domains),
        ],
    }
    for name in ("report.html", "report.md"):
        with folder.open(name, "w", encoding="utf-8") as file:
            file.write(environment.get_template(f"{name}.jinja").render(context))


def plain(value: Any) -> Any:
    """Settings as YAML can write them: `Source` and the like are mappings."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _length_rows(summary: Summary) -> list[tuple[str, int, int]]:
    """Bins without gaps: (from how many characters, kept, removed)."""
    kept, removed = summary.lengths["kept"], summary.lengths["removed"]
    bins = [*kept, *removed]
    return [
        (f"{_rounded(10 ** (b / _BINS_PER_DECADE)):,}", kept[b], removed[b])
        for b in (range(min(bins), max(bins) + 1) if bins else ())
    ]


def _rounded(value: float) -> int:
    digits = 10 ** (math.floor(math.log10(value)))
    return round(value / digits) * digits


def _printable(text: str) -> str:
    """Without what can hide or reorder text: control characters and marks of direction."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _excerpt(text: str, length: int = EXCERPT) -> str:
    text = _printable(text)
    return text if len(text) <= length else f"{text[:length]}…"


def _quote(text: str, length: int = EXCERPT) -> str:
    """For Markdown: a code block that the text cannot end."""
    text = _excerpt(text, length)
    longest = max((len(run) for run in text.replace("\n", " ").split(" ") if set(run) == {"`"}), default=0)
    fence = "`" * max(3, longest + 1)
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


def _cell(value: Any) -> str:
    """For a cell of a Markdown table."""
    return html.escape(_printable(str(value)), quote=False).replace("|", "\\|").replace("\n", " ")


def _bar(value: int, greatest: int) -> str:
    """Width of a bar, as CSS."""
    return f"{100 * value / greatest:.2f}%" if greatest else "0%"


def _percent(value: int, total: int) -> str:
    return f"{100 * value / total:.1f}%" if total else "-"


def _differences(kept: Mapping[str, Any], removed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each removed document in pieces: (text, whether the kept one does not have it there)."""
    result = []
    words = _excerpt(kept["text"]).split(" ")
    for document in removed[:3]:
        other = _excerpt(document["text"]).split(" ")
        pieces = [
            (" ".join(other[start:end]), operation != "equal")
            for operation, _, _, start, end in difflib.SequenceMatcher(
                None, words, other, autojunk=False
            ).get_opcodes()
            if end > start
        ]
        result.append({"id": document["id"], "pieces": pieces})
    return result
