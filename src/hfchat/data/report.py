"""The data report: what was read, kept and removed, as numbers, as pictures, and as documents to look at."""

import bisect
import difflib
import functools
import hashlib
import itertools
import json
import operator
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from datatrove.io import DataFolder
from tqdm import tqdm

from hfchat import templates
from hfchat.data.url_filter import suffix_list
from hfchat.markdown import markdown_of

if TYPE_CHECKING:
    import jinja2

SPLITS = ("train", "validation")
SAMPLES = 20
EXCERPT_CHARACTERS = 600
UNREADABLE_SHOWN = 50
CLUSTERS_SHOWN = 5
CLUSTER_MEMBERS_SHOWN = 3
CLUSTER_EXCERPT_CHARACTERS = 300
# What two near duplicates are compared by; `ClusterWriter` keeps as much.
_COMPARED_CHARACTERS = 2000
# Rare domains are forgotten beyond this many, which bounds the memory that the Web's millions of them would take.
_MAX_DOMAINS = 1_000_000
# Where the bins of the histogram of lengths begin, in characters.
LENGTH_EDGES = (0, *(digit * 10**power for power, digit in itertools.product(range(1, 8), (1, 2, 5))))

# Settings that say where and how fast the work was done, but not what came out: the report must not depend on them.
_NOT_SHOWN = {"output_dir", "overwrite_output_dir", "workers", "executor", "strict"}
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")
_SECRET_IN_URL = re.compile(
    r"([?&][^=&\s]*(?:sig|token|key|secret|password|credential)[^=&\s]*=)[^&\s]+", re.IGNORECASE
)

# A word with the space after it; a character of the scripts that write no spaces.
_NO_SPACES = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_NO_SPACES}]|[^\W{_NO_SPACES}]+\s*|[^\w\s]\s*|\s+")


@dataclass
class Amount:
    """How much of something there is: `documents`, and `bytes` of their text in UTF-8."""

    documents: int = 0
    bytes: int = 0


_Number = TypeVar("_Number", int, Amount)


@dataclass
class Cluster:
    """A near-duplicate cluster: its `size` in documents, the kept one, and some of those removed (`id` and `text`)."""

    size: int
    kept: dict[str, str]
    removed: list[dict[str, str]]


class Counts(TypedDict):
    """The numbers of a corpus, as JSON; documents, unless it says otherwise.

    `skipped_for` counts records that are not documents by what they are; `undivided` are sources whose separator is in
    none of their files; `evaluation_sets` says what `hfchat.data.decontamination.build_index` found in each.
    """

    read: int
    documents: dict[str, int]
    bytes: dict[str, int]
    tokens: dict[str, int]
    removed: dict[str, int]
    licenses: dict[str, int]
    sources: dict[str, int]
    languages: dict[str, int]
    near_duplicate_clusters: int
    skipped: int
    skipped_for: dict[str, int]
    undivided: dict[str, str]
    pii: dict[str, int]
    evaluation_sets: dict[str, dict[str, int]]


