"""The dataset card of a corpus; its header tells `datasets.load_dataset` where the splits are."""

import re
from collections.abc import Mapping
from typing import Any

import yaml
from datatrove.io import DataFolder

from hfchat.data.report import Summary, plain

# Licences that the Hub knows by these names (https://huggingface.co/docs/hub/repositories-licenses).
_HUB_LICENSES = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "gfdl", "gpl-2.0", "gpl-3.0",
    "lgpl-3.0", "mpl-2.0", "odc-by", "odbl", "pddl", "unlicense", "unknown", "isc", "psfl", "zlib",
}  # fmt: skip
_SIZES = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
          (10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"), (1_000_000_000, "100M<n<1B")]  # fmt: skip


def write_card(folder: DataFolder, summary: Summary, config: Mapping[str, Any]) -> None:
    """Write `README.md`.

    Args:
        folder: Of the corpus.
        summary: What is in it. A split without documents is not named.
        config: The settings of the run.
    """
    splits = [split for split, documents in summary.documents.items() if documents]
    known = {license.lower() for license in summary.licenses} & _HUB_LICENSES
    header: dict[str, Any] = {
        "license": sorted(known) if len(known) == len(summary.licenses) else "other",
        "task_categories": ["text-generation"],
        "size_categories": [next((name for limit, name in _SIZES if summary.kept < limit), "n>1B")],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits],
            }
        ],
    }
    # `datasets` finds its cached copy by this, and not by the files: without it, a corpus that is built again under the
    # same path would be loaded as it was before.
    header["dataset_info"] = {
        "config_name": "default",
        "splits": [
            {"name": split, "num_bytes": summary.bytes[split], "num_examples": summary.documents[split]}
            for split in splits
        ],
        "download_size": sum(folder.size(file) for file in folder.glob("data/*.parquet")),
        "dataset_size": sum(summary.bytes.values()),
    }
    if codes := sorted(code for code in summary.languages if re.fullmatch(r"[a-z]{2,3}", code)):
        header["language"] = codes
    lines = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n# Corpus\n",
        "Made by `recipes/prepare_data.py` of hfchat; `lineage.json` holds the inputs, settings and versions, "
        "`report.html` shows what was kept and what was removed.\n",
        '```python\nfrom datasets import load_dataset\n\ncorpus = load_dataset("path/of/this/folder")\n```\n',
        "| split | documents | megabytes | tokens |\n| --- | ---: | ---: | ---: |",
        *(
            f"| {split} | {summary.documents[split]:,} | {summary.bytes[split] / 1e6:.1f} | "
            f"{f'{summary.tokens[split]:,}' if summary.tokens[split] else 'not counted'} |"
            for split in splits
        ),
        "\nColumns: `text`, `id`, `source`, `license`, `url`, and where known `date`, `language`, `language_score` and "
        "`token_count`.\n",
        "## Sources\n",
        "| source | licence, as it states it | documents |\n| --- | --- | ---: |",
        *(
            f"| {_cell(source)} | {_cell(', '.join(sorted(summary.source_licenses[source])))} | {documents:,} |"
            for source, documents in summary.sources.most_common(100)
        ),
        *([f"\nand {len(summary.sources) - 100:,} more, see `report.md`."] if len(summary.sources) > 100 else []),
        "\n## How it was made\n",
        f"{summary.read:,} documents were read. Each that was removed is kept in `removed/`, with its reason.\n",
        "| step | documents left | removed |\n| --- | ---: | --- |",
        *(
            f"| {step} | {left:,} | {', '.join(f'{reason} {count:,}' for reason, count in removed.most_common())} |"
            for step, left, removed in summary.funnel()
        ),
        f"\n```yaml\n{yaml.safe_dump(_chain(config), sort_keys=False, allow_unicode=True)}```\n",
        "## Personal data, and limits\n",
        _personal_data(summary),
        "The filters are heuristics: some good documents are gone, and some bad ones are left. Each document keeps the "
        "licence of its source; the collection as a whole has no other. Nobody has read all of it.",
    ]
    with folder.open("README.md", "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def _chain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: plain(config[key]) for key in ("sources", "steps", "validation_fraction", "tasks") if key in config}


def _personal_data(summary: Summary) -> str:
    if "pii" not in summary.chain:
        return "Personal data was not looked for.\n"
    replaced = ", ".join(f"{count:,} of kind {kind}" for kind, count in summary.pii.items()) or "none found"
    return (
        f"Email and IP addresses, phone and card numbers were replaced by values that are nobody's, as far as the "
        f"settings asked and rules can find them ({replaced}). Names and postal addresses were not looked for.\n"
    )


def _cell(value: str) -> str:
    return " ".join(value.split()).replace("|", "\\|")
