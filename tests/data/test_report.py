import json
import re
from collections import Counter
from html.parser import HTMLParser

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datatrove.io import DataFolder

from hfchat.data import report
from hfchat.data.report import Amount, compare, settings_as_yaml, summarize, write_report
from hfchat.data.shards import CLUSTER_SCHEMA, REMOVED_SCHEMA, SCHEMA

CHAIN = ["read", "extract", "fix_text", "quality", "near_dedup"]
HOSTILE = (
    "<script>alert(1)</script></pre><img src=x onerror=alert(1)> \x00\x1b[31m\x85 \u202etxt.exe\u202c \u200f & \"'"
)


def kept(i: int, text: str | None = None, **columns) -> dict:
    text = f"Document number {i}." if text is None else text
    return {"text": text, "id": f"kept/{i}", "source": "books", "license": "CC0-1.0", "url": "", **columns}


def removed(i: int, step: str, reason: str, text: str = "Gone.", **columns) -> dict:
    row = {"text": text, "id": f"removed/{i}", "source": "books", "license": "CC0-1.0", "url": ""}
    return {**row, "step": step, "reason": reason, **columns}


def write(folder: DataFolder, name: str, rows: list[dict], schema: pa.Schema, rows_per_group: int = 3) -> None:
    with folder.open(name, "wb") as file:
        pq.write_table(pa.Table.from_pylist(rows, schema), file, row_group_size=rows_per_group)


@pytest.fixture
def folder(tmp_path) -> DataFolder:
    return DataFolder(str(tmp_path / "corpus"))


@pytest.fixture
def corpus(folder) -> DataFolder:
    """8 documents read: 5 kept, of two sources, and 3 removed, by two steps."""
    rows = [
        kept(0, "é" * 120, url="https://www.bbc.co.uk/news", language="en", token_count=30),
        kept(1, "b" * 10, url="http://Docs.Python.org:80/3/", language="en", token_count=3),
        kept(2, "c" * 15, url="https://10.0.0.1/x", language="de"),
        kept(3, "", url="https://[broken", source="crawl", license=None),
    ]
    write(folder, "data/train-00000.parquet", rows[:3], SCHEMA, rows_per_group=2)
    write(folder, "data/train-00001.parquet", rows[3:], SCHEMA)
    write(folder, "data/validation-00000.parquet", [kept(4, "d" * 40, url="https://python.org/")], SCHEMA)
    short = [removed(i, "quality", "too_short", score=5.0) for i in range(2)]
    write(folder, "removed/too_short/02-quality-00000.parquet", short, REMOVED_SCHEMA)
    unreadable = [removed(2, "read", "unreadable", "", detail="JSONDecodeError: line 1")]
    write(folder, "removed/unreadable/00-source0-00000.parquet", unreadable, REMOVED_SCHEMA)
    return folder


def pages(folder: DataFolder, summary, config=None, evaluation_sets=None) -> tuple[str, str]:
    summary.evaluation_sets = evaluation_sets or {}
    write_report(folder, summary, config or {})
    return tuple(folder.cat(name).decode() for name in ("report.html", "report.md"))


