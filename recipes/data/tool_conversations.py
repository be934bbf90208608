"""Some 1,000 conversations with tools, made of the functions, values and wordings of `tools/functions.yaml`.

    python recipes/data/tool_conversations.py --output-dir outputs/tools/written

`train.jsonl`, `validation.jsonl` and `test.jsonl` in `calls/` are in the format of OpenAI's API (`messages`, `tools`),
and share no function. Besides, each row has its `kind` and, where its last turn tells of results, the `facts` to name:

- `call`, `several`: one call, or two in one turn, among functions that do not fit.
- `talk`, `unable`: no call, because none is needed, or because no function fits.
- `lacking`, `given`: an argument is missing, so it is asked for; or the user has said it then.
- `result`, `again`: results are told to the user; or another question follows on them.

`json/test.jsonl` asks for arguments of the test's functions as JSON by their `schema`. The same seed makes the same
files.
"""

import argparse
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from hfchat.errors import UserError, run

COUNTS = {"train": 1000, "validation": 60, "test": 240}
JSON_COUNT = 100
# Kinds to their shares in percent.
SHARES = {"call": 34, "several": 16, "talk": 6, "unable": 8, "lacking": 6, "given": 6, "result": 14, "again": 10}
# Before the last exchange there may be others, which end with an answer: how many, and their shares.
EARLIER = {"train": [0, 1, 2, 2], "validation": [0], "test": [0]}
_EARLIER_SHARES = {"result": 70, "talk": 10, "unable": 20}
_SYSTEM = ["You are a helpful assistant.", "You help people with short answers.", "Answer in English, and be brief."]
_TOOLS = [1, 2, 2, 3]  # how many a conversation has
_NEEDS = {"lacking": "lacking", "given": "lacking", "again": "again"}  # what a function must have for a kind

FUNCTIONS = Path(__file__).parent / "tools" / "functions.yaml"

Json = dict[str, Any]
Said = dict[str, str]  # parameters to the words for their values; of a field it is `address.city`


@dataclass
class Parameter:
    """What `tools/functions.yaml` says of a parameter, or of a value of a result."""

    names: Sequence[str]
    values: Mapping[str, Any] | None = None  # words to the values that they mean
    range: Sequence[float] | None = None
    several: bool = False
    fields: Mapping[str, "Parameter"] = field(default_factory=dict)
    schema: Json = field(default_factory=dict)
    optional: bool = False

    @classmethod
    def read(cls, name: str, entry: Json, lists: Mapping[str, Mapping[str, Any]]) -> "Parameter":
        source = entry.get("from", entry.get("some"))
        values = entry.get("said") or lists.get(source)
        schema: Json = {}
        if values:
            meant = list(dict.fromkeys(map(_frozen, values.values())))
            schema = _schema_of(values) | ({"enum": [json.loads(one) for one in meant]} if _is_enum(entry) else {})
            schema |= {"format": "date"} if source == "dates" else {}
            schema |= {"description": "ISO 4217 code"} if source == "currencies" else {}
        elif "range" in entry:
            schema = {"type": "number" if len(entry["range"]) == 3 else "integer"}
        if nothing := entry.get("nothing"):
            values = {**values, **dict.fromkeys(nothing)}
            schema["type"] = [schema["type"], "null"]
            if "enum" in schema:
                schema["enum"].append(None)
        return cls(
            names=entry.get("as", [name]),
            values=values,
            range=entry.get("range"),
            several="some" in entry,
            fields={key: cls.read(key, own, lists) for key, own in entry.get("fields", {}).items()},
            schema={"type": "array", "items": schema} if "some" in entry else schema,
            optional=entry.get("optional", False),
        )

    def draw(self, chance: random.Random, name: str) -> tuple[Said, Any]:
        """Words for a value by the slots that they fill, and the value."""
        if self.fields:
            drawn = {key: own.draw(chance, f"{name}.{key}") for key, own in self.fields.items()}
            said = {slot: words for one, _ in drawn.values() for slot, words in one.items()}
            return said, {key: value for key, (_, value) in drawn.items()}
        if self.range:
            low, high, *decimals = self.range
            value = round(chance.uniform(low, high), int(decimals[0])) if decimals else chance.randint(low, high)
            return {name: f"{value}"}, value
        chosen = chance.sample(list(self.values), chance.choice([1, 2, 2, 3]) if self.several else 1)
        *others, last = chosen
        words = f"{', '.join(others)} and {last}" if others else last
        return {name: words}, [self.values[one] for one in chosen] if self.several else self.values[last]


