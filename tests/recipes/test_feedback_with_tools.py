"""From a conversation with tools, through the server, to what training learns of the call as it should have been."""

import json

import datasets
import pytest

from hfchat.chat import CallPart
from hfchat.dataset import as_before_arrow, load_split
from hfchat.lineage import read_lineage
from hfchat.messages import parse_tools
from hfchat.serving.engines.engine import Piece
from hfchat.token_ids import encode_conversation
from hfchat.training.align_arguments import AlignArguments
from hfchat.training.preferences import load_preferences
from hfchat.training.supervision import supervise
from recipes.prepare_feedback import main
from tests.serving.conftest import ScriptedEngine, running

CITIES = ("Rome", "Oslo", "Bonn", "Bern", "Kiel", "Graz", "Linz", "Genf", "Lyon", "Nice")
ADDRESS = "jane.roe@corp-mail.com"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "day": {"type": ["integer", "null"]}},
                "required": ["city"],
            },
        },
    }
]


def call_of(city, **more):
    return {"function": {"name": "weather", "arguments": {"city": city, "day": None} | more}}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A model calls with the wrong city, thinks before it does, and is corrected, each time by another call."""
    path = str(tmp_path_factory.mktemp("feedback") / "feedback.db")
    wrong = (CallPart(0, "weather", '{"city": "Paris"}'),)
    engine = ScriptedEngine([Piece("", 1, reasoning="Paris, I think."), Piece("", 1, calls=wrong)], "tool_calls")
    engine.context_length = 10_000
    with running(engine, feedback=path) as served:
        for city in CITIES:
            asked = [{"role": "user", "content": f"How is {city}?"}]
            answer = served.chat(messages=asked, tools=TOOLS).json()
            right = {"content": "", "tool_calls": [call_of(city)]}
            body = {"answer_id": answer["id"], "rating": "down", "correction": right}
            assert served.http.post("/v1/feedback", json=body).status_code == 200
        # The same, one turn later: a result is there, and the text before the call is corrected too.
        message = answer["choices"][0]["message"]
        [call] = message["tool_calls"]
        asked += [message, {"role": "tool", "tool_call_id": call["id"], "content": '{"celsius": 18}'}]
        answer_id = served.chat(messages=asked, tools=TOOLS).json()["id"]
        right = {"content": "And now?", "tool_calls": [call_of("Nice", day=1)]}
        assert served.http.post("/v1/feedback", json={"answer_id": answer_id, "correction": right}).status_code == 200
        # What nobody should learn: an address, and what guards find in the arguments.
        for number, city in enumerate((ADDRESS, "oh fuck")):
            answer_id = served.chat(messages=[{"role": "user", "content": f"{number}?"}], tools=TOOLS).json()["id"]
            right = {"content": "", "tool_calls": [call_of(city)]}
            body = {"answer_id": answer_id, "correction": right}
            assert served.http.post("/v1/feedback", json=body).status_code == 200
    return path


@pytest.fixture(scope="module")
def prepared(database, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "out"
    replayed = out.parent / "replay.jsonl"  # arguments as a mapping, and a turn that is not learned
    turns = [
        {"role": "user", "content": "How is Ulm?"},
        {"role": "assistant", "content": "", "weight": 0, "tool_calls": [call_of("Ulm")]},
        {"role": "tool", "content": "12"},
        {"role": "assistant", "content": "12 degrees."},
    ]
    replayed.write_text(json.dumps({"messages": turns, "tools": TOOLS}) + "\n")
    arguments = ["--feedback", database, "--output_dir", str(out), "--replay", str(replayed)]
    arguments += ["--min_validation", "1", "--min_train", "5", "--validation_fraction", "0.3"]
    main([*arguments, "--max_per_minute", "1000"])
    return out


def rows_of(dataset, split="train"):
    rows = load_split(str(dataset), split, "messages")
    return [as_before_arrow(row, rows.features.arrow_schema) for row in rows]


def test_a_corrected_call_is_a_row_that_the_template_renders(prepared, tokenizer):
    rows = rows_of(prepared / "conversations") + rows_of(prepared / "conversations", "validation")
    learned = {row["messages"][0]["content"]: row for row in rows if row["source"] == "correction"}
    assert len(rows) == len(CITIES) + 3  # one turn later, one with an address that was taken out, and one replayed
    row = learned["How is Oslo?"]
    assert json.loads(row["tools"]) == TOOLS
    _, corrected = row["messages"]
    [call] = corrected["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Oslo", "day": null}'}
    assert not corrected["content"]
    assert "reasoning_content" not in corrected
    rendered = tokenizer.decode(encode_conversation(tokenizer, row["messages"], parse_tools(row["tools"])))
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "day": null}}\n</tool_call>' in rendered
    assert '"description": "The weather of a city."' in rendered

    later = next(row for row in rows if len(row["messages"]) == 4 and row["source"] == "correction")
    assert [turn["role"] for turn in later["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert later["messages"][1]["tool_calls"][0]["id"] == later["messages"][2]["tool_call_id"]
    assert later["messages"][3]["content"] == "And now?"
    [replayed] = [row for row in rows if row["source"] == "replay"]
    assert replayed["messages"][1]["weight"] == 0
    assert replayed["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"city": "Ulm", "day": null}'


def test_training_takes_the_rows_and_the_pairs(prepared, tokenizer, tmp_path):
    metrics = read_lineage(prepared)["metrics"]
    assert metrics["enough"] == ["conversations", "preferences", "thumbs"]
    # One has an address, which is taken out on its way into the database, the other an obscenity.
    assert metrics["statements"]["correction"]["removed"] == {"unsafe": 1}
    train = load_split(str(prepared / "conversations"), "train", "messages")
    _, counts = supervise(train, tokenizer, 2048, "out")
    assert counts.conversations == len(train)
    aligning = AlignArguments(
        output_dir=str(tmp_path / "dpo"),
        method="dpo",
        dataset_name=str(prepared / "preferences"),
        max_length=2048,
        min_thumbs=1,
        use_cpu=True,
    )
    preferences = load_preferences(aligning, tokenizer)
    assert preferences.counts.kept == metrics["datasets"]["preferences"]["train"] >= 5
    pair = preferences.train[0]
    chosen, rejected = (tokenizer.decode(pair[name]) for name in ("chosen_ids", "rejected_ids"))
    assert '"city": "Paris"' in rejected
    assert "<tool_call>" in chosen  # the order of pairs is by ids, which are random
    # What the model thought is in neither: nobody corrects it, and the two would be told apart by it.
    assert "I think" not in chosen + rejected
    assert '"name": "weather"' in tokenizer.decode(pair["prompt_ids"])


def test_the_files_open_with_datasets_and_hold_no_address(prepared, tmp_path):
    for name in ("conversations", "preferences", "thumbs"):
        found = datasets.load_dataset(str(prepared / name), cache_dir=str(tmp_path / "cache"))
        assert found["train"].num_rows
        assert ADDRESS not in str(found["train"].to_list())
        assert "`tools`" in (prepared / name / "README.md").read_text()
    assert "weather({" in (prepared / "report.md").read_text()
