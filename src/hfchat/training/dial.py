"""One dial: the depth of a model gives its width, heads, and how to train it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hfchat.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

# Width per layer. Kaplan et al. (arXiv:2001.08361, section 3) find the loss nearly flat over a wide range of this
# ratio; 64 keeps one attention head of 64 per layer of depth.
ASPECT_RATIO = 64
HEAD_DIM = 64
# Tokens per parameter for the least compute at a given loss (Hoffmann et al., arXiv:2203.15556).
TOKENS_PER_PARAMETER = 20


@dataclass(frozen=True)
class Dial:
    """What a depth implies.

    Attributes:
        depth: Number of layers.
        hidden_size: Width of the residual stream.
        num_attention_heads: Heads of `HEAD_DIM` each.
        intermediate_size: Width of the gated MLP: 8/3 of the hidden size, as a third matrix would otherwise cost
            half as much again (Shazeer, arXiv:2002.05202), rounded up to a multiple of 64.
        learning_rate: Peak of Muon, and of AdamW beside it. The optimum falls as 1/width (Yang et al.,
            arXiv:2203.03466); 5e-3 at width 256 took the demo to 2.25 bits per byte in 250 steps of 1,024 tokens. It
            is a first choice, not a tuned one. AdamW alone gets a fifth of it.
        weight_decay: That of GPT-3 (Brown et al., arXiv:2005.14165, appendix B).
    """

    depth: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    learning_rate: float
    weight_decay: float = 0.1

    @classmethod
    def from_depth(cls, depth: int) -> "Dial":
        if depth < 1:
            raise UserError(f"depth must be at least 1, not {depth}")
        hidden_size = ASPECT_RATIO * depth
        return cls(
            depth=depth,
            hidden_size=hidden_size,
            num_attention_heads=hidden_size // HEAD_DIM,
            intermediate_size=-(-8 * hidden_size // (3 * 64)) * 64,
            learning_rate=5e-3 * 256 / hidden_size,
        )

    def model_config(
        self, architecture: str, tokenizer: "PreTrainedTokenizerBase", block_size: int
    ) -> "PreTrainedConfig":
        """A plain `LlamaConfig` (`"llama"`) or `GPT2Config` (`"gpt2"`) for sequences of `block_size` tokens."""
        from transformers import GPT2Config, LlamaConfig

        tokens = {
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.bos_token_id,  # a base model ends a document, not a turn
            "pad_token_id": tokenizer.pad_token_id,
        }
        if architecture == "gpt2":
            return GPT2Config(
                n_layer=self.depth,
                n_embd=self.hidden_size,
                n_head=self.num_attention_heads,
                n_positions=block_size,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                **tokens,
            )
        return LlamaConfig(
            num_hidden_layers=self.depth,
            hidden_size=self.hidden_size,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            max_position_embeddings=block_size,
            tie_word_embeddings=True,  # half of a small model would be embeddings otherwise (arXiv:1608.05859)
            **tokens,
        )
