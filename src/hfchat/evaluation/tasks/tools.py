"""Tool calls: is a function called when it should be, is it the right one, and are its arguments right?"""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfchat.chat import Chat, Json
from hfchat.errors import UserError
from hfchat.evaluation.asking import Asked, AskingTask, with_calls
from hfchat.evaluation.bootstrap import Statistics, mean
from hfchat.evaluation.model import EvaluatedModel
from hfchat.evaluation.records import by_group, read_records, write_records
from hfchat.evaluation.schemas import is_valid, normalized, read_json
from hfchat.evaluation.task import Example, Measured, Record, read_rows
from hfchat.messages import ROLES_WITH_TOOLS, arguments_as_text, check_messages, parse_tools
from hfchat.results import Metric

_METRICS = {
    "exact_calls": Metric("Calls exactly right, where some are asked for", "higher", ".1%"),
    "called": Metric("Something called, where calls are asked for", "higher", ".1%"),
    "named": Metric("The right functions called", "higher", ".1%"),
    "valid": Metric("Calls valid by the functions' schemas", "higher", ".1%"),
    "not_called": Metric("Nothing called, where no call is asked for", "higher", ".1%"),
    "told": Metric("Answers that tell the results", "higher", ".1%"),
    "exact": Metric("All of it right", "higher", ".1%"),
}
_OF_CALLS = ("exact_calls", "called", "named", "valid")


@dataclass
class Tools(AskingTask):
    """Asks for the last turn of conversations with tools, and compares it with theirs.

    Where that turn calls functions, the answer has to make the same calls, in any order. Arguments are equal as JSON:
    see `hfchat.evaluation.schemas.normalized`. Where it calls nothing, the answer must not call anything, and has to
    contain the `facts` of the row, if there are any: a reader finds them there as words or numbers of their own.

    Attributes:
        dataset_name: Folder, file or Hub id with `messages` and `tools` as in OpenAI's API, and maybe with `facts`, a
            list of texts, and a `kind`, for the table by kinds.
        split: Name of its split.
        max_samples: Take only the first so many rows.
        max_new_tokens: Longest answer.
        mask: Bind calls to the schemas of their functions: each is `strict`, as in OpenAI's API.
        project_template: Ask a model whose own chat template writes no tools with the project's, with which its
            fine-tuning begins.
    """

    kind = "tools"
    columns = _METRICS
    limits = (
        "A call counts as wrong that differs in anything from the one of the conversation, although another one may "
        "do as well.",
        "Facts are found as they are written in the row; what else the answer says of them is not read.",
    )
    group_label = "kind"
    headline = "exact_calls"

    name: str
    dataset_name: str
    split: str = "test"
    max_samples: int | None = None
    max_new_tokens: int = 192
    mask: bool = False
    project_template: bool = False

    def __post_init__(self) -> None:
        self.require_at_least(1, "max_samples", "max_new_tokens")

    @property
    def title(self) -> str:
        return f"Tools: {self.name}"

    def prepare(self) -> None:
        rows = read_rows(self.dataset_name, self.split, ("messages", "tools"), self.max_samples)
        self.examples = [self._example(row, place) for row, place in rows]

    def _example(self, row: Json, place: str) -> Example:
        check_messages(row["messages"], place, ROLES_WITH_TOOLS)
        try:
            tools = parse_tools(row["tools"])
        except ValueError as error:
            raise UserError(f"{place}: 'tools': {error}") from error
        *history, last = row["messages"]
        if not history:
            raise UserError(f"{place}: has no turn before the answer")
        # What is wanted, which a model must be able to give.
        calls, facts = _calls_of(last), list(row.get("facts") or [])
        if unknown := {call["name"] for call in calls} - {tool["function"]["name"] for tool in tools}:
            raise UserError(f"{place}: calls {sorted(unknown)[0]}, which is not among its tools")
        return Example(
            prompt=[_as_text(turn) for turn in history],
            references=[_as_text(last)["content"]],
            group=row.get("kind"),
            info={"calls": calls, "facts": facts, "tools": tools},
            place=place,
            chat=Chat([_for_templates(turn) for turn in history], _strict(tools) if self.mask else tools),
        )

    @property
    def source(self) -> str:
        return self.dataset_name

    def refusal(self, model: EvaluatedModel) -> str | None:
        chats = [one.chat for one in self.examples if one.chat is not None]
        return model.refusal_of_chats(chats, self.project_template)

    def asked(self, model: EvaluatedModel) -> Asked:
        return Asked(self.max_new_tokens, project_template=self.project_template)

    def measure(self, model: str, folder: Path) -> Measured:
        file = folder / f"{model}.jsonl"
        records = read_records(file)
        for record in records:
            record.scores = {name: float(score) for name, score in _scores(record).items()}
        write_records(file, records)
        groups = by_group(records)
        return Measured(self._statistics(records), {group: self._statistics(own) for group, own in groups.items()})

    def _statistics(self, records: Sequence[Record]) -> dict[str, Statistics]:
        signature = f"share|calls in any order|arguments as JSON|mask:{'yes' if self.mask else 'no'}"
        return shares(records, self.columns, signature)