@dataclass
class Function:
    """What `tools/functions.yaml` says of a function."""

    names: Sequence[str]
    does: str
    parameters: Mapping[str, Parameter]
    ask: Sequence[str]
    result: Mapping[str, Parameter]
    answer: Sequence[str]
    again: str | None = None
    lacking: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass
class Tool:
    """A function under the names that it has in one conversation."""

    function: Function
    name: str
    keys: Mapping[str, str]  # parameters to their names here

    def declaration(self) -> Json:
        parameters = self.function.parameters
        schemas = {
            key: {
                "type": "object",
                "properties": {name: own.schema for name, own in parameters[of].fields.items()},
                "required": list(parameters[of].fields),
            }
            if parameters[of].fields
            else parameters[of].schema
            for of, key in self.keys.items()
        }
        required = [key for of, key in self.keys.items() if not parameters[of].optional]
        schema = {"type": "object", "properties": schemas, "required": required}
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.function.does, "parameters": schema},
        }


@dataclass
class Request:
    """A call, what is said for it, and what comes of it."""

    tool: Tool
    question: str
    said: Said
    values: Json  # parameters to values
    chance: random.Random

    @property
    def arguments(self) -> str:
        arguments = {key: self.values[of] for of, key in self.tool.keys.items() if of in self.values}
        return json.dumps(arguments, ensure_ascii=False)

    def outcome(self) -> tuple[Json, str, list[str]]:
        """A result, what is said of it, and the facts in that."""
        drawn = {name: one.draw(self.chance, name) for name, one in self.tool.function.result.items()}
        words = {slot: word for one, _ in drawn.values() for slot, word in one.items()}
        template = self.chance.choice(self.tool.function.answer)
        facts = [words[slot] for slot in re.findall(r"{([\w.]+)}", template) if slot in words]
        return {name: value for name, (_, value) in drawn.items()}, _fill(template, self.said | words), facts


