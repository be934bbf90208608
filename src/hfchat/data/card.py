"""The dataset card of a corpus; its header tells `datasets.load_dataset` where the splits are."""

import re
from collections.abc import Mapping

import yaml
from datatrove.io import DataFolder

from hfchat.data.report import Summary, markdown_environment, settings_as_yaml, write_page
from hfchat.licenses import license_entry

# The Hub's categories: the first number of documents that is too many for each.
_SIZES = (
    "n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B", "10B<n<100B",
    "100B<n<1T", "n>1T",
)  # fmt: skip
# Identification errs on short texts: a language of fewer documents may not be there at all.
_LANGUAGE_SHARE = 0.01

# What is true of the corpus where a step is not in the chain.
_WITHOUT = {
    ("language",): "Languages were not identified: there may be documents in any.",
    ("inappropriate", "classifier"): "Obscene, hateful and otherwise inappropriate documents were not looked for.",
    ("exact_dedup",): "Documents that occur more than once were not removed.",
    ("near_dedup",): "Documents that are almost the same were not removed.",
    ("decontaminate",): "Evaluation sets were not kept out: a model trained on this may have seen their answers.",
}


def write_card(folder: DataFolder, summary: Summary, config: Mapping[str, object]) -> None:
    """Write `README.md`.

    Args:
        folder: The corpus.
        summary: What is in it. A split without documents is not named.
        config: The settings of the run.
    """
    # `datasets` cannot load a split without a file.
    splits = [split for split, documents in summary.documents.items() if documents]
    languages = [
        code
        for code, documents in sorted(summary.languages.items())
        if documents >= _LANGUAGE_SHARE * summary.kept and re.fullmatch(r"[a-z]{2,3}", code)
    ]
    header = {
        **license_entry(summary.licenses),
        **({"language": languages} if languages else {}),
        "task_categories": ["text-generation"],
        "size_categories": [_SIZES[min(max(len(str(summary.kept)) - 3, 0), len(_SIZES) - 1)]],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits],
            }
        ],
        # `datasets` finds its cached copy by this, and not by the files: without it, a corpus that is built again
        # under the same path would be loaded as it was before.
        "dataset_info": {
            "config_name": "default",
            "splits": [
                {"name": split, "num_bytes": summary.bytes[split], "num_examples": summary.documents[split]}
                for split in splits
            ],
            "download_size": sum(folder.size(file) for file in folder.glob("data/*.parquet")),
            "dataset_size": summary.bytes.total(),
        },
    }
    context = {"summary": summary, "settings": settings_as_yaml(config), "limits": _limits(summary)}
    body = markdown_environment().get_template("card.md.jinja").render(context)
    write_page(folder, "README.md", f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n{body}")


def _limits(summary: Summary) -> list[str]:
    return [text for steps, text in _WITHOUT.items() if not set(steps) & set(summary.chain)]
