"""A conversation in the terminal: its turns, and the commands that change it."""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path

from hfchat.chat import Json
from hfchat.terminal.client import Answer, ChatClient, RefusedError, read_answer
from hfchat.terminal.screen import Screen

_HELP = """\
/system TEXT  what the model is told before the conversation; without TEXT nothing
/retry        another answer to the last question
/save FILE    append the conversation to a JSON Lines file, which recipes/prepare_conversations.py reads
/help         this
/quit         leave, as Ctrl-D does; Ctrl-C stops an answer
A line that begins with // is a question that begins with one slash."""
_WHY_CUT = {
    "length": "[cut: the answer reached its limit of tokens]",
    "content_filter": "[cut: the server's guard stopped the answer]",
    None: "[stopped]",
}


class Session:
    """A conversation between a person and a model.

    Args:
        client: Asks the model.
        screen: Where the person is.
        system: What the model is told before the conversation.
        tools: What it may call; the person says what comes of a call.
        seed: For answers that can be repeated; a retry takes the next one.
    """

    def __init__(
        self, client: ChatClient, screen: Screen, system: str | None, tools: Sequence[Json], seed: int | None
    ):
        self._client, self._screen, self._tools = client, screen, tools
        self._system, self._seed = system, seed
        # Each exchange begins with a question; calls and their results belong to it.
        self._exchanges: list[list[Json]] = []
        self._unanswered: str | None = None  # the last question, if the server refused it
        self._commands: Mapping[str, Callable[[str], None]] = {
            "system": self._set_system,
            "retry": self._retry,
            "save": self._save,
            "help": lambda _: screen.note(_HELP),
        }
        self.failures = 0

    def run(self) -> None:
        """Take lines until the person leaves."""
        while True:
            try:
                line = self._screen.read("> ")
            except KeyboardInterrupt:
                if not self._screen.is_interactive:
                    raise
                self._screen.note("\nCtrl-D or /quit leaves")
                continue
            if line is None or line.split() == ["/quit"]:
                return
            if line.startswith("/") and not line.startswith("//"):
                self._command(line)
            elif line.strip():
                self._ask(line.removeprefix("/") if line.startswith("//") else line)

    def _command(self, line: str) -> None:
        name, _, rest = line[1:].partition(" ")
        if name not in self._commands:
            return self._fail(f"there is no /{name}; /help lists what there is")
        return self._commands[name](rest.strip())

    def _set_system(self, text: str) -> None:
        self._system = text or None
        self._screen.note("the system message is set" if text else "there is no system message")

    def _retry(self, _: str) -> None:
        if self._unanswered is not None:
            return self._ask(self._unanswered)
        if not self._exchanges:
            return self._fail("there is no question yet")
        if self._seed is not None:  # or the answer would be the same
            self._seed += 1
        return self._ask(self._exchanges.pop()[0]["content"])

    def _save(self, file: str) -> None:
        if not file or not self._exchanges:
            return self._fail("name a file: /save FILE" if not file else "there is nothing to save yet")
        row = {"messages": self._messages(), **({"tools": self._tools} if self._tools else {})}
        try:
            with Path(file).expanduser().open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
        except (OSError, UnicodeEncodeError) as error:
            return self._fail(f"{file}: cannot be written ({error})")
        return self._screen.note(f"appended to {file}")

    def _messages(self) -> list[Json]:
        system: list[Json] = [{"role": "system", "content": self._system}] if self._system else []
        return [*system, *chain.from_iterable(self._exchanges)]

    def _ask(self, question: str) -> None:
        """Have a question answered, and go on while the model calls functions."""
        try:
            question.encode()
        except UnicodeEncodeError:
            return self._fail("the question is not valid Unicode; type it again")
        exchange: list[Json] = [{"role": "user", "content": question}]
        self._exchanges.append(exchange)
        self._unanswered = None
        try:
            # The user stands in for the functions, until the model has what it needs.
            while (answer := self._answer(exchange)).calls and answer.finish_reason is not None:
                for call in answer.calls.values():
                    if (result := self._screen.read(f"result of {call.name}: ")) is None:
                        return self._take_back(question)
                    exchange.append({"role": "tool", "tool_call_id": call.id, "content": result})
        except RefusedError as error:
            self._take_back(question)
            self._fail(str(error))
        except KeyboardInterrupt:  # in the middle of the results
            if not self._screen.is_interactive:
                raise
            self._take_back(question)
            self._screen.note("\n[the question is taken back]")

    def _answer(self, exchange: list[Json]) -> Answer:
        """Have an answer to all that was said, and put it into the exchange."""
        answer, screen = Answer(), self._screen
        seed = {} if self._seed is None else {"seed": self._seed}

        def show(text: str, reasoning: str) -> None:
            screen.reasoning(reasoning)
            if text and answer.text == text and answer.reasoning:  # the first text after the reasoning
                screen.end_line()
            screen.text(text)

        try:
            with self._client.answer(self._messages(), self._tools, seed) as choices:
                read_answer(answer, choices, show)
        except KeyboardInterrupt:
            if not screen.is_interactive:
                raise
            answer.calls.clear()  # they are not whole
            answer.finish_reason = None
        # What is known only now that the answer has ended.
        for call in answer.calls.values():
            screen.call(call.name, call.arguments)
        screen.end_line()
        if answer.finish_reason not in ("stop", "tool_calls"):
            screen.note(_WHY_CUT.get(answer.finish_reason, f"[ended: {answer.finish_reason}]"))
        exchange.append(answer.message())
        return answer

    def _take_back(self, question: str) -> None:
        self._exchanges.pop()
        self._unanswered = question

    def _fail(self, problem: str) -> None:
        self.failures += 1
        self._screen.end_line()
        self._screen.note(problem)