@dataclass
class Summary:
    """What is in a corpus's folder.

    Attributes:
        chain: Names of the steps, in their order.
        read: Documents read.
        documents: Documents per split; `bytes` (UTF-8) and `tokens` (0 where not counted) likewise.
        removed: Documents removed, per step and reason.
        licenses: What was kept, per licence; `sources` likewise.
        source_licenses: Licences of each source.
        languages: Documents kept per language, where it was identified.
        domains: Documents kept per registered domain (or host) of their URL, where they have one.
        domains_complete: Whether no rare domain had to be forgotten.
        lengths: Documents per bin of `LENGTH_EDGES`, for `kept` and `removed`.
        samples: Random documents, `kept` and `removed`: rows with the beginning of `text`, and `characters` in all.
        unreadable: Id and error of the first records that could not be read.
        unreadable_count: How many there are.
        cluster_sizes: Near-duplicate clusters per number of documents in them.
        clusters: Some of them.
        pii: Personal data replaced, per kind.
        skipped: Records that are not documents, by what they are.
        undivided: Names of sources whose separator stands between no two documents, and that separator.
        evaluation_sets: `rows`, `n_grams` and `too_short` of each set that was kept out.
    """

    chain: list[str]
    read: int
    documents: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    removed: dict[str, Counter[str]] = field(default_factory=dict)
    licenses: dict[str, Amount] = field(default_factory=dict)
    sources: dict[str, Amount] = field(default_factory=dict)
    source_licenses: dict[str, set[str]] = field(default_factory=dict)
    languages: Counter[str] = field(default_factory=Counter)
    domains: Counter[str] = field(default_factory=Counter)
    domains_complete: bool = True
    lengths: dict[str, Counter[int]] = field(default_factory=lambda: {"kept": Counter(), "removed": Counter()})
    samples: dict[str, list[dict[str, object]]] = field(default_factory=lambda: {"kept": [], "removed": []})
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    unreadable_count: int = 0
    cluster_sizes: Counter[int] = field(default_factory=Counter)
    clusters: list[Cluster] = field(default_factory=list)
    pii: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    undivided: dict[str, str] = field(default_factory=dict)
    evaluation_sets: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        return self.documents.total()

    @property
    def reasons(self) -> Counter[str]:
        """Documents removed per reason, of all steps."""
        return sum(self.removed.values(), Counter())

    def funnel(self) -> list[tuple[str, int, Counter[str]]]:
        """Each step: its name, the documents left after it, and those that it removed per reason."""
        left, rows = self.read, []
        for step in dict.fromkeys([*self.chain, *sorted(self.removed)]):
            removed = self.removed.get(step, Counter())
            left -= removed.total()
            rows.append((step, left, removed))
        return rows

    def counts(self) -> Counts:
        none = dict.fromkeys(SPLITS, 0)
        return {
            "read": self.read,
            "documents": {**none, **self.documents},
            "bytes": {**none, **self.bytes},
            "tokens": dict(self.tokens),
            "removed": dict(ranked(self.reasons)),
            "licenses": {name: amount.documents for name, amount in ranked(self.licenses)},
            "sources": {name: amount.documents for name, amount in ranked(self.sources)},
            "languages": dict(ranked(self.languages)),
            "near_duplicate_clusters": self.cluster_sizes.total(),
            "skipped": sum(self.skipped.values()),
            "skipped_for": dict(ranked(self.skipped)),
            "undivided": self.undivided,
            "pii": self.pii,
            "evaluation_sets": self.evaluation_sets,
        }


def ranked(counts: Mapping[str, _Number]) -> list[tuple[str, _Number]]:
    """Entries of numbers or `Amount`s with the most documents first; equal ones by name."""

    def rank(entry: tuple[str, int | Amount]) -> tuple[int, str]:
        name, count = entry
        return -(count.documents if isinstance(count, Amount) else count), name

    return sorted(counts.items(), key=rank)


def summarize(folder: DataFolder, chain: Sequence[str], read: int) -> Summary:
    """Read all that was written, one row group at a time.

    Memory holds a row group, and 8 bytes for each near duplicate removed.

    Args:
        folder: The corpus.
        chain: Names of the steps, in their order.
        read: Documents read, by the readers' own count.

    Raises:
        RuntimeError: If the documents that were read are not those kept and removed.
    """
    # Everything is counted in one pass, because a corpus may be far larger than the memory.
    summary = Summary(list(chain), read)
    kept, removed, clusters = _Sample(), _Sample(), _Clusters()
    kept_files, removed_files = (sorted(folder.glob(p)) for p in ("data/*.parquet", "removed/*/*.parquet"))
    with tqdm(total=len(kept_files) + len(removed_files), desc=f"{'count and report':>34}", unit="file") as bar:
        for file in kept_files:
            split = file.rsplit("/", 1)[-1].rsplit("-", 1)[0]
            for table in _row_groups(folder, file):
                _add_kept(summary, split, table)
                kept.offer(table)
            bar.update()
        for file in removed_files:
            for table in _row_groups(folder, file):
                _add_removed(summary, table)
                removed.offer(table)
                clusters.offer(table.filter(pc.equal(table["reason"], "near_duplicate")))
            bar.update()
    # Each document that was read must be somewhere: a block that loses some would go unnoticed otherwise.
    lost = summary.reasons.total()
    if read != summary.kept + lost:
        raise RuntimeError(f"{read} documents were read, but {summary.kept} kept and {lost} removed")
    summary.samples = {"kept": kept.rows(), "removed": removed.rows()}
    summary.cluster_sizes = clusters.sizes()
    summary.clusters = clusters.examples(folder)
    return summary


