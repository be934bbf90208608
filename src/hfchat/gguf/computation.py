"""What llama.cpp itself computes from a GGUF file: logits, greedy answers, token ids. For a process of its own."""

from collections.abc import Sequence
from pathlib import Path

import torch
from cyllama.llama.llama_cpp import (
    LlamaBatch,
    LlamaContext,
    LlamaContextParams,
    LlamaModel,
    LlamaModelParams,
    LlamaSampler,
    LlamaSamplerChainParams,
    disable_logging,
)

from hfchat.errors import UserError

_GRANULARITY = 256  # of llama.cpp's cache


class _Model(LlamaModel):
    """A model that says how many tokens it has.

    cyllama 0.2.18 asks a model for `n_vocab` where it reads logits, and its models have none;
    `tests/gguf/test_price.py` fails when that changes for the worse.
    """

    @property
    def n_vocab(self) -> int:
        return self.get_vocab().n_vocab


class Computation:
    """A GGUF file in llama.cpp, on the processor.

    Args:
        file: The file.

    Raises:
        UserError: If llama.cpp cannot load it.
    """

    def __init__(self, file: Path):
        disable_logging()
        try:
            self._model = _Model(str(file), LlamaModelParams(), False)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{file}: llama.cpp cannot load it: {str(error).splitlines()[0]}") from error
        self.vocabulary_size = self._model.n_vocab

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text that may have special tokens in it, by llama.cpp's own tokenizer."""
        return self._model.get_vocab().tokenize(text, False, True)

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """What it says after each of the tokens, shape `(positions, vocabulary)`, in float32."""
        context, batch = self._context(1, len(ids)), _batch(1, len(ids))
        for position, id in enumerate(ids):
            batch.add(id, position, [0], True)
        context.decode(batch)
        return torch.stack([torch.tensor(context.get_logits_ith(position)) for position in range(len(ids))])

    def answers(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop: int) -> list[list[int]]:
        """Greedy answers to some prompts at the same time.

        Args:
            prompts: Token ids.
            max_new_tokens: The length of the longest answer.
            stop: The token that ends an answer; it is part of it.
        """
        longest = max(map(len, prompts)) + max_new_tokens
        context = self._context(len(prompts), longest)
        batch = _batch(len(prompts), sum(map(len, prompts)))
        greedy = LlamaSampler(LlamaSamplerChainParams())
        greedy.add_greedy()
        answers: list[list[int]] = [[] for _ in prompts]

        # The prompts first: each is a sequence of its own, of which the last token alone is asked what comes next.
        last = []
        for number, prompt in enumerate(prompts):
            for position, id in enumerate(prompt):
                batch.add(id, position, [number], position == len(prompt) - 1)
            last.append((number, batch.n_tokens - 1))
        for _ in range(max_new_tokens):
            context.decode(batch)
            for number, row in last:
                answers[number].append(greedy.sample(context, row))
            batch.reset()
            going_on = [number for number, _ in last if answers[number][-1] != stop]
            if not going_on:
                break
            for number in going_on:
                position = len(prompts[number]) + len(answers[number]) - 1
                batch.add(answers[number][-1], position, [number], True)
            last = [(number, row) for row, number in enumerate(going_on)]
        return answers

    def _context(self, sequences: int, length: int) -> LlamaContext:
        """Room for some sequences of at most that length."""
        parameters = LlamaContextParams()
        # Each sequence gets as much of the cache as any other, in steps of 256 tokens.
        parameters.n_ctx = parameters.n_batch = sequences * -(-length // _GRANULARITY) * _GRANULARITY
        parameters.n_seq_max = sequences
        parameters.kv_unified = False
        parameters.n_threads = parameters.n_threads_batch = torch.get_num_threads()
        return LlamaContext(self._model, parameters, False)


def _batch(sequences: int, size: int) -> LlamaBatch:
    return LlamaBatch(n_tokens=size, embd=0, n_seq_max=sequences)