class Conversations:
    """Makes the conversations of a split.

    Args:
        functions: Its functions.
        talk: Pairs of what is said without need of a tool, and the answer.
        unable: Answers where no function fits.
        chance: What decides.
    """

    def __init__(
        self,
        functions: Sequence[Function],
        talk: Sequence[Sequence[str]],
        unable: Sequence[str],
        chance: random.Random,
    ):
        self.functions, self.talk, self.unable, self.chance = functions, talk, unable, chance

    def make(self, kinds: Sequence[str]) -> Json:
        """A row of one exchange after another with the same tools, the last of which names it; all but its id."""
        capable = [name for kind, name in _NEEDS.items() if kind in kinds]
        least = 2 if "several" in kinds else 1
        chosen: list[Function] = []
        while not chosen or not all(any(getattr(one, name) for one in chosen) for name in capable):
            chosen = self.chance.sample(self.functions, max(least, self.chance.choice(_TOOLS)))
        rename = self.chance.choice([_snake, _snake, _camel])
        tools = [self._tool(function, rename) for function in chosen]
        absent = [self._tool(function, rename) for function in self.functions if function not in chosen]
        messages: list[Json] = []
        for kind in kinds:
            # The one that is asked for comes first.
            first = self.chance.choice([one for one in tools if getattr(one.function, _NEEDS.get(kind, "ask"))])
            asked = self.chance.sample(absent, 1) if kind == "unable" else [first]
            exchange, facts = getattr(self, f"_{kind}")([*asked, *(one for one in tools if one is not first)])
            messages += exchange
        if self.chance.random() < 0.2:
            messages = [{"role": "system", "content": self.chance.choice(_SYSTEM)}, *messages]
        declarations = [tool.declaration() for tool in tools]
        return {"kind": kinds[-1], "messages": _numbered(messages), "tools": declarations, "facts": facts}

    def make_json(self) -> Json:
        """A row that asks for arguments as JSON by a schema."""
        tool = self._tool(self.chance.choice(self.functions), _snake)
        request, schema = self._request(tool), tool.declaration()["function"]["parameters"]
        asked = f"Write what the user says as JSON by this schema: {json.dumps(schema, ensure_ascii=False)}"
        answer = {"role": "assistant", "content": request.arguments}
        return {"messages": [{"role": "system", "content": asked}, _user(request.question), answer], "schema": schema}

    def _tool(self, function: Function, rename: Callable[[str], str]) -> Tool:
        keys = {of: rename(self.chance.choice(own.names)) for of, own in function.parameters.items()}
        return Tool(function, rename(self.chance.choice(function.names)), keys)

    # Each kind: its messages, and the facts that the last one has to name.

    def _call(self, tools: Sequence[Tool]) -> tuple[list[Json], list[str]]:
        request = self._request(tools[0])
        return [_user(request.question), _calls([request])], []

    def _several(self, tools: Sequence[Tool]) -> tuple[list[Json], list[str]]:
        requests = self._two(tools)
        return [_user(" ".join(one.question for one in requests)), _calls(requests)], []

    def _talk(self, tools: Sequence[Tool]) -> tuple[list[Json], list[str]]:
        said, answer = self.chance.choice(self.talk)
        return [_user(said), {"role": "assistant", "content": answer}], []

    def _unable(self, tools: Sequence[Tool]) -> tuple[list[Json], list[str]]:
        question = self._request(tools[0]).question
        return [_user(question), {"role": "assistant", "content": self.chance.choice(self.unable)}], []

    def _lacking(self, tools: Sequence[Tool]) -> tuple[list[Json], list[str]]:
        return self._given(tools)[0][:2], []

    def _given(self, tools: Sequence[Tool]) -> tuple[list[Json], list[str]]:
        lacking = self.chance.choice(list(tools[0].function.lacking))
        question, asked_back = tools[0].function.lacking[lacking]
        request = self._request(tools[0], question, also=lacking)
        asked = {"role": "assistant", "content": asked_back}
        return [_user(request.question), asked, _user(f"{request.said[lacking]}."), _calls([request])], []

    def _result(self, tools: Sequence[Tool]) -> tuple[list[Json], list[str]]:
        requests = self._two(tools) if len(tools) > 1 and self.chance.random() < 0.25 else [self._request(tools[0])]
        return self._told(requests)

    def _again(self, tools: Sequence[Tool]) -> tuple[list[Json], list[str]]:
        request = self._request(tools[0], optional=False)
        follow_up = self._follow_up(request)
        messages, _ = self._told([request])
        return [*messages, _user(follow_up.question), _calls([follow_up])], []

    def _told(self, requests: Sequence[Request]) -> tuple[list[Json], list[str]]:
        outcomes = [one.outcome() for one in requests]
        results = [
            {"role": "tool", "tool_call_id": "", "content": json.dumps(result, ensure_ascii=False)}
            for result, _, _ in outcomes
        ]
        answer = {"role": "assistant", "content": " ".join(said for _, said, _ in outcomes)}
        question = " ".join(one.question for one in requests)
        facts = [fact for *_, own in outcomes for fact in own]
        return [_user(question), _calls(requests), *results, answer], facts

    def _two(self, tools: Sequence[Tool]) -> list[Request]:
        """Two requests of one turn: of two functions, or of the same one twice."""
        if tools[0].function.again and self.chance.random() < 0.5:
            first = self._request(tools[0], optional=False)
            return [first, self._follow_up(first)]
        second = self._request(tools[1])
        second.question = self.chance.choice(["{}", "Also: {}", "And another thing: {}"]).format(second.question)
        return [self._request(tools[0]), second]

    def _follow_up(self, request: Request) -> Request:
        """The same with other values for what it names, each of which differs."""
        template = request.tool.function.again or ""
        said, values = dict(request.said), dict(request.values)
        for slot in slots(template):
            while values[slot] == request.values[slot]:
                words, values[slot] = request.tool.function.parameters[slot].draw(self.chance, slot)
                said |= words
        return Request(request.tool, _fill(template, said), said, values, self.chance)

    def _request(
        self, tool: Tool, template: str | None = None, *, also: str | None = None, optional: bool = True
    ) -> Request:
        """A question with values for the slots of its template, and for `also`."""
        template = template or self.chance.choice(tool.function.ask)
        template = re.sub(
            r"\[([^\]]*)\]", lambda found: found[1] if optional and self.chance.random() < 0.5 else "", template
        )
        said: Said = {}
        values: Json = {}
        for name in dict.fromkeys([*slots(template), *([also] if also else [])]):
            while name not in values or values[name] in [one for key, one in values.items() if key != name]:
                words, values[name] = tool.function.parameters[name].draw(self.chance, name)
                said |= words
        return Request(tool, _fill(template, said), said, values, self.chance)


