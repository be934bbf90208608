"""Tool calls that an upstream streams in fragments, put together.

Nobody has checked its JSON, so here `Any` is what it is.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from hfchat.chat import CallPart

_MAX_ID = 256  # characters; a longer one would be refused when it comes back with the history


@dataclass
class _OpenCall:
    """A call of which more may come, as the upstream tells it."""

    index: Any
    id: str
    name: str
    arguments: list[str] = field(default_factory=list)


class CallAssembler:
    """Puts the fragments of an answer's tool calls together.

    A call is handed out when it is whole, which is when the next one begins, or the answer ends. As from every engine,
    one of a function that was not offered, or whose arguments are not a JSON object, such as that of an answer which
    was cut, is text: the JSON of its name and arguments, as far as they have come.

    Attributes:
        count: Calls that have been handed out.
    """

    def __init__(self, offered: Collection[str]):
        """
        Args:
            offered: Names of the functions that may be called.
        """
        self.count = 0
        self._offered = offered
        self._open: _OpenCall | None = None

    def push(self, fragments: Sequence[Any]) -> list[CallPart | str]:
        """The calls, or texts, that end with these fragments (`tool_calls` of a delta).

        Raises:
            TypeError, AttributeError: If they are not fragments of calls.
        """
        closed: list[CallPart | str] = []
        for fragment in fragments:
            function = fragment.get("function") or {}
            index, id = fragment.get("index"), _string(fragment.get("id"))
            name, arguments = _string(function.get("name")), function.get("arguments")
            if isinstance(arguments, dict):  # some servers do not write them as a string
                arguments = json.dumps(arguments, ensure_ascii=False)
            if self._open is None or _is_another(self._open, index, id, name):
                closed += self.close()
                self._open = _OpenCall(index, id, name)
            elif name != self._open.name:  # in parts; others repeat it
                self._open.name += name
            self._open.arguments.append(_string(arguments))
        return closed

    def close(self) -> list[CallPart | str]:
        """The call, or the text, that ends here, if there is one."""
        call, self._open = self._open, None
        if call is None:
            return []
        # JSON that others read as it is meant, or the text that the upstream has sent.
        name, written = whole_characters(call.name), whole_characters("".join(call.arguments))
        try:
            arguments = from_json(written, allow_inf_nan=False) if written.strip() else {}
            whole = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        except ValueError:
            return [f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {written}']
        if name not in self._offered or not isinstance(arguments, dict):
            return [f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {whole}}}']
        self.count += 1
        id = whole_characters(call.id) if 0 < len(call.id) <= _MAX_ID else None
        return [CallPart(self.count - 1, name, whole, id)]


def whole_characters(text: str) -> str:
    """A text in which halves of surrogate pairs are joined; U+FFFD where the other half is not there."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _is_another(call: _OpenCall, index: Any, id: str, name: str) -> bool:
    """Whether a fragment begins another call: most servers count them, some only give them ids, or only names."""
    if index != call.index:
        return True
    has_another_id = bool(id) and id != call.id
    return bool(name) and (has_another_id or (bool(call.arguments[0]) and (index is None or name != call.name)))


def _string(value: Any) -> str:
    if not isinstance(value, str | None):
        raise TypeError("not a string")
    return value or ""
