"""Answers in JSON: are they valid by their schemas, and are their fields right?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hfchat.chat import Chat, Json
from hfchat.errors import UserError
from hfchat.evaluation.asking import Asked, AskingTask
from hfchat.evaluation.bootstrap import Statistics, mean
from hfchat.evaluation.model import EvaluatedModel
from hfchat.evaluation.records import by_group, read_records, write_records
from hfchat.evaluation.schemas import is_valid, normalized, read_json
from hfchat.evaluation.task import Example, Measured, Record, read_rows
from hfchat.messages import check_messages
from hfchat.results import Metric

_METRICS = {
    "exact": Metric("JSON exactly right", "higher", ".1%"),
    "fields": Metric("Fields that are right", "higher", ".1%"),
    "valid": Metric("JSON valid by its schema", "higher", ".1%"),
}


@dataclass
class JsonAnswers(AskingTask):
    """Asks for JSON, and compares it with the last turn of the rows, see `hfchat.evaluation.schemas.normalized`.

    The whole answer has to be JSON: what stands before or after it, such as the fence of a block of code, makes it
    wrong. A field is a key of the object that is wanted; further ones of the answer do not count against it there.

    Attributes:
        dataset_name: Folder, file or Hub id with `messages`, the last of which is JSON, and with a `schema` as an
            object or as JSON in a text. What the model has to know of the schema stands in the messages.
        split: Name of its split.
        max_samples: Take only the first so many rows.
        max_new_tokens: Longest answer.
        mask: Bind answers to their schemas, by `response_format` as in OpenAI's API.
    """

    kind = "json"
    columns = _METRICS
    limits = (
        "An answer counts as wrong where it differs in anything from the one of the row, although another may do.",
    )
    group_label = "kind"
    headline = "exact"

    name: str
    dataset_name: str
    split: str = "test"
    max_samples: int | None = None
    max_new_tokens: int = 192
    mask: bool = False

    def __post_init__(self) -> None:
        self.require_at_least(1, "max_samples", "max_new_tokens")

    @property
    def title(self) -> str:
        return f"JSON: {self.name}"

    def prepare(self) -> None:
        rows = read_rows(self.dataset_name, self.split, ("messages", "schema"), self.max_samples)
        self.examples = [self._example(row, place) for row, place in rows]

    def _example(self, row: Json, place: str) -> Example:
        check_messages(row["messages"], place)
        *prompt, last = ({"role": turn["role"], "content": turn["content"]} for turn in row["messages"])
        # A schema may be JSON in a text, because rows with different ones have no common type in Arrow.
        schema = read_json(row["schema"]) if isinstance(row["schema"], str) else row["schema"]
        if not isinstance(schema, dict):
            raise UserError(f"{place}: 'schema' must be a JSON object, not {row['schema']!r:.60}")
        if not is_valid(last["content"], schema):
            raise UserError(f"{place}: its last turn is not JSON that is valid by its 'schema'")
        # What is asked is the same with and without the mask; only what may be drawn is not.
        bound = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
        return Example(
            prompt=prompt,
            references=[last["content"]],
            group=row.get("kind"),
            info={"schema": schema},
            place=place,
            chat=Chat(prompt, response_format=bound if self.mask else None),
        )

    @property
    def source(self) -> str:
        return self.dataset_name

    def refusal(self, model: EvaluatedModel) -> str | None:
        return model.refusal_of_chats([one.chat for one in self.examples if one.chat is not None], False)

    def asked(self, model: EvaluatedModel) -> Asked:
        return Asked(self.max_new_tokens)

    def measure(self, model: str, folder: Path) -> Measured:
        file = folder / f"{model}.jsonl"
        records = read_records(file)
        for record in records:
            record.scores = _scores(record)
        write_records(file, records)
        groups = by_group(records)
        return Measured(self._statistics(records), {group: self._statistics(own) for group, own in groups.items()})

    def _statistics(self, records: Sequence[Record]) -> dict[str, Statistics]:
        signature = f"mean|mask:{'yes' if self.mask else 'no'}"
        return {name: mean([one.scores[name] for one in records], signature, bounds=(0, 1)) for name in self.columns}


def _scores(record: Record) -> dict[str, float]:
    """What of one answer is right."""
    answer, wanted = read_json(record.text), read_json(record.references[0])
    if answer is ...:
        return dict.fromkeys(_METRICS, 0.0)
    exact = normalized(answer) == normalized(wanted)
    fields = _right_fields(answer, wanted) if isinstance(wanted, dict) and wanted else float(exact)
    return {"exact": float(exact), "fields": fields, "valid": float(is_valid(record.text, record.info["schema"]))}


def _right_fields(answer: object, wanted: Json) -> float:
    given = answer if isinstance(answer, dict) else {}
    right = [key in given and normalized(given[key]) == normalized(value) for key, value in wanted.items()]
    return sum(right) / len(right)