class Elements(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.text, self.marked, self._stack = "", [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        self._stack.append(tag)

    def handle_endtag(self, tag):
        while self._stack and self._stack.pop() != tag:
            pass

    def handle_data(self, data):
        self.text += data
        if self._stack and self._stack[-1] == "mark":
            self.marked.append(data)


def test_summary_counts_what_the_files_hold(corpus):
    summary = summarize(corpus, CHAIN, read=8)
    assert summary.documents == {"train": 4, "validation": 1}
    assert summary.bytes == {"train": 240 + 10 + 15, "validation": 40}
    assert summary.tokens == {"train": 33, "validation": 0}
    assert summary.removed == {"quality": {"too_short": 2}, "read": {"unreadable": 1}}
    assert summary.sources == {"books": Amount(4, 305), "crawl": Amount(1, 0)}
    assert summary.licenses == {"CC0-1.0": Amount(4, 305), "unknown": Amount(1, 0)}
    assert summary.source_licenses == {"books": {"CC0-1.0"}, "crawl": {"unknown"}}
    assert summary.languages == {"en": 2, "de": 1}
    assert summary.domains == {"bbc.co.uk": 1, "python.org": 2, "10.0.0.1": 1}
    edges = report.LENGTH_EDGES
    assert {edges[b]: n for b, n in summary.lengths["kept"].items()} == {0: 1, 10: 2, 20: 1, 100: 1}
    assert {edges[b]: n for b, n in summary.lengths["removed"].items()} == {0: 3}
    assert (summary.unreadable, summary.unreadable_count) == ([("removed/2", "JSONDecodeError: line 1")], 1)
    assert summary.funnel() == [
        ("read", 7, {"unreadable": 1}),
        ("extract", 7, {}),
        ("fix_text", 7, {}),
        ("quality", 5, {"too_short": 2}),
        ("near_dedup", 5, {}),
    ]
    assert json.loads(json.dumps(summary.counts()))["removed"] == {"too_short": 2, "unreadable": 1}


def test_a_document_that_is_neither_kept_nor_removed_is_an_error(corpus):
    with pytest.raises(RuntimeError, match="9 documents were read, but 5 kept and 3 removed"):
        summarize(corpus, CHAIN, read=9)


def test_a_step_that_the_chain_does_not_name_still_counts_in_the_funnel(corpus):
    assert summarize(corpus, ["read"], read=8).funnel()[-1] == ("quality", 5, {"too_short": 2})


def test_both_pages_state_the_numbers(corpus):
    summary = summarize(corpus, CHAIN, read=8)
    summary.chain.append("pii")
    summary.pii = {"email": 1234}
    sets = {"gsm8k": {"rows": 7473, "n_grams": 99, "too_short": 12}}
    html, markdown = pages(corpus, summary, {"steps": [{"quality": {}}]}, sets)
    text = " ".join(Elements(html).text.split())
    for fact in ("8 documents read", "5 kept (62.5%)", "−2 too_short", "bbc.co.uk", "1,234", "7,473", "- quality"):
        assert fact in text
    for row in ("| quality | 5 | **−2** | too_short |", "| train | 4 | 0.3 kB | 33 |", "| gsm8k | 7,473 | 99 | 12 |"):
        assert row in markdown
    assert "<script" not in html
    assert not re.search(r"(src|href)\s*=|@import|url\(", html), "the page must need no other file"


def test_samples_are_random_documents_whatever_the_order(tmp_path):
    rows = [kept(i) for i in range(200)]
    samples = []
    for name, order, cut in (("a", rows, 50), ("b", rows[::-1], 150)):
        folder = DataFolder(str(tmp_path / name))
        write(folder, "data/train-00000.parquet", order[:cut], SCHEMA, rows_per_group=7)
        write(folder, "data/train-00001.parquet", order[cut:], SCHEMA, rows_per_group=11)
        samples.append(summarize(folder, CHAIN, read=200).samples["kept"])
    assert samples[0] == samples[1]
    numbers = sorted(int(row["id"].split("/")[1]) for row in samples[0])
    assert len(set(numbers)) == report.SAMPLES
    assert numbers[0] < 60
    assert numbers[-1] > 140


def test_documents_with_the_same_id_are_sampled_and_counted(folder):
    write(folder, "data/train-00000.parquet", [kept(0, text) for text in ("One.", "Two.")], SCHEMA)
    summary = summarize(folder, CHAIN, read=2)
    assert [row["text"] for row in summary.samples["kept"]] == ["One.", "Two."]


def test_text_of_documents_is_never_markup(folder):
    def build(text: str) -> tuple[str, str]:
        about = {"source": text, "license": text, "language": text, "url": "https://a.org"}
        write(folder, "data/train-00000.parquet", [{**kept(0, text), **about, "id": text}], SCHEMA)
        rows = [
            {**removed(1, "read", "unreadable", text, detail=text), **about, "id": text},
            {**removed(2, "near_dedup", "near_duplicate", f"{text} more", detail="7"), **about, "id": text},
        ]
        write(folder, "removed/all/00000.parquet", rows, REMOVED_SCHEMA)
        write(folder, "clusters/00000.parquet", [{"cluster": 7, "id": text, "text": text}], CLUSTER_SCHEMA)
        summary = summarize(folder, CHAIN, read=3)
        return pages(folder, summary, {"sources": [{"path": text}]}, {text: {"rows": 1, "n_grams": 1, "too_short": 0}})

    plain, hostile = build("x" * len(HOSTILE)), build(HOSTILE)
    before, after = Elements(plain[0]), Elements(hostile[0])
    assert after.tags - Counter(mark=99) == before.tags - Counter(mark=99)
    assert after.attributes == before.attributes
    assert "<script>alert(1)</script></pre>" in after.text
    for page in hostile:
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", page)
        assert "␀" in page
        assert "[U+202E]txt.exe[U+202C]" in page
    outside = re.sub(r"(?ms)^(`{3,})\w*\n.*?^\1$", "", hostile[1])
    outside = re.sub("</?(details|summary)>", "", outside)  # the report's own
    assert "<" not in outside.replace("removed/<reason>/", "")


def test_markdown_of_documents_does_not_become_the_reports(folder):
    text = "```\n# Heading\n````\n| a | b |\n![x](http://evil)"
    rows = [{**kept(0, text), "id": "a|b\n# x", "source": "[s](http://evil) *b* _i_ `c` a_b"}]
    write(folder, "data/train-00000.parquet", rows, SCHEMA)
    _, markdown = pages(folder, summarize(folder, CHAIN, read=1))
    assert f"`````text\n{text}\n`````" in markdown
    assert "a\\|b # x" in markdown
    assert "| \\[s\\](http://evil) \\*b\\* \\_i\\_ \\`c\\` a_b | 1 |" in markdown


def test_surrogates_in_settings_do_not_break_the_report(corpus):
    html, markdown = pages(corpus, summarize(corpus, ["read", "b\udcff"], 8), {"sources": [{"path": "a\udcff.txt"}]})
    assert "b\N{REPLACEMENT CHARACTER}" in html
    assert "b\N{REPLACEMENT CHARACTER}" in markdown


def test_text_of_any_script_is_shown_as_it_is(folder):
    text = "n\u00a0° 3 « a » 東京\u3000大阪 می\u200cخواهم नमस्\u200dते 👩\u200d💻 soft\u00adhyphen"
    write(folder, "data/train-00000.parquet", [kept(0, text)], SCHEMA)
    for page in pages(folder, summarize(folder, CHAIN, read=1)):
        assert text in page


def test_long_texts_are_cut(folder):
    write(folder, "data/train-00000.parquet", [kept(0, "x" * 100_000)], SCHEMA)
    summary = summarize(folder, CHAIN, read=1)
    assert len(summary.samples["kept"][0]["text"]) < 1_000, "samples must not hold whole documents in memory"
    for page in pages(folder, summary):
        assert "100,000 characters" in page
        assert f"{'x' * report.EXCERPT_CHARACTERS}…" in page
        assert "x" * (report.EXCERPT_CHARACTERS + 1) not in page


def test_near_duplicates_are_shown_side_by_side(folder):
    same = "They are the same for a long time. " * 30
    write(folder, "data/train-00000.parquet", [kept(i) for i in range(2)], SCHEMA)
    rows = [removed(i, "near_dedup", "near_duplicate", f"{same}This is new {i}.", detail="11") for i in range(5)]
    rows.append(removed(5, "near_dedup", "near_duplicate", "Other.", detail="22"))
    write(folder, "removed/near_duplicate/04-near_dedup-00000.parquet", rows[:2], REMOVED_SCHEMA)
    write(folder, "removed/near_duplicate/04-near_dedup-00001.parquet", rows[2:], REMOVED_SCHEMA, rows_per_group=2)
    clusters = [
        {"cluster": 11, "id": "k", "text": f"{same}This is old."},
        {"cluster": 22, "id": "o", "text": "Other!"},
    ]
    write(folder, "clusters/00000.parquet", clusters, CLUSTER_SCHEMA)
    summary = summarize(folder, CHAIN, read=8)
    assert summary.cluster_sizes == {6: 1, 2: 1}
    large = next(cluster for cluster in summary.clusters if cluster.size == 6)
    assert large.kept["id"] == "k"
    assert [member["id"] for member in large.removed] == ["removed/0", "removed/1", "removed/2"]
    html, markdown = pages(folder, summary)
    marked = " ".join(Elements(html).marked).split()
    assert {"old", "new", "0"} <= set(marked)
    assert not {"They", "same"} & set(marked)
    assert "and 2 more removed" in html
    assert "This is new 2." in markdown


def test_examples_of_clusters_are_the_same_in_any_order_and_whole(tmp_path):
    rows = [
        removed(i, "near_dedup", "near_duplicate", f"{i}", detail=str(i % 40))
        for i in range(120)  # 40 clusters, 3 removed of each, far apart
    ]
    clusters = [{"cluster": i, "id": f"k{i}", "text": f"kept {i}"} for i in range(40)]
    found = []
    for name, order in (("a", rows), ("b", sorted(rows, key=lambda row: (int(row["detail"]), int(row["text"]))))):
        folder = DataFolder(str(tmp_path / name))
        write(folder, "removed/near_duplicate/04-near_dedup-00000.parquet", order, REMOVED_SCHEMA, rows_per_group=7)
        write(folder, "clusters/00000.parquet", clusters, CLUSTER_SCHEMA)
        found.append(summarize(folder, CHAIN, read=120))
    assert found[0].clusters == found[1].clusters
    assert [len(cluster.removed) for cluster in found[0].clusters] == [3] * report.CLUSTERS_SHOWN
    assert found[0].cluster_sizes == {4: 40}


@pytest.mark.parametrize(
    ("one", "other", "marked"),
    [
        ("a b c", "a x c", (["b "], ["x "])),
        ("a b", "a b c", (["b"], ["b c"])),
        ("東京は大きい", "東京は小さい", (["大き"], ["小さ"])),
        ("", "a", ([], ["a"])),
        ("same", "same", ([], [])),
    ],
)
def test_compare_marks_what_the_other_has_not(one, other, marked):
    sides = compare(one, other)
    assert ["".join(text for text, _ in side) for side in sides] == [one, other]
    assert tuple([text for text, differs in side if differs] for side in sides) == marked


def test_compare_is_bounded_for_words_of_any_length():
    for side in compare("x" * 5000, "y" * 5000):
        assert sum(len(text) for text, _ in side) <= 2 * report.CLUSTER_EXCERPT_CHARACTERS


def test_many_unreadable_records_are_counted_and_the_first_shown(folder):
    rows = [removed(i, "read", "unreadable", "", detail=f"error {i}") for i in range(80)]
    write(folder, "removed/unreadable/00-source0-00000.parquet", rows, REMOVED_SCHEMA)
    summary = summarize(folder, CHAIN, read=80)
    assert summary.unreadable_count == 80
    assert summary.unreadable == [(f"removed/{i}", f"error {i}") for i in range(50)]
    assert all("80 records or files, of which the first 50" in page for page in pages(folder, summary))


def test_rare_domains_are_forgotten_when_there_are_too_many(folder, monkeypatch):
    monkeypatch.setattr(report, "_MAX_DOMAINS", 10)
    rows = [kept(i, url="https://often.org" if i % 2 else f"https://site{i}.org") for i in range(60)]
    write(folder, "data/train-00000.parquet", rows, SCHEMA, rows_per_group=6)
    summary = summarize(folder, CHAIN, read=60)
    assert len(summary.domains) <= 10
    assert summary.domains["often.org"] == 30
    assert all("rare ones are left out" in page for page in pages(folder, summary))


def test_settings_are_those_of_the_result_without_credentials():
    config = {
        "output_dir": "/home/me/out",
        "workers": 3,
        "executor": {"kind": "slurm"},
        "sources": [
            {"path": "ftp://me:geheim@host/a?.txt"},
            {"path": "https://host/b.jsonl?X-Amz-Signature=geheim&x=1"},
            {"path": "s3://b/c", "storage_options": {"secret": "geheim", "anon": False, "kwargs": {"k": ["geheim"]}}},
        ],
        "steps": [{"fix_text": {}}, {"quality": {"min_characters": 3}}],
    }
    text = settings_as_yaml(config)
    assert "geheim" not in text
    assert "a?.txt" in text
    assert "anon: false" in text
    assert "- fix_text\n- quality:\n    min_characters: 3\n" in text
    assert text == settings_as_yaml(config | {"output_dir": "/elsewhere", "workers": 8, "executor": "local"})
    assert config["sources"][2]["storage_options"]["secret"] == "geheim", "the caller's settings were changed"


def test_the_report_of_nothing(folder):
    html, markdown = pages(folder, summarize(folder, CHAIN, read=0))
    assert "documents read" in html
    assert "- **0** documents read" in markdown


def test_the_folder_can_be_on_another_storage():
    folder = DataFolder("memory://report-test")
    write(folder, "data/train-00000.parquet", [kept(0)], SCHEMA)
    html, _ = pages(folder, summarize(folder, CHAIN, read=1))
    assert "Document number 0." in html
