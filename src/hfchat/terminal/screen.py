"""What is read from the terminal and shown there, or in a pipe."""

import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from hfchat.errors import UserError

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_CLEAR_LINE = "\r\x1b[K"


class Screen:
    """Shows answers on standard output, and all else on standard error.

    In a pipe every line of standard input is a turn, and standard output has the answers alone, as plain text.

    Attributes:
        is_interactive: Whether a person sits in front of it.
    """

    def __init__(self) -> None:
        self.is_interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self._styled = self.is_interactive and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
        self._at_line_start = True
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError):  # half a surrogate pair, which JSON can hold, or a character of another set
                stream.reconfigure(errors="replace")  # type: ignore[union-attr]
        if self.is_interactive:
            with suppress(ImportError):
                import readline  # noqa: F401  # lines can be edited, and earlier ones come back

    def read(self, prompt: str) -> str | None:
        """The next line; None at the end of the input.

        Raises:
            KeyboardInterrupt: If Ctrl-C was pressed.
            UserError: If what is piped in is not text.
        """
        try:
            if self.is_interactive:
                return input(prompt)
            line = sys.stdin.readline()
        except EOFError:
            return None
        except UnicodeDecodeError as error:
            raise UserError("standard input must be UTF-8; convert it first") from error
        return line.removesuffix("\n") if line else None

    def text(self, text: str) -> None:
        """A part of an answer."""
        self._write(text)

    def reasoning(self, text: str) -> None:
        """A part of the reasoning before an answer: dimmed, and apart from what is piped on."""
        if not text:
            return
        if self.is_interactive:
            self._write(text, dim=True)
        else:
            print(text, end="", file=sys.stderr, flush=True)

    def end_line(self) -> None:
        """Go on at the start of a line."""
        if not self._at_line_start:
            self._write("\n")

    def call(self, name: str, arguments: str) -> None:
        """A function that the model calls, with its arguments in lines of their own."""
        with suppress(ValueError):
            arguments = json.dumps(json.loads(arguments), indent=2, ensure_ascii=False)
        self.end_line()
        self._write(f"{name} {arguments}\n")

    def note(self, text: str) -> None:
        """A line about the conversation."""
        if self.is_interactive:
            self.end_line()
            self._write(f"{text}\n", dim=True)
        else:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, what: str) -> Iterator[Callable[[str], None]]:
        """A line about what is waited for; it is gone afterwards."""
        if not self.is_interactive:
            print(what, file=sys.stderr, flush=True)
            yield lambda state: None
            return
        # The line is written over itself, so that only its last state is ever seen.
        start = _CLEAR_LINE if self._styled else "\r"
        try:
            yield lambda state: print(f"{start}{what}, {state}", end="", flush=True)
        finally:
            print(start if self._styled else "\n", end="", flush=True)

    def _write(self, text: str, dim: bool = False) -> None:
        if not text:
            return
        self._at_line_start = text.endswith("\n")
        if self.is_interactive:  # what a model says must not steer the terminal
            text = "".join(map(_harmless, text))
        if dim and self._styled:
            text = f"{_DIM}{text}{_PLAIN}"
        print(text, end="", flush=True)


def _harmless(character: str) -> str:
    is_control = unicodedata.category(character) == "Cc" and character not in "\n\t"
    return ascii(character)[1:-1] if is_control else character