def shares(records: Sequence[Record], columns: Mapping[str, Metric], signature: str) -> dict[str, Statistics]:
    """The mean of each metric over the records that have it; a record that has not counts for none of it."""
    statistics = {}
    for name in columns:
        has = [name in record.scores for record in records]
        if any(has):
            statistics[name] = mean([record.scores.get(name, 0.0) for record in records], signature)
            statistics[name].values[:, 1] = has
    return statistics


def _scores(record: Record) -> dict[str, bool]:
    """What of one answer is right."""
    wanted, made = record.info["calls"], record.calls
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") for tool in record.info["tools"]}
    # Where a call is wanted, what is said beside it does not count.
    if wanted:
        exact = _same_calls(made, wanted)
        valid = all(is_valid(call["arguments"], schemas.get(call["name"])) for call in made)
        named = sorted(call["name"] for call in made) == sorted(call["name"] for call in wanted)
        of_calls = {"exact_calls": exact, "called": bool(made), "named": named, "valid": bool(made) and valid}
        return {**of_calls, "exact": exact}
    # Where none is wanted, it is the text that counts.
    told = all(tells(record.text, fact) for fact in record.info["facts"])
    scores = {"not_called": not made, "exact": not made and told}
    return {**scores, "told": not made and told} if record.info["facts"] else scores


def _same_calls(made: Sequence[Mapping[str, str]], wanted: Sequence[Mapping[str, str]]) -> bool:
    """Whether they are the same in any order: what is called in one turn is called at once."""
    # The same call may be wanted twice, so these are lists and not sets.
    left = [_whole(call) for call in wanted]
    for call in map(_whole, made):
        if call not in left:
            return False
        left.remove(call)
    return not left


def _whole(call: Mapping[str, str]) -> tuple[str, Any]:
    return call["name"], normalized(read_json(call["arguments"]))


def tells(text: str, fact: str) -> bool:
    """Whether a text has a fact, as words or a number of its own, in any case.

    `5` is neither in `15` nor in `5.3` or `-5`, but in `It is 5.`; `7445` is in `7,445`.
    """
    text, fact = (unicodedata.normalize("NFC", one).casefold() for one in (text, fact))
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    # Its ends are those of a word, or of a number.
    before, after = r"(?<!\w)", r"(?!\w)"
    if fact[:1].isdigit():
        before += r"(?<!\d[.,])(?<!-)"
    if fact[-1:].isdigit():
        after += r"(?![.,]\d)"
    return re.search(before + re.escape(fact) + after, text) is not None


def _calls_of(turn: Json) -> list[dict[str, str]]:
    """The calls of a turn, each `{"name", "arguments"}` with its arguments as JSON in a text."""
    found = []
    for call in turn.get("tool_calls") or []:
        function = call.get("function") or call
        found.append({"name": function["name"], "arguments": arguments_as_text(function.get("arguments") or {})})
    return found


def _as_text(turn: Json) -> dict[str, str]:
    """A turn as a reader sees it."""
    return {"role": turn["role"], "content": with_calls(turn.get("content") or "", _calls_of(turn))}


def _for_templates(turn: Json) -> Json:
    """A turn as chat templates take it: the arguments of its calls are mappings."""
    kept = {key: value for key, value in turn.items() if key != "tool_calls"}
    if not (calls := _calls_of(turn)):
        return kept
    ids = [call.get("id") or f"call_{number}" for number, call in enumerate(turn["tool_calls"])]
    return {
        **kept,
        "tool_calls": [
            {
                "id": id,
                "type": "function",
                "function": {"name": call["name"], "arguments": json.loads(call["arguments"])},
            }
            for id, call in zip(ids, calls, strict=True)
        ],
    }


def _strict(tools: Sequence[Json]) -> list[Json]:
    return [{**tool, "function": {**tool["function"], "strict": True}} for tool in tools]
