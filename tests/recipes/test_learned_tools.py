"""Tools and reasoning from files as people have them to the tokens that are learned."""

import json
import re
from itertools import groupby
from operator import itemgetter

import pyarrow.parquet as pq
import pytest

from hfchat.dataset import load_split
from hfchat.lineage import read_lineage
from hfchat.training.supervision import supervise
from recipes.finetune import main as finetune
from recipes.prepare_conversations import main
from tests.conftest import ROOT
from tests.data.chats import assistant, turn, user, write_jsonl

CASES = ROOT.parent / "shared" / "cases" / "c11"
END = "<|im_end|>"
# What Arrow, `datasets.Json` or a template without nulls would change.
ARGUMENTS = [
    {"town": "Zürich", "unit": None},
    {"town": {"name": "Bern", "at": [46.948, 7.447, None]}},
    {"town": 3, "tags": [], "more": {}},
    {"pi": 3.141592653589793, "tiny": -7.54135, "huge": 2**70, "zero": -0.0},
    {},
]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {"type": "object", "properties": {"unit": {"enum": ["C", "F", None], "default": None}}},
    },
}
TIME = {"name": "time", "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}}}


def called(name, arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments, ensure_ascii=False)}}}\n</tool_call>'


def function(name, arguments):
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.fixture
def learned(tmp_path, tokenizer):
    """Prepares sources with the recipe; returns the rows of the dataset, and of each what is supervised, as text."""

    def learned(*sources, **more):
        paths = [json.dumps({"path": source, "license": "MIT"}) for source in sources]
        output = str(tmp_path / "out")
        more = {"validation_fraction": "0"} | more
        arguments = [text for name, value in more.items() for text in (f"--{name}", value)]
        main(["--sources", *paths, "--output_dir", output, *arguments])
        rows = load_split(output, "train", "messages")
        dataset, _ = supervise(rows, tokenizer, 100_000, "test")
        texts = []
        for row in dataset:
            marked = zip(row["input_ids"], [label != -100 for label in row["labels"]], strict=True)
            stretches = groupby(marked, key=itemgetter(1))
            texts.append(
                [tokenizer.decode([id for id, _ in stretch]) for is_learned, stretch in stretches if is_learned]
            )
        return rows, texts, [tokenizer.decode(row["input_ids"]) for row in dataset]

    return learned


@pytest.mark.parametrize("form", ["text", "mapping", "parquet"])
def test_arguments_are_learned_as_they_stand_in_the_source(learned, tmp_path, tokenizer, form):
    arguments = ARGUMENTS[:2] + ARGUMENTS[4:] if form == "parquet" else ARGUMENTS
    rows = []
    for number, given in enumerate(arguments):
        other = {"zone": f"UTC+{number}"}
        both = [function(*call) for call in (("weather", given), ("time", other))]
        if form == "text":
            both = [function(call["function"]["name"], json.dumps(call["function"]["arguments"])) for call in both]
        messages = [
            user(f"How is town {number}?"),
            assistant("Let me see.", tool_calls=both),
            turn("tool", "grey", tool_call_id="c1", name="weather"),
            turn("tool", "12:00", tool_call_id="c1"),
            assistant("Grey.", reasoning_content="It says grey." if number == 1 else None),
        ]
        rows.append({"messages": messages, "tools": json.dumps([TOOL, TIME])})
    if form == "parquet":
        from datasets import Dataset

        # Two columns of structs, in which each call has the arguments of all others.
        kinds = {
            "plain": [0, 2],
            "nested": [1],
        }
        paths = [str(tmp_path / f"{kind}.parquet") for kind in kinds]
        for path, numbers in zip(paths, kinds.values(), strict=True):
            Dataset.from_list([rows[number] for number in numbers]).to_parquet(path)
        assert pq.read_table(paths[0]).to_pylist()[1]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {
            "town": None,
            "unit": None,
            "zone": None,
        }
        arguments = [{"town": "Zürich"}, {}, ARGUMENTS[1]]
        order = [0, 2, 1]
    else:
        paths, order = [write_jsonl(tmp_path / "rows.jsonl", *rows)], range(len(rows))
    dataset, texts, whole = learned(*paths)
    for number, given, row, said, text in zip(order, arguments, dataset, texts, whole, strict=True):
        read = [tokenizer.parse_response(answer, prefix="") for answer in said]
        assert [call["function"] for call in read[0]["tool_calls"]] == [
            {"name": "weather", "arguments": given},
            {"name": "time", "arguments": {"zone": f"UTC+{number}"}},
        ]
        assert [read[0]["content"], read[1]["content"]] == ["Let me see.", "Grey."]
        assert read[1].get("reasoning_content") == ("It says grey." if number == 1 else None)
        calls = f"{called('weather', given)}\n{called('time', {'zone': f'UTC+{number}'})}"
        thought = "<think>\nIt says grey.\n</think>\n\n" if number == 1 else ""
        assert said == [f"Let me see.\n{calls}{END}", f"{thought}Grey.{END}"]
        assert json.dumps(TOOL) in text
        assert json.dumps({"type": "function", "function": TIME}) in text
        assert row["messages"][2]["tool_call_id"] == "c1"


