"""The model that a pretraining starts from, and its tokenizer."""

from typing import TYPE_CHECKING

import torch

from hfchat.errors import UserError
from hfchat.models import add_special_tokens, check_fits, embed_new_tokens, load_model, load_tokenizer
from hfchat.training.dial import Shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfchat.training.pretrain_arguments import PretrainArguments

_RESIDUAL_OUTPUTS = ("o_proj.weight", "down_proj.weight", "c_proj.weight")


def load_initial_model(args: "PretrainArguments") -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """A new model of the depth asked for, or the one to continue from with embeddings for all tokens.

    Raises:
        UserError: If model and tokenizer do not belong together, or `block_size` is more than the model's context.
    """
    tokenizer = load_tokenizer(args.tokenizer_name or str(args.model_name_or_path))  # one of them is set
    if args.model_name_or_path is None:
        add_special_tokens(tokenizer, args.add_tokens)
        return new_model(args, tokenizer), tokenizer
    model = load_model(args.model_name_or_path, dtype="float32", attn_implementation=args.attn_implementation)
    known = len(tokenizer)
    if args.tokenizer_name:
        own = load_tokenizer(args.model_name_or_path)
        _check_extends(tokenizer, own)
        known = len(own)
    add_special_tokens(tokenizer, args.add_tokens)
    embed_new_tokens(model, known, len(tokenizer))
    check_fits(model, tokenizer, args.block_size)
    return model, tokenizer


def new_model(args: "PretrainArguments", tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedModel":
    """A model from scratch, every layer of which starts as the identity.

    The outputs into the residual stream are zero (arXiv:2203.03466, appendix D.2): see `benchmarks/LOG.md`.
    """
    from transformers import AutoModelForCausalLM

    config = Shape.from_depth(args.depth).model_config(
        args.architecture,
        tokenizer,
        args.block_size,
        tie_word_embeddings=args.tie_word_embeddings,
        dropout=args.dropout,
    )
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=args.attn_implementation, trust_remote_code=False
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(_RESIDUAL_OUTPUTS):
                parameter.zero_()
    return model


def _check_extends(tokenizer: "PreTrainedTokenizerBase", own: "PreTrainedTokenizerBase") -> None:
    vocabulary = tokenizer.get_vocab()
    if changed := [token for token, number in own.get_vocab().items() if vocabulary.get(token) != number]:
        raise UserError(
            f"tokenizer_name {tokenizer.name_or_path}: gives {len(changed):,} of the model's tokens another id, "
            f"{changed[0]!r} among them; leave tokenizer_name out to use the model's own, with add_tokens for new ones"
        )
