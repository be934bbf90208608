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

# Fewer masks are made one after the other: 8 take 0.1 to 0.8 ms so, and waking threads on 2 cores took up to 1.7 ms.
_SIDE_BY_SIDE = 16


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
        [allowed] = allowed_next([self])
        if isinstance(allowed, MatcherError):
            raise allowed
        return allowed

    def fault(self, bits: np.ndarray) -> MatcherError | None:
        """What is wrong with a mask that was made for this matcher; None if it leaves a choice."""
        if self.matcher.is_error():
            return MatcherError(first_line(self.matcher.get_error()))
        return None if bits.any() else MatcherError("no token can come next by the grammar of this answer")

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
    vocabulary = matchers[0].vocabulary
    bits = np.zeros((len(matchers), (vocabulary + 31) // 32), dtype=np.int32)
    rows = [(matcher.matcher, row) for row, matcher in enumerate(matchers)]
    if len(matchers) < _SIDE_BY_SIDE:
        for matcher, row in rows:
            fill_next_token_bitmask(matcher, bits, row)
    else:
        fill_next_token_bitmask_par(_executor(), rows, bits)
    # The bits of 32-bit words, the lowest first, become one bool each.
    single = np.unpackbits(bits.view(np.uint8), axis=-1, count=vocabulary, bitorder="little")
    allowed = torch.from_numpy(single.view(np.bool_))
    return [matcher.fault(bits[row]) or allowed[row] for row, matcher in enumerate(matchers)]


@cache
def _executor() -> LLExecutor:
    """Threads that make masks, for the whole process."""
    return LLExecutor()
