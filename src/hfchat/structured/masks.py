"""Which tokens may come next in an answer that a grammar binds."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
import torch
from llguidance import LLExecutor, LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from llguidance.numpy import fill_next_token_bitmask, fill_next_token_bitmask_par
from transformers import PreTrainedTokenizerFast

from hfchat.structured.limits import LIMITS, first_line

_COMPILED = 64  # grammars that are kept; one of a large schema takes some megabytes


class MatcherError(Exception):
    """A grammar cannot be compiled, or an answer cannot go on by it. Another answer's is not concerned."""


class Matcher:
    """Follows one answer by its grammar; not to be used by two threads at a time.

    Attributes:
        matcher: llguidance's.
        vocabulary: Number of tokens that a mask is for.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: int, tokenizer: LLTokenizer):
        self.matcher = matcher
        self.vocabulary = vocabulary
        self._tokenizer = tokenizer

    @property
    def done(self) -> bool:
        """Whether nothing but the end of the answer may come."""
        return self.matcher.is_stopped()

    @property
    def accepting(self) -> bool:
        """Whether the answer may end here."""
        return self.matcher.is_accepting()

    def allowed(self) -> torch.Tensor:
        """Which tokens may come next, `[vocabulary]` of bool; those that end an answer where it may end.

        Raises:
            MatcherError: If it took too much work, or the answer has left its grammar.
        """
        bits = np.zeros((1, _words(self.vocabulary)), dtype=np.int32)
        fill_next_token_bitmask(self.matcher, bits)
        return self.checked(_unpacked(bits, self.vocabulary)[0])

    def checked(self, allowed: torch.Tensor) -> torch.Tensor:
        """A mask, if it was made for this matcher without an error and leaves a choice.

        Raises:
            MatcherError: If it is not.
        """
        self._check()
        if not allowed.any():
            raise MatcherError("no token can come next by the grammar of this answer")
        return allowed

    def accept(self, token: int) -> None:
        """The answer goes on with a token.

        Raises:
            MatcherError: If that token may not come.
        """
        self.matcher.consume_token(token)
        self._check()

    def accept_text(self, text: str) -> None:
        """The answer goes on with a text whose tokens are not known, but for none of them being a special one.

        Raises:
            MatcherError: If that text may not come.
        """
        self.matcher.consume_tokens(self._tokenizer.greedy_tokenize(text))
        self._check()

    def _check(self) -> None:
        if self.matcher.is_error():
            raise MatcherError(first_line(self.matcher.get_error()))


class GrammarCompiler:
    """Makes matchers for one model; any thread may ask it.

    Args:
        tokenizer: The model's.
        vocabulary: Number of its embeddings.
        ends: Tokens that end an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, vocabulary: int, ends: Iterable[int]):
        self.vocabulary = vocabulary
        self._source, self._ends = tokenizer, sorted(ends)
        self._tokenizer: LLTokenizer | None = None  # made when it is needed: that takes up to a second
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self, grammar: str) -> Matcher:
        """One for a new answer. A grammar that was compiled before costs microseconds.

        Raises:
            MatcherError: If the grammar cannot be compiled, or this tokenizer cannot be bound to one.
        """
        with self._lock:
            tokenizer = self._tokenizer = self._tokenizer or self._converted()
            compiled = self._compiled.get(grammar)
            if compiled is not None:
                self._compiled.move_to_end(grammar)
        # Two threads may compile the same one, which is rare and harmless.
        if compiled is None:
            compiled = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
            if compiled.is_error():
                raise MatcherError(first_line(compiled.get_error()))
            with self._lock:
                self._compiled[grammar] = compiled
                while len(self._compiled) > _COMPILED:
                    self._compiled.popitem(last=False)
        return Matcher(compiled.deep_copy(), self.vocabulary, tokenizer)

    def _converted(self) -> LLTokenizer:
        try:
            return from_tokenizer(self._source, n_vocab=self.vocabulary, eos_token=self._ends)
        except ValueError as error:
            raise MatcherError(
                f"llguidance cannot read the tokenizer of this model: {first_line(str(error))}"
            ) from error


def allowed_next(matchers: Sequence[Matcher]) -> list[torch.Tensor | MatcherError]:
    """`Matcher.allowed` of several matchers of one vocabulary, side by side; one that fails has its error there."""
    if not matchers:
        return []
    bits = np.zeros((len(matchers), _words(matchers[0].vocabulary)), dtype=np.int32)
    rows = [(matcher.matcher, row) for row, matcher in enumerate(matchers)]
    fill_next_token_bitmask_par(_executor(), rows, bits)
    masks: list[torch.Tensor | MatcherError] = []
    for matcher, allowed in zip(matchers, _unpacked(bits, matchers[0].vocabulary), strict=True):
        try:
            masks.append(matcher.checked(allowed))
        except MatcherError as error:
            masks.append(error)
    return masks


@cache
def _executor() -> LLExecutor:
    """Threads that make masks, for the whole process."""
    return LLExecutor()


def _words(vocabulary: int) -> int:
    return (vocabulary + 31) // 32


def _unpacked(bits: np.ndarray, vocabulary: int) -> torch.Tensor:
    """The bits of 32-bit words, the lowest first, as one bool each."""
    single = np.unpackbits(bits.view(np.uint8), axis=-1, count=vocabulary, bitorder="little")
    return torch.from_numpy(single.view(np.bool_))
