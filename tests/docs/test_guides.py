"""The programs of the guides run as they stand there."""

import re

from hfchat.chat import CallPart
from hfchat.serving.engines.engine import Piece
from tests.conftest import ROOT
from tests.serving.conftest import MODEL, ScriptedEngine, running


class Forecaster(ScriptedEngine):
    """Calls the function once, tells its result, and writes JSON where that is asked for."""

    async def encode(self, chat):
        if chat.response_format is not None:
            self.pieces, self.finish_reason = ['{"city": "Bern", ', '"degrees": 4}'], "stop"
        elif chat.messages[-1]["role"] == "tool":
            self.pieces = [Piece("", 1, reasoning="Two."), f"You wrote {chat.messages[-1]['content']}."]
            self.finish_reason = "stop"
        else:
            self.pieces = [Piece("", 1, calls=(CallPart(0, "weather", '{"city": "Bern", "unit": null}'),))]
            self.finish_reason = "tool_calls"
        return await super().encode(chat)


def programs(guide):
    text = (ROOT / "docs" / "guides" / f"{guide}.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_a_tool_is_called_and_json_is_read_as_the_guide_for_serving_says(capsys):
    (program,) = [program for program in programs("serving") if "tool_calls" in program]
    with running(Forecaster(context_length=1000)) as served:
        exec(program.replace("http://127.0.0.1:8000", served.url).replace('"merged"', repr(MODEL)), {})
    assert served.engine.chats[0].tools[0]["function"]["strict"]
    assert served.engine.chats[-1].answer_schema["required"] == ["city", "degrees"]
    assert capsys.readouterr().out.splitlines() == [
        "You wrote 4 degrees.",
        "city='Bern' degrees=4",
        "Two.",
    ]
