"""One dial: the depth of a model gives its shape, and the size of a model how to train it.

What the constants were chosen by, and what did not work, is in `benchmarks/LOG.md`.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hfchat.errors import UserError
from hfchat.models import VOCABULARY_MULTIPLE

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Width per layer. Kaplan et al. (arXiv:2001.08361, section 3) find the loss nearly flat over a wide range of this
# ratio; 64 keeps one attention head of 64 per layer of depth.
ASPECT_RATIO = 64
HEAD_DIM = 64
# Tokens per parameter for the least compute at a given loss (Hoffmann et al., arXiv:2203.15556).
TOKENS_PER_PARAMETER = 20
# Where the learning rates were measured: the width, and the tokens of a run with its best batch.
_REFERENCE_WIDTH = 256
_REFERENCE_TOKENS = 400_000
_REFERENCE_BATCH = 2048


@dataclass(frozen=True)
class Shape:
    """The shape of a model, as its depth implies it.

    Attributes:
        depth: Number of layers.
        hidden_size: Width of the residual stream.
        num_attention_heads: Heads of `HEAD_DIM` each.
        intermediate_size: Width of the gated MLP: 8/3 of the hidden size, because a third matrix would otherwise cost
            half as much again (Shazeer, arXiv:2002.05202), rounded up to a multiple of 64.
    """

    depth: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int

    @classmethod
    def from_depth(cls, depth: int) -> "Shape":
        if depth < 1:
            raise UserError(f"depth must be at least 1, not {depth}")
        hidden_size = ASPECT_RATIO * depth
        return cls(
            depth=depth,
            hidden_size=hidden_size,
            num_attention_heads=hidden_size // HEAD_DIM,
            intermediate_size=-(-8 * hidden_size // (3 * 64)) * 64,
        )

    def model_config(
        self,
        architecture: str,
        tokenizer: "PreTrainedTokenizerBase",
        block_size: int,
        *,
        tie_word_embeddings: bool = True,
        dropout: float = 0.0,
    ) -> "PreTrainedConfig":
        """A plain `LlamaConfig` (`"llama"`) or `GPT2Config` (`"gpt2"`) for sequences of `block_size` tokens.

        Args:
            architecture: One of the two.
            tokenizer: The model gets its vocabulary, rounded up to a multiple of `VOCABULARY_MULTIPLE`.
            block_size: Longest sequence.
            tie_word_embeddings: One matrix for both ends: half of a small model would be embeddings otherwise
                (arXiv:1608.05859).
            dropout: Llama has one on attention alone, GPT-2 three.
        """
        from transformers import GPT2Config, LlamaConfig

        # What both architectures call alike.
        shared = {
            "vocab_size": -(-len(tokenizer) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,  # a base model ends a document, not a turn
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": tie_word_embeddings,
        }
        if architecture == "gpt2":
            return GPT2Config(
                n_layer=self.depth,
                n_embd=self.hidden_size,
                n_head=self.num_attention_heads,
                n_positions=block_size,
                resid_pdrop=dropout,
                embd_pdrop=dropout,
                attn_pdrop=dropout,
                **shared,
            )
        return LlamaConfig(
            num_hidden_layers=self.depth,
            hidden_size=self.hidden_size,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            max_position_embeddings=block_size,
            attention_dropout=dropout,
            **shared,
        )


@dataclass(frozen=True)
class Schedule:
    """How to train a model of a given size on a given number of tokens.

    Attributes:
        hidden_size: Width of the model.
        tokens: How many to train on, by default `TOKENS_PER_PARAMETER` for each of its parameters.
    """

    hidden_size: int
    tokens: int

    @classmethod
    def of(cls, model: "PreTrainedModel", tokens: int | None = None) -> "Schedule":
        if tokens is None:
            tokens = TOKENS_PER_PARAMETER * model.num_parameters()
        return cls(model.config.get_text_config().hidden_size, tokens)

    @property
    def batch_tokens(self) -> int:
        """Tokens per step, a power of two. The best batch grows as tokens^0.383 (Bergsma et al., arXiv:2505.13738).

        The constant is that of runs of 400,000 tokens. At a thousand times as many it is a guess, and probably low:
        see `recipes/configs/gpt2-124m/README.md`.
        """
        return 2 ** round(math.log2(_REFERENCE_BATCH * (self.tokens / _REFERENCE_TOKENS) ** 0.383))

    def learning_rate(self, optimizer: str, tokens_per_step: int) -> float:
        """Peak for the hidden matrices with `"muon"`, for everything with `"adamw"`.

        It falls as 1/width: in our runs with Muon, and by theory with AdamW (Yang et al., arXiv:2203.03466).
        """
        rate = 1e-2 if optimizer == "muon" else 3e-3
        return rate * _REFERENCE_WIDTH / self.hidden_size * self._batch_factor(tokens_per_step)

    def embedding_learning_rate(self, tokens_per_step: int) -> float:
        """Peak of AdamW beside Muon.

        That it falls as 1/sqrt(width) is a guess between theory for embeddings (not at all) and for a head (1/width),
        which are one matrix here.
        """
        return 3e-2 * (_REFERENCE_WIDTH / self.hidden_size) ** 0.5 * self._batch_factor(tokens_per_step)

    @property
    def weight_decay(self) -> float:
        """That of GPT-3 (Brown et al., arXiv:2005.14165, appendix B)."""
        return 0.1

    def _batch_factor(self, tokens_per_step: int) -> float:
        """A smaller batch than the best is noisier and wants a rate that falls with its root (arXiv:2205.10287)."""
        return min(1.0, tokens_per_step / self.batch_tokens) ** 0.5
