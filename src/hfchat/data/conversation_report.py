"""What was kept and dropped of conversations: as numbers, as a report in Markdown, and as the dataset card."""

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import yaml

from hfchat.data.conversation_formats import KINDS
from hfchat.data.report import markdown_environment
from hfchat.data.turns import Example, Message, turns_of
from hfchat.licenses import license_entry

_MAX_NOTES = 100
_NO_NOTES: Mapping[str, int] = {}


class SourceCounts(TypedDict):
    """A source, the rows that were read of it, the conversations in them, and those that were kept."""

    name: str
    license: str
    url: str
    format: str
    rows: int
    conversations: int
    kept: int


@dataclass
class Summary:
    """What was read, kept and dropped.

    Attributes:
        kind: One of `KINDS`.
        sources: What was read.
        kept: Conversations per split.
        removed: Conversations per reason.
        examples: The first removed ones for each reason, as they are written.
        notes: What of the kept conversations is not used, or not as it stood there, and how many times.
        personal_data: Replacements per kind, in the kept conversations.
        evaluation_sets: What `build_index` returned.
        turns: How many conversations have so many turns, without the system's. A pair counts by its chosen answer.
        characters: How many each kept conversation has.
        samples: Kept conversations drawn by their hash: `(hash, example)`.
    """

    kind: str
    sources: list[SourceCounts]
    kept: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    personal_data: Counter[str] = field(default_factory=Counter)
    evaluation_sets: dict[str, dict[str, int]] = field(default_factory=dict)
    turns: Counter[int] = field(default_factory=Counter)
    characters: list[int] = field(default_factory=list)
    samples: list[tuple[bytes, Example]] = field(default_factory=list)

    @property
    def conversations(self) -> int:
        return sum(source["conversations"] for source in self.sources)

    @property
    def licenses(self) -> list[str]:
        return sorted({source["license"] for source in self.sources if source["kept"]})

    def counts(self) -> dict[str, object]:
        """For the lineage."""
        return {
            "kind": self.kind,
            "rows": sum(source["rows"] for source in self.sources),
            "conversations": self.conversations,
            "kept": dict(self.kept),
            "removed": dict(self.removed.most_common()),
            "notes": dict(self.notes.most_common()),
            "sources": self.sources,
            "personal_data": dict(self.personal_data.most_common()),
            "evaluation_sets": self.evaluation_sets,
        }

    def add_kept(self, example: Example, digest: bytes, split: str, notes: Mapping[str, int] = _NO_NOTES) -> None:
        """Count an example with its remarks, and show it if its hash is among the smallest."""
        answer = "messages" if self.kind == "messages" else "chosen" if self.kind == "preference" else "completion"
        messages = turns_of(example, "prompt") + turns_of(example, answer)
        self.kept[split] += 1
        self.turns[sum(turn["role"] != "system" for turn in messages)] += 1
        self.characters.append(sum(map(_characters, messages)))
        for note, count in notes.items():
            # Files whose columns are named after their contents have any number of them.
            self.notes[note if note in self.notes or len(self.notes) < _MAX_NOTES else "other columns: not used"] += (
                count
            )
        self.samples = heapq.nsmallest(5, [*self.samples, (digest, example)], key=lambda sample: sample[0])

    def add_removed(self, row: dict[str, str]) -> None:
        """Count a removed row: `row`, `reason`, `detail` and `place`."""
        self.removed[row["reason"]] += 1
        examples = self.examples.setdefault(row["reason"], [])
        if len(examples) < 3:
            examples.append(row)


def _characters(turn: Message) -> int:
    """How many the chat template writes of a turn, but for its marks."""
    calls = [call["function"] for call in turn.get("tool_calls", ())]
    texts = [turn.get("reasoning_content", ""), turn["content"], *(f["name"] + f["arguments"] for f in calls)]
    return sum(map(len, texts))


def report(summary: Summary) -> str:
    """What was kept and dropped, in Markdown."""
    ordered = sorted(summary.characters)
    shares = {"shortest": 0, "10%": 0.1, "50%": 0.5, "90%": 0.9, "99%": 0.99, "longest": 1}
    context = {
        "summary": summary,
        "kept": summary.kept.total(),
        "lengths": [
            (name, ordered[min(int(share * len(ordered)), len(ordered) - 1)]) for name, share in shares.items()
        ],
        "samples": [as_text(example) for _, example in summary.samples],
    }
    return markdown_environment().get_template("conversation_report.md.jinja").render(context)


def card(summary: Summary, sizes: Mapping[str, int], download_size: int) -> str:
    """The dataset card; its header tells `datasets.load_dataset` where the splits are.

    Args:
        summary: What is in the dataset.
        sizes: Bytes of each split in memory.
        download_size: Bytes of its files: by them `datasets` tells a dataset that was made again from its cached copy.
    """
    context = {"summary": summary, "columns": KINDS[summary.kind]}
    body = markdown_environment().get_template("conversation_card.md.jinja").render(context)
    return card_header(summary.licenses, summary.kept, sizes, download_size) + body


def card_header(licenses: Sequence[str], rows: Mapping[str, int], sizes: Mapping[str, int], download_size: int) -> str:
    """The YAML of a card whose splits are in `data/<split>-*.parquet`.

    Args:
        licenses: The licences of what is in it.
        rows: How many each split has.
        sizes: See `card`, and `download_size`.
    """
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split, count in rows.items() if count]
    header = {
        **license_entry(licenses),
        "task_categories": ["text-generation"],
        "configs": [{"config_name": "default", "data_files": files}],
        "dataset_info": {
            "config_name": "default",
            # Without all three, `datasets` passes the splits over, with a warning.
            "splits": [
                {"name": split, "num_bytes": size, "num_examples": rows[split]} for split, size in sizes.items()
            ],
            "download_size": download_size,
            "dataset_size": sum(sizes.values()),
        },
    }
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n"


def as_text(example: Example) -> str:
    """The messages of an example, each with who says it, and its label if it has one."""
    parts = []
    for column in ("messages", "prompt", "completion", "chosen", "rejected"):
        for turn in turns_of(example, column):
            who = turn["role"] if column in ("messages", "prompt") else f"{turn['role']}, {column}"
            calls = [call["function"] for call in turn.get("tool_calls", ())]
            said = [f"({turn['reasoning_content']})"] if "reasoning_content" in turn else []
            said += [turn["content"]] if turn["content"] else []
            said += [f"{function['name']}({function['arguments']})" for function in calls]
            parts.append("\n".join([f"[{who}]", *said]))
    return "\n\n".join(parts + ([f"[label] {example['label']}"] if "label" in example else []))