def test_the_dataset_is_as_openai_has_it_for_every_reader(learned, tmp_path):
    messages = [
        user("Time?"),
        assistant(None, reasoning="A call.", tool_calls=[function("time", {"zone": None})]),
        turn("tool", "12:00", tool_call_id="c1"),
        assistant("Noon."),
    ]
    learned(write_jsonl(tmp_path / "rows.jsonl", {"messages": messages, "tools": [TOOL]}))
    (row,) = pq.read_table(tmp_path / "out" / "data" / "train-00000.parquet").to_pylist()
    answer = row["messages"][1]
    assert answer["reasoning_content"] == "A call."
    assert answer["tool_calls"] == [function("time", '{"zone": null}')]
    assert row["messages"][0] == dict.fromkeys(answer) | user("Time?")
    assert json.loads(row["tools"]) == [TOOL]
    notes = read_lineage(tmp_path / "out")["metrics"]["notes"]
    assert notes == {
        "`reasoning` of a turn: learned before its content, between <think> and </think>": 1,
        "a call of a function that is not in 'tools': learned as it stands there": 1,
    }


OPENAI_LEGACY = {
    "messages": [
        user("How is Bern?"),
        assistant(None, function_call={"name": "weather", "arguments": '{"town":"Bern", "unit": null}'}),
        turn("function", "grey", name="weather"),
        assistant("Grey."),
    ],
    "functions": [TOOL["function"]],
}
HERMES = {
    "conversations": [
        {"from": "system", "value": "You call functions. Here they are:\n<tools>\n[]\n</tools>"},
        {"from": "human", "value": "How are Bern and Rome?"},
        {
            "from": "gpt",
            "value": "Both.\n<tool_call>\n{'name': 'weather', 'arguments': {'town': 'Bern', 'unit': None}}\n"
            "</tool_call>\n"
            '<tool_call>\n{"arguments": {"town": "Rome"}, "name": "weather"}\n</tool_call>\n',
        },
        {"from": "tool", "value": "<tool_response>\ngrey\n</tool_response>\n<tool_response>\nsun\n</tool_response>"},
        {"from": "gpt", "value": "Grey, and sunny."},
    ],
    "tools": json.dumps([TOOL]),
}
SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "How are Bern and Rome?"},
        {
            "from": "function_call",
            "value": '[{"name": "weather", "arguments": {"town": "Bern"}}, {"name": "weather", "arguments": {}}]',
        },
        {"from": "observation", "value": '{"sky": "grey"}'},
        {"from": "gpt", "value": "Grey."},
    ],
    "tools": json.dumps([TOOL["function"]]),
}
XLAM = {
    "id": 7,
    "query": "How is Bern, and the time?",
    "answers": json.dumps(
        [{"name": "weather", "arguments": {"town": "Bern", "unit": None}}, {"name": "time", "arguments": {}}]
    ),
    "tools": json.dumps([{"name": "weather", "parameters": {"town": {"type": "str", "default": None}}}, TIME]),
}
FORMS = {
    "legacy": (OPENAI_LEGACY, [called("weather", {"town": "Bern", "unit": None}), "Grey."]),
    "hermes": (
        HERMES,
        [
            f"Both.\n{called('weather', {'town': 'Bern', 'unit': None})}\n{called('weather', {'town': 'Rome'})}",
            "Grey, and sunny.",
        ],
    ),
    "sharegpt": (SHAREGPT, [f"{called('weather', {'town': 'Bern'})}\n{called('weather', {})}", "Grey."]),
    "xlam": (XLAM, [f"{called('weather', {'town': 'Bern', 'unit': None})}\n{called('time', {})}"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_a_call_is_learned_as_what_the_assistant_says(learned, tmp_path, form):
    row, expected = FORMS[form]
    _, (said,), (text,) = learned(write_jsonl(tmp_path / "rows.jsonl", row))
    assert said == [answer + END for answer in expected]
    if form == "hermes":
        answered = "<|im_start|>user\n<tool_response>\ngrey\n</tool_response>\n<tool_response>\nsun\n</tool_response>"
        assert answered + END in text
        assert text.count("<tools>") == 1, "not those of the column once more"
        notes = read_lineage(tmp_path / "out")["metrics"]["notes"]
        assert notes["`<tool_call>` in the text of a turn: learned as a call of a tool"] == 2
        assert notes["column 'tools': not used, because the system's turn has them after <tools>"] == 1
    if form == "xlam":
        assert '"parameters": {"town": {"type": "str", "default": null}}' in text


def test_what_cannot_be_learned_as_written_is_counted_with_its_reason(learned, tmp_path):
    def calls(arguments):
        return {"messages": [user(), assistant(None, tool_calls=[function("time", arguments)])]}

    def says(text, **more):
        return {"messages": [user(), assistant(text, **more)]}

    bad = {
        "cannot be written as JSON": calls('{"x": NaN}'),
        "not JSON": calls('{"x": '),
        "are not a JSON object": calls("[1]"),
        "has text after a call": says('<tool_call>{"name": "f", "arguments": {}}</tool_call> Done.'),
        "a call in its text is not JSON": says("<tool_call>{'name': f()}</tool_call>"),
        "without a function's name": says('<tool_call>{"arguments": {}}</tool_call>'),
        "which would end the reasoning there": says("A.", reasoning_content="So </think> so."),
        "has no content, only reasoning": says("", thinking="So."),
    }
    learned(write_jsonl(tmp_path / "rows.jsonl", says("Good."), *bad.values()))
    assert read_lineage(tmp_path / "out")["metrics"]["removed"] == {"malformed": 7, "empty_turn": 1}
    removed = [
        row
        for reason in ("malformed", "empty_turn")
        for row in pq.read_table(tmp_path / "out" / "removed" / reason / "00000.parquet").to_pylist()
    ]
    for detail, row in zip(bad, removed, strict=True):
        assert detail in row["detail"]


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not here")
@pytest.mark.parametrize("case", ["function_call", "reasoning"])
def test_the_shared_cases_are_learned_whole(learned, case):
    _, texts, _ = learned(str(CASES / f"{case}.jsonl"))
    expected = {
        "function_call": f"Let me look that up.\n{called('weather', {'town': 2})}",
        "reasoning": "<think>\n2 divided by two leaves 0.\n</think>\n\nYes.",
    }
    assert len(texts) == 12
    assert texts[1] == [expected[case] + END]


def test_an_adapter_learns_calls_and_reasoning_from_the_prepared_dataset(learned, chat_model, tmp_path, capsys):
    rows = [
        {
            "messages": [
                user(f"Time in zone {number}?"),
                assistant(None, thinking="A call.", tool_calls=[function("time", {"zone": number, "at": None})]),
                turn("tool", "12:00", tool_call_id="c1"),
                assistant("Noon."),
            ],
            "tools": json.dumps([TIME]),
        }
        for number in range(12)
    ]
    learned(write_jsonl(tmp_path / "rows.jsonl", *rows), validation_fraction="0.3")
    capsys.readouterr()
    settings = {
        "model_name_or_path": chat_model, "dataset_name": tmp_path / "out", "max_length": 1024, "max_steps": 1,
        "lora_r": 4, "bf16": "false", "use_cpu": "true", "eval_strategy": "no", "report_to": "none",
        "sample_answers": 0, "per_device_train_batch_size": 1, "output_dir": tmp_path / "model",
    }  # fmt: skip
    finetune([text for name, value in settings.items() for text in (f"--{name}", str(value))])
    printed = capsys.readouterr().out
    call = called("time", {"zone": 0, "at": None})
    assert re.search(rf"⟦<think>\nA call\.\n</think>\n\n{re.escape(call).replace('0', '[0-9]+')}<.im_end.>⟧", printed)
    metrics = read_lineage(tmp_path / "model")["metrics"]
    assert metrics["train_calls"] == metrics["train_thoughts"] == metrics["train_conversations"] > 0
    assert (tmp_path / "model" / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "model" / "merged" / "certificate.json").is_file()