def _row_groups(folder: DataFolder, file: str) -> Iterator[pa.Table]:
    with folder.open(file, "rb") as stream, pq.ParquetFile(stream) as parquet:
        for group in range(parquet.num_row_groups):
            yield parquet.read_row_group(group)


def _add_kept(summary: Summary, split: str, table: pa.Table) -> None:
    size = pc.binary_length(table["text"])
    summary.documents[split] += table.num_rows
    summary.bytes[split] += pc.sum(size).as_py() or 0
    summary.tokens[split] += pc.sum(table["token_count"]).as_py() or 0
    provenance = pa.table({name: pc.fill_null(table[name], "unknown") for name in ("source", "license")})
    groups = provenance.append_column("bytes", size).group_by(["source", "license"], use_threads=False)
    for row in groups.aggregate([("bytes", "sum"), ("bytes", "count")]).to_pylist():
        source, license = row["source"] or "unknown", row["license"] or "unknown"
        summary.source_licenses.setdefault(source, set()).add(license)
        for amount in (summary.sources.setdefault(source, Amount()), summary.licenses.setdefault(license, Amount())):
            amount.documents += row["bytes_count"]
            amount.bytes += row["bytes_sum"]
    summary.languages.update(_value_counts(table["language"]))
    for url, count in _value_counts(table["url"]).items():
        if name := _domain(url):
            summary.domains[name] += count
    if len(summary.domains) > _MAX_DOMAINS:
        summary.domains = Counter(dict(ranked(summary.domains)[: _MAX_DOMAINS // 2]))
        summary.domains_complete = False
    summary.lengths["kept"].update(_bins(table["text"]))


def _add_removed(summary: Summary, table: pa.Table) -> None:
    groups = table.select(["step", "reason"]).group_by(["step", "reason"], use_threads=False)
    for row in groups.aggregate([([], "count_all")]).to_pylist():
        of_step = summary.removed.setdefault(row["step"] or "unknown", Counter())
        of_step[row["reason"] or "unknown"] += row["count_all"]
    summary.lengths["removed"].update(_bins(table["text"]))
    unreadable = table.filter(pc.equal(table["reason"], "unreadable"))
    summary.unreadable_count += unreadable.num_rows
    room = UNREADABLE_SHOWN - len(summary.unreadable)
    for row in unreadable.select(["id", "detail"]).slice(0, room).to_pylist():
        summary.unreadable.append((row["id"], row["detail"] or ""))


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {row["values"]: row["counts"] for row in pc.value_counts(column).to_pylist() if row["values"]}


def _bins(texts: pa.ChunkedArray) -> dict[int, int]:
    bins = np.searchsorted(LENGTH_EDGES, pc.utf8_length(texts).to_numpy(), side="right") - 1
    return {int(b): int(count) for b, count in zip(*np.unique(bins, return_counts=True), strict=True)}


def _domain(url: str) -> str | None:
    found = re.match(r"https?://([^/?#\\]+)", url, re.IGNORECASE)
    return _registered_domain(found[1].lower()) if found else None


@functools.lru_cache(maxsize=100_000)
def _registered_domain(host: str) -> str | None:
    found = suffix_list()(host)
    name = found.top_domain_under_public_suffix or found.domain
    return name if re.fullmatch(r"[\w.-]+|\[[0-9a-f:.]+\]", name) else None


def _rank(name: str) -> int:
    """A random number for a name, always the same one."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8, key=b"report").digest(), "big")


class _Sample:
    """Random rows: those whose ids have the smallest hashes, whatever the order they come in."""

    def __init__(self) -> None:
        self._best: list[tuple[int, dict[str, object]]] = []

    def offer(self, table: pa.Table) -> None:
        for position, name in enumerate(table["id"].to_pylist()):
            rank = _rank(name)
            if len(self._best) == SAMPLES and rank >= self._best[-1][0]:
                continue
            row = table.slice(position, 1).to_pylist()[0]
            row |= {"text": row["text"][: EXCERPT_CHARACTERS + 1], "characters": len(row["text"])}
            bisect.insort(self._best, (rank, row), key=operator.itemgetter(0))
            del self._best[SAMPLES:]

    def rows(self) -> list[dict[str, object]]:
        return [row for _, row in self._best]


class _Clusters:
    """Near-duplicate clusters: the sizes of all, and the documents of a random few."""

    def __init__(self) -> None:
        self._ids: list[np.ndarray] = []
        self._members: dict[int, list[dict[str, str]]] = {}

    def offer(self, removed: pa.Table) -> None:
        if not removed.num_rows:
            return
        ids = removed.filter(pc.is_valid(removed["detail"]))["detail"].cast(pa.int64()).to_numpy()
        self._ids.append(ids)
        for cluster in np.unique(ids).tolist():
            self._members.setdefault(cluster, [])
        # A cluster that stays to the end was never among those dropped here, so none of its documents is missed.
        self._members = {cluster: self._members[cluster] for cluster in self._smallest()}
        for cluster, members in self._members.items():
            rows = removed.filter(pc.equal(removed["detail"], str(cluster))).select(["id", "text"])
            for row in rows.slice(0, CLUSTER_MEMBERS_SHOWN - len(members)).to_pylist():
                members.append({"id": row["id"], "text": row["text"][:_COMPARED_CHARACTERS]})

    def _smallest(self) -> list[int]:
        return sorted(self._members, key=lambda cluster: (_rank(str(cluster)), cluster))[:CLUSTERS_SHOWN]

    def _counts(self) -> tuple[np.ndarray, np.ndarray]:
        return np.unique(np.concatenate(self._ids or [np.empty(0, np.int64)]), return_counts=True)

    def sizes(self) -> Counter[int]:
        sizes, clusters = np.unique(self._counts()[1] + 1, return_counts=True)  # and the one that was kept
        return Counter(dict(zip(sizes.tolist(), clusters.tolist(), strict=True)))

    def examples(self, folder: DataFolder) -> list[Cluster]:
        kept: dict[int, dict[str, str]] = {}
        for file in sorted(folder.glob("clusters/*.parquet")) if self._members else ():
            for table in _row_groups(folder, file):
                chosen = table.filter(pc.is_in(table["cluster"], pa.array([*self._members], pa.int64())))
                kept |= {row["cluster"]: {"id": row["id"], "text": row["text"]} for row in chosen.to_pylist()}
        sizes = {cluster: count + 1 for cluster, count in zip(*(a.tolist() for a in self._counts()), strict=True)}
        return [
            Cluster(sizes[cluster], kept[cluster], self._members[cluster])
            for cluster in self._smallest()
            if cluster in kept
        ]


def write_report(folder: DataFolder, summary: Summary, config: Mapping[str, object]) -> None:
    """Write `report.html`, which needs no other file, and `report.md`.

    Args:
        folder: The corpus.
        summary: What is in it.
        config: The settings of the run, as `hfchat.config.settings_of` gives them.
    """
    context = {
        "summary": summary,
        "lengths": _length_rows(summary),
        "clusters": [
            (cluster, [(document, *compare(cluster.kept["text"], document["text"])) for document in cluster.removed])
            for cluster in summary.clusters
        ],
        "settings": settings_as_yaml(config),
        "evaluation_sets": summary.evaluation_sets,
    }
    page = _html_environment().get_template("report.html.jinja").render(context)
    write_page(folder, "report.html", page)
    write_page(folder, "report.md", markdown_of(page))


def write_page(folder: DataFolder, name: str, page: str) -> None:
    """Write a rendered page, the same bytes everywhere."""
    with folder.open(name, "wb") as file:
        file.write(page.encode())


def settings_as_yaml(config: Mapping[str, object]) -> str:
    """The settings that decide what comes out, in the form of the YAML that a user writes, without credentials."""
    plain = json.loads(json.dumps({key: config[key] for key in config if key not in _NOT_SHOWN}))
    for source in plain.get("sources", ()):
        if "storage_options" in source:
            source["storage_options"] = _masked(source["storage_options"])
    if "steps" in plain:
        plain["steps"] = [step if any(step.values()) else next(iter(step)) for step in plain["steps"]]
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)
    return _SECRET_IN_URL.sub(r"\1***", _USER_IN_URL.sub("***@", text))


def _masked(value: object) -> object:
    if isinstance(value, dict):
        return {key: _masked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_masked(item) for item in value]
    return "***" if isinstance(value, str) else value


def _length_rows(summary: Summary) -> list[tuple[int, int, int]]:
    """Bins without gaps: (from how many characters, kept, removed)."""
    kept, removed = summary.lengths["kept"], summary.lengths["removed"]
    used = [*kept, *removed]
    return [(LENGTH_EDGES[b], kept[b], removed[b]) for b in (range(min(used), max(used) + 1) if used else ())]


def compare(kept: str, removed: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Two near duplicates side by side, about `CLUSTER_EXCERPT_CHARACTERS` of each, from their first difference on.

    Returns:
        The pieces of each: (text, whether the other has it not).
    """
    words = [_WORD.findall(text[:_COMPARED_CHARACTERS]) for text in (kept, removed)]
    operations = difflib.SequenceMatcher(None, words[0], words[1], autojunk=False).get_opcodes()
    differences = [operation for operation in operations if operation[0] != "equal"]
    return (
        _pieces(words[0], [(start, end) for _, start, end, _, _ in differences]),
        _pieces(words[1], [(start, end) for _, _, _, start, end in differences]),
    )


def _pieces(words: list[str], differences: list[tuple[int, int]]) -> list[tuple[str, bool]]:
    """`compare` for one of the two: its words, and from where to where they are not those of the other."""
    marked = [False] * len(words)
    for start, end in differences:
        marked[start:end] = [True] * (end - start)
    # A third of the excerpt stands before the first difference, or everything where little would be cut off.
    first = differences[0][0] if differences else 0
    start, before = first, 0
    while start and before + len(words[start - 1]) <= CLUSTER_EXCERPT_CHARACTERS // 3:
        start -= 1
        before += len(words[start])
    if start and sum(map(len, words[:start])) <= CLUSTER_EXCERPT_CHARACTERS // 3:
        start = 0
    # The rest stands from there on.
    end, length = start, 0
    while end < len(words) and length < CLUSTER_EXCERPT_CHARACTERS:
        length += len(words[end])
        end += 1
    pieces = [
        ("".join(word for word, _ in group)[:CLUSTER_EXCERPT_CHARACTERS], mark)
        for mark, group in itertools.groupby(
            zip(words[start:end], marked[start:end], strict=True), key=lambda entry: entry[1]
        )
    ]
    return [*([("… ", False)] if start else []), *pieces, *([("…", False)] if end < len(words) else [])]


def _html_environment() -> "jinja2.Environment":
    return _with_filters(templates.html_environment("hfchat.data"))


def markdown_environment() -> "jinja2.Environment":
    """Templates of this package in which every value is escaped for Markdown."""
    return _with_filters(templates.markdown_environment("hfchat.data"))


def _with_filters(environment: "jinja2.Environment") -> "jinja2.Environment":
    environment.filters |= {
        "share": _share,
        "width": lambda value, greatest: f"{100 * value / greatest if greatest else 0:.2f}%",
        "short": _short,
        "compact": _compact,
        "excerpt": lambda text, length=EXCERPT_CHARACTERS: text if len(text) <= length else f"{text[:length]}…",
        "ranked": ranked,
    }
    return environment


def _share(value: int, total: int) -> str:
    """Percent. What is not quite none or all is never shown as 0% or 100%."""
    percent = 100 * value / total if total else 0.0
    if value and percent < 0.1:
        return "<0.1%"
    return f"{min(percent, 99.9) if value < total else percent:.1f}%"


def _short(value: int) -> str:
    for unit, name in ((1_000_000, "M"), (1_000, "k")):
        if value >= unit:
            return f"{value // unit}{name}"
    return str(value)


def _compact(value: int) -> str:
    for unit, name in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if value >= unit:
            return f"{value / unit:.2f}{name}"
    return f"{value:,}"
