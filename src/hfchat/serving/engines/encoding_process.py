"""Encoding in a process of its own, because a model brings programs: its chat template, its regular expressions.

A template may loop for ever or make gigabytes, and a regular expression may take hours for a short text. A thread
cannot be stopped in that, but a process can. It has bounds of time and memory, and the next request gets a new one.
`ProcessPoolExecutor` has no way to stop its worker before Python 3.14 (`kill_workers`).

The process has no torch (60 MB instead of 300), and there is one for all models, because prompts are encoded one by
one.
"""

import itertools
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, TypedDict

from transformers import PreTrainedTokenizerBase

from hfchat.chat import Chat
from hfchat.serving.engines.encoding import EncodedChat, PromptEncoder
from hfchat.serving.engines.engine import EngineError, PromptError, PromptTooLongError

_TIME_LIMIT_S = 10.0  # the longest prompt that a context can hold takes a tenth of a second or so
_MEMORY_BYTES = 2**30  # beyond what the process has when it has read its tokenizers
_LENGTH = struct.Struct(">I")
_numbers = itertools.count()


class _Answer(TypedDict, total=False):
    """What the process answers: the ids of a prompt, or the reason why it has no ids to give."""

    ids: list[int]
    may_think: bool
    refused: str  # by the template or the tokenizer
    field: str | None  # that is to blame for it
    too_long: int  # tokens
    failed: str


