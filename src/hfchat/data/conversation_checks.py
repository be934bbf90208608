"""What training needs of an example, and what must not be in it: what is not kept has a reason."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, cast

from datatrove.data import Document

from hfchat.data.conversation_formats import KINDS
from hfchat.data.decontamination import ContaminationFilter
from hfchat.data.removal import Removal
from hfchat.data.turns import ConversationError, Example, Message, all_messages, turns_of
from hfchat.messages import ROLES_WITH_TOOLS, digest_of, find_fault
from hfchat.safety.pii import PII

_SAID = ("content", "reasoning_content", "tool_calls")  # fields of a message in which somebody says something


def check(kind: str, example: Example) -> None:
    """Hold an example against what training needs of it.

    Consecutive messages of one role are refused rather than merged: who joins them writes a turn that nobody wrote.

    Raises:
        ConversationError: With the reason.
    """
    prompt = turns_of(example, "prompt")
    for column in KINDS[kind]:
        if column in ("prompt", "label"):
            continue
        answer = turns_of(example, column)
        asks = column != "messages" and any(turn["role"] in ("system", "user") for turn in answer)
        if kind == "preference" and (asks or not prompt or not answer):
            raise ConversationError(
                "different_prompts", f"'{column}' is no answer to a prompt that both answers share"
            )
        _check_conversation(prompt + answer)
        if not any(turn["role"] == "assistant" and turn.get("weight") != 0 for turn in prompt + answer):
            raise ConversationError("nothing_to_learn", "every turn of the assistant has the weight 0")
        if asks:
            raise ConversationError("not_alternating", f"'{column}' has a turn that is not the assistant's")


def _check_conversation(messages: Sequence[Message]) -> None:
    fault = find_fault(messages, ROLES_WITH_TOOLS)
    if fault is not None:
        raise ConversationError(*fault)
    before = None
    for position, turn in enumerate(messages):
        role = turn["role"]
        if role == "system" and position:
            raise ConversationError("system_not_first", f"turn {position} is the system's; only the first may be")
        after = None if before is None or before["role"] == "system" else before["role"]
        calls = before is not None and bool(before.get("tool_calls"))
        follows = {
            "system": True,
            "user": after is None or (after == "assistant" and not calls),
            "assistant": after in ("user", "tool"),
            "tool": calls or after == "tool",
        }[role]
        if not follows:
            previous = "nothing" if after is None else f"the {after}'s" + (" call of a tool" if calls else "")
            raise ConversationError("not_alternating", f"turn {position} is the {role}'s, after {previous}")
        before = turn


def _said(messages: Sequence[Message]) -> list[dict[str, object]]:
    """What is learned of messages, without the ids of calls, which differ wherever the same is said again."""
    counts = {"role", "weight", *_SAID}
    said = [{field: value for field, value in turn.items() if field in counts} for turn in messages]
    for turn, written in zip(messages, said, strict=True):
        if "tool_calls" in turn:
            written["tool_calls"] = [call["function"] for call in turn["tool_calls"]]
    return said


def _texts_of(message: Message) -> Iterator[str]:
    """Everything that a message says: its reasoning, its content, and the arguments of its calls."""
    yield from filter(None, (message.get("reasoning_content"), message["content"]))
    for call in message.get("tool_calls", ()):
        yield from _texts_in(json.loads(call["function"]["arguments"]))


def _texts_in(value: object) -> Iterator[str]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts_in(item)
    elif value is not None:
        yield str(value)


class Cleaner:
    """Checks examples of one kind, and replaces personal data in them; knows those that it has seen.

    Args:
        kind: One of `KINDS`.
        pii: Kinds of personal data to replace (`hfchat.safety.pii`).
        regions: Whose national phone numbers are replaced.
        index_folder: Evaluation sets to keep out, by `hfchat.data.decontamination.build_index`; None for none.
        n_grams: Words of the index's n-grams.
    """

    def __init__(
        self,
        kind: str,
        pii: Sequence[str],
        regions: Sequence[str],
        index_folder: str | None,
        n_grams: int,
    ):
        self.kind = kind
        self.pii = PII(kinds=pii, regions=regions)
        self.contamination = ContaminationFilter(index_folder, n_grams) if index_folder else None
        self.replaced: Counter[str] = Counter()
        self._seen: set[bytes] = set()

    def clean(self, example: Example) -> tuple[Example, bytes]:
        """The example, and the hash of its normalized messages.

        Raises:
            ConversationError: With the reason.
        """
        check(self.kind, example)
        self._check_contamination(example)
        example, replaced = self._replace_pii(example)
        said = {column: _said(turns_of(example, column)) for column in KINDS[self.kind] if column != "label"}
        if "chosen" in said and digest_of(said["chosen"]) == digest_of(said["rejected"]):
            raise ConversationError("chosen_is_rejected", "the two answers are the same")
        digest = digest_of({**example, **said})
        if digest in self._seen:
            raise ConversationError("duplicate", "an earlier conversation has the same messages")
        self._seen.add(digest)
        self.replaced += replaced
        return example, digest

    def _check_contamination(self, example: Example) -> None:
        if self.contamination is None:
            return
        for message in all_messages(example):
            document = Document("\n".join(_texts_of(message)), "")
            if self.contamination.filter(document) is not True:
                removal = Removal.of(document)
                raise ConversationError("contaminated", removal.detail or "" if removal else "")

    def _replace_pii(self, example: Example) -> tuple[Example, Counter[str]]:
        replaced: Counter[str] = Counter()

        def replace(value: Any) -> Any:
            if isinstance(value, str):
                value, found = self.pii.replace_in_json(value)
                replaced.update(found)
                return value
            if isinstance(value, list):
                return [replace(item) for item in value]
            return {key: replace(item) for key, item in value.items()} if isinstance(value, dict) else value

        example = example.copy()
        for column in KINDS[self.kind]:
            if column != "label":
                turns = [turn.copy() for turn in turns_of(example, column)]
                for turn in turns:
                    fields = cast(dict[str, object], turn)
                    fields |= {field: replace(fields[field]) for field in _SAID if field in fields}
                cast(dict[str, list[Message]], example)[column] = turns
        if "tools" in example:
            example["tools"] = replace(example["tools"])
        return example, replaced
