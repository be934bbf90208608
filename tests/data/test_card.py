import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from datatrove.io import DataFolder
from huggingface_hub import DatasetCard

from hfchat.data.card import write_card
from hfchat.data.report import Amount, Summary
from hfchat.data.shards import REMOVED_SCHEMA, SCHEMA

CHAIN = ["read", "extract", "language", "inappropriate", "pii", "exact_dedup", "near_dedup", "decontaminate"]


@pytest.fixture
def folder(tmp_path) -> DataFolder:
    return DataFolder(str(tmp_path / "corpus"))


def summary(documents: int = 3, **changes) -> Summary:
    values = {
        "chain": CHAIN,
        "read": documents + 2,
        "licenses": {"CC0-1.0": Amount(documents, 300)},
        "sources": {"books": Amount(documents, 300)},
        "source_licenses": {"books": {"CC0-1.0"}},
        "removed": {"exact_dedup": {"exact_duplicate": 2}},
        **changes,
    }
    result = Summary(**{name: value for name, value in values.items() if name != "removed"})
    for step, reasons in values["removed"].items():
        result.removed[step] = type(result.documents)(reasons)
    result.documents.update(train=documents - 1, validation=1)
    result.bytes.update(train=200, validation=100)
    return result


def card(folder: DataFolder, found: Summary, config: dict | None = None) -> DatasetCard:
    write_card(folder, found, config or {})
    return DatasetCard(folder.cat("README.md").decode())


def test_load_dataset_opens_the_folder_by_the_card_and_leaves_out_what_was_removed(folder, tmp_path):
    def write(name: str, texts: list[str], schema: pa.Schema) -> None:
        with folder.open(name, "wb") as file:
            pq.write_table(pa.Table.from_pylist([{"text": text, "id": text} for text in texts], schema), file)

    write("data/train-00000.parquet", ["a"], SCHEMA)
    write("data/train-00001.parquet", ["b"], SCHEMA)
    write("data/validation-00000.parquet", ["c"], SCHEMA)
    write("removed/exact_duplicate/05-exact_dedup-00000.parquet", ["d", "e"], REMOVED_SCHEMA)
    write_card(folder, summary(), {})
    corpus = load_dataset(folder.path, cache_dir=str(tmp_path / "cache"))
    assert {split: rows["text"][:] for split, rows in corpus.items()} == {"train": ["a", "b"], "validation": ["c"]}
    assert corpus["train"].column_names == SCHEMA.names


def test_the_header_is_what_the_hub_reads(folder):
    found = summary(5_000)
    found.languages.update(en=4_800, de=150, la=3)
    data = card(folder, found).data
    assert data.license == "cc0-1.0"
    assert data.language == ["de", "en"]
    assert data.task_categories == ["text-generation"]
    assert data.size_categories == ["1K<n<10K"]
    assert [entry["split"] for entry in data.configs[0]["data_files"]] == ["train", "validation"]
    assert {split["name"]: split["num_examples"] for split in data.dataset_info["splits"]} == {
        "train": 4_999,
        "validation": 1,
    }


def test_no_language_is_named_where_none_was_identified(folder):
    assert "language" not in card(folder, summary()).data.to_dict()


@pytest.mark.parametrize(
    ("licenses", "expected"),
    [
        (["CC-BY-SA-3.0"], ("cc-by-sa-3.0", None)),
        (["MIT License", "Apache-2.0", "MIT"], (["apache-2.0", "mit"], None)),
        (["GPL-3.0-or-later", "ODC-By-1.0"], (["gpl-3.0", "odc-by"], None)),
        (["unknown"], ("unknown", None)),
        (["Public Domain!"], ("other", "public-domain")),
        (["MIT", "public-domain"], ("other", "several")),
        (["Apache-2.0 OR MIT"], ("other", "apache-2.0-or-mit")),
    ],
)
def test_licences_by_the_hubs_names(folder, licenses, expected):
    data = card(folder, summary(licenses={name: Amount(1, 1) for name in licenses})).data
    assert (data.license, data.get("license_name")) == expected


@pytest.mark.parametrize(
    ("documents", "category"), [(999, "n<1K"), (1_000, "1K<n<10K"), (10**9, "1B<n<10B"), (10**14, "n>1T")]
)
def test_size_categories(folder, documents, category):
    assert card(folder, summary(documents)).data.size_categories == [category]


def test_a_split_without_documents_is_not_named(folder):
    found = summary()
    found.documents["validation"] = 0
    data = card(folder, found).data
    assert [entry["split"] for entry in data.configs[0]["data_files"]] == ["train"]


def test_the_body_says_what_was_done(folder):
    found = summary(pii={"email": 12})
    text = card(folder, found, {"steps": [{"pii": {"kinds": ["email"]}}], "workers": 7}).text
    assert "| books | CC0-1.0 | 3 | 0.3 kB |" in text
    assert "| exact_dedup | 3 | 2 | exact_duplicate 2 |" in text
    assert "```yaml\nsteps:\n- pii:\n    kinds:\n    - email\n```" in text
    assert "find them: email 12." in text
    assert "workers" not in text


def test_the_body_says_what_was_not_done(folder):
    whole = card(folder, summary()).text
    assert "Personal data was not looked for" not in whole
    assert "none was found" in whole
    bare = card(folder, summary(chain=["read", "extract"])).text
    for sentence in (
        "Personal data was not looked for",
        "Languages were not identified",
        "inappropriate documents were not looked for",
        "more than once were not removed",
        "almost the same were not removed",
        "Evaluation sets were not kept out",
    ):
        assert sentence in bare
        assert sentence not in whole


def test_names_from_the_data_are_not_markup_and_credentials_are_left_out(folder):
    name = "<script>|x\n# [y](http://evil)"
    found = summary(sources={name: Amount(3, 300)}, source_licenses={name: {name}}, licenses={name: Amount(3, 300)})
    source = {"path": "s3://b/c", "storage_options": {"secret": "geheim"}}
    text = card(folder, found, {"sources": [source]}).text
    assert "<script>" not in text
    assert "| &lt;script&gt;\\|x # \\[y\\](http://evil) |" in text
    assert "geheim" not in text