class ModelEncoder:
    """A model's `PromptEncoder`, in the process that all models share. Its methods block; any thread may call them.

    Args:
        tokenizer: As for `PromptEncoder`.
        vocabulary: As for `PromptEncoder`.
        context: Most tokens of a prompt.

    Raises, from both methods:
        PromptError: As `PromptEncoder`; if the prompt is longer than the context, `PromptTooLongError`.
        EngineError: If it took too much time or memory.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, context: int):
        self._number = next(_numbers)
        self._setup = pickle.dumps((self._number, "setup", (tokenizer, vocabulary)))
        self._context = context
        # A token stands for no more characters than it is written with, so what is longer need not be encoded.
        self._most_characters = context * max(map(len, tokenizer.get_vocab()), default=1)

    def conversation(self, chat: Chat) -> EncodedChat:
        self._check_length(size_of(chat))
        answer = self._encode("conversation", chat)
        return EncodedChat(answer["ids"], answer["may_think"])

    def text(self, text: str | Sequence[int]) -> list[int]:
        if not isinstance(text, str):
            if len(text) > self._context:
                raise self._too_long(f"{len(text)} tokens")
        else:
            self._check_length(len(text))
        return self._encode("text", text if isinstance(text, str) else list(text))["ids"]

    def close(self) -> None:
        """Let the process forget this model when it is next asked something."""
        _process.unwanted.add(self._number)

    def _check_length(self, characters: int) -> None:
        if characters > self._most_characters:
            raise self._too_long(
                f"{characters} characters are more than {self._most_characters // self._context} a token"
            )

    def _too_long(self, length: str) -> PromptTooLongError:
        return PromptTooLongError(f"{length}, but the context holds {self._context}, the answer included.")

    def _encode(self, method: str, source: object) -> _Answer:
        answer = _process.ask(self._setup, self._number, pickle.dumps((self._number, method, (source, self._context))))
        if "refused" in answer:
            raise PromptError(answer["refused"], answer["field"])
        if "too_long" in answer:
            raise self._too_long(f"{answer['too_long']} tokens")
        if "failed" in answer:
            raise EngineError(answer["failed"])
        return answer


def size_of(chat: Chat) -> int:
    """The characters that a template must write: those of messages, calls and tools, without what it may leave out."""
    messages = [[message["content"], message.get("tool_calls", ())] for message in chat.messages]
    return _characters([messages, chat.tools if chat.functions else ()])


def _characters(value: object) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_characters(key) + _characters(item) for key, item in value.items())
    return sum(map(_characters, value)) if isinstance(value, list | tuple) else 0


class _Process:
    """The process, begun when it is needed, and again after it was stopped. It ends when this one does."""

    def __init__(self) -> None:
        self._one_at_a_time = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._knows: set[int] = set()
        self.unwanted: set[int] = set()  # numbers of the encoders that were closed

    def ask(self, setup: bytes, number: int, question: bytes) -> _Answer:
        with self._one_at_a_time:
            child = self._child
            if child is None or child.poll() is not None:
                child = self._start()
            if number not in self._knows:
                self._exchange(child, setup, _TIME_LIMIT_S + 60)  # a large vocabulary on a slow machine
                self._knows.add(number)
            for gone in self._knows & self.unwanted:
                self._exchange(child, pickle.dumps((gone, "forget", ())), _TIME_LIMIT_S)
                self._knows.discard(gone)
            return self._exchange(child, question, _TIME_LIMIT_S)

    def _start(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(filter(None, [str(Path(__file__).parents[3]), *sys.path]))
        self._knows = set()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "hfchat.serving.engines.encoding_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path, "USE_TORCH": "0", "TRANSFORMERS_VERBOSITY": "error"},
        )
        child = self._child
        try:
            self._exchange(child, pickle.dumps((0, "ready", ())), 60)
        except EngineError as error:
            raise EngineError("the process that encodes prompts did not start; the log has its own message") from error
        return child

    def _exchange(self, child: subprocess.Popen[bytes], message: bytes, seconds: float) -> _Answer:
        """Its answer to a message. If none comes in time, the process is stopped."""
        assert child.stdin is not None  # both are pipes
        assert child.stdout is not None
        timed_out = threading.Event()

        def stop() -> None:
            timed_out.set()
            child.kill()

        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            child.stdin.write(_LENGTH.pack(len(message)) + message)
            child.stdin.flush()
            line = child.stdout.readline()
        except OSError:
            line = b""
        finally:
            timer.cancel()
        if line:
            return json.loads(line)

        # It was killed, here or by the kernel, and the next request gets a new one.
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()
        self._child = None
        took = f"more than {seconds:g} s" if timed_out.is_set() else "too much memory"
        raise EngineError(f"the model's chat template or tokenizer took {took} for a prompt")


_process = _Process()


def _work(questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer questions until the other end is closed."""
    encoders: dict[int, PromptEncoder] = {}
    while header := questions.read(_LENGTH.size):
        number, method, arguments = pickle.loads(questions.read(*_LENGTH.unpack(header)))
        if method == "setup":
            _bound_memory(None)
            encoders[number] = PromptEncoder(*arguments)
            answer: _Answer = {}
            _bound_memory(_MEMORY_BYTES)
        elif method in ("ready", "forget"):
            encoders.pop(number, None)
            answer = {}
        else:
            _bound_time()
            answer = _answer(encoders[number], method, *arguments)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _answer(encoder: PromptEncoder, method: str, source: object, context: int) -> _Answer:
    try:
        encoded = getattr(encoder, method)(source)
    except PromptError as error:
        return {"refused": str(error), "field": error.field}
    except (MemoryError, OverflowError):
        return {"failed": "the model's chat template or tokenizer took too much memory for a prompt"}
    except Exception as error:  # it comes from a template or a tokenizer that nobody here knows
        return {"failed": f"the model's chat template or tokenizer failed: {type(error).__name__}: {error}"[:500]}
    ids, may_think = (encoded.ids, encoded.may_think) if isinstance(encoded, EncodedChat) else (encoded, False)
    return {"ids": ids, "may_think": may_think} if len(ids) <= context else {"too_long": len(ids)}


def _bound_memory(more: int | None) -> None:
    """Let this process take so many more bytes than it has, or any number, where the kernel can tell: on Linux."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = resource.RLIM_INFINITY if more is None else pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def _bound_time() -> None:
    """Have the kernel end this process if it works on one prompt for much longer than the server waits for it: the
    server may have been killed."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        resource.setrlimit(resource.RLIMIT_CPU, (int(used + 2 * _TIME_LIMIT_S) + 1, resource.RLIM_INFINITY))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the server, which lets running answers end
    answers_to = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # so that nothing that is printed is taken for an answer
    _work(sys.stdin.buffer, answers_to)