def read_functions(file: Path) -> tuple[dict[str, list[Function]], Json]:
    """The functions of each split, and all that the file holds."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    lists = {
        name: values if isinstance(values, dict) else {f"{value}": value for value in values}
        for name, values in content["values"].items()
    }
    return {split: [_function(entry, lists) for entry in content[split]] for split in COUNTS}, content


def _function(entry: Json, lists: Mapping[str, Mapping[str, Any]]) -> Function:
    read = {
        part: {name: Parameter.read(name, own, lists) for name, own in entry[part].items()}
        for part in ("parameters", "result")
    }
    return Function(names=entry["name"], **{key: entry[key] for key in entry if key not in ("name", *read)}, **read)


def conversations(split: str, size: int, seed: int) -> Iterator[Json]:
    """The rows of a split, no two of which are the same."""
    maker, chance = _maker(split, f"{seed} {split}")
    lasts = [kind for kind, share in SHARES.items() for _ in range(round(size * share / 100))]
    chance.shuffle(lasts)
    seen: set[str] = set()
    for number, last in enumerate(lasts):
        text = None
        while text is None or text in seen:
            earlier = chance.choices([*_EARLIER_SHARES], [*_EARLIER_SHARES.values()], k=chance.choice(EARLIER[split]))
            row = maker.make([*earlier, last])
            text = json.dumps(row)
        seen.add(text)
        yield {"id": f"{split}-{number:04}", **row}


def json_rows(size: int, seed: int) -> Iterator[Json]:
    """Rows of the test's functions that ask for JSON."""
    maker, _ = _maker("test", f"{seed} json")
    for number in range(size):
        yield {"id": f"json-{number:04}", **maker.make_json()}


def _maker(split: str, seed: str) -> tuple[Conversations, random.Random]:
    functions, content = read_functions(FUNCTIONS)
    chance = random.Random(seed)
    return Conversations(functions[split], content["talk"][split], content["unable"], chance), chance


def _user(content: str) -> Json:
    return {"role": "user", "content": content[:1].upper() + content[1:]}


def _calls(requests: Sequence[Request]) -> Json:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "", "type": "function", "function": {"name": one.tool.name, "arguments": one.arguments}}
            for one in requests
        ],
    }


def _numbered(messages: Sequence[Json]) -> list[Json]:
    """The messages with an id for each call, which its result names."""
    called, answered = count(), count()
    for message in messages:
        for call in message.get("tool_calls", []):
            call["id"] = f"call_{next(called)}"
        if message["role"] == "tool":
            message["tool_call_id"] = f"call_{next(answered)}"
    return list(messages)


def slots(template: str) -> list[str]:
    """The parameters that a template names, `address` for `{address.city}`."""
    return list(dict.fromkeys(re.findall(r"{(\w+)", template)))


def _fill(template: str, said: Said) -> str:
    text = re.sub(r"{([\w.]+)}", lambda found: said[found[1]], template)
    return text[:1].upper() + text[1:]


def _snake(words: str) -> str:
    return words.lower().replace(" ", "_")


def _camel(words: str) -> str:
    first, *others = words.lower().split()
    return first + "".join(map(str.capitalize, others))


def _schema_of(values: Mapping[str, Any]) -> Json:
    """The type of the values that words mean."""
    first = next(iter(values.values()))
    if isinstance(first, list):
        return {"type": "array", "items": {"type": "string"}}
    return {"type": {bool: "boolean", int: "integer", str: "string"}[type(first)]}


def _is_enum(entry: Json) -> bool:
    """Whether only the values that are said may be: neither booleans nor lists are listed."""
    return isinstance(next(iter(entry.get("said", {"": True}).values())), str | int) and not all(
        isinstance(value, bool) for value in entry.get("said", {"": True}).values()
    )


def _frozen(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    try:
        for name in ("calls", "json"):
            (args.output_dir / name).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"--output-dir {args.output_dir}: is no place for a folder ({error.strerror})") from error
    written = {f"calls/{split}": conversations(split, size, args.seed) for split, size in COUNTS.items()}
    for name, rows in (written | {"json/test": json_rows(JSON_COUNT, args.seed)}).items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        file = args.output_dir / f"{name}.jsonl"
        file.write_text("".join(lines), encoding="utf-8")
        print(f"{file}: {len(lines):,} conversations")


if __name__ == "__main__":
    run(main)
