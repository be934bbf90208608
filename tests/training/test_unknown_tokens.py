"""What bits per byte do not say of letters that a tokenizer does not know."""

import copy

from hfchat.training.bits_per_byte import unknown_tokens
from tests.training.trainers import trainer_for


def test_letters_that_the_tokenizer_does_not_know_are_said(packed, tokenizer, tmp_path, capsys):
    """They cost next to nothing, so that bits per byte look better than those of a tokenizer that reads them."""
    trainer_for(packed, tokenizer, tmp_path / "whole")
    assert "validation tokens are" not in capsys.readouterr().out
    tokens = packed["validation"].tokens
    token = int(tokens[1])
    count = int((tokens == token).sum())
    lossy = copy.deepcopy(tokenizer)
    lossy.unk_token = tokenizer.convert_ids_to_tokens(token)
    trainer_for(packed, lossy, tmp_path / "lossy")
    assert f"{count:,} of the {len(tokens):,} validation tokens are {lossy.unk_token}" in capsys.readouterr().out
    assert unknown_tokens(tokens, lossy) == count > 0


def test_a_token_that_ends_texts_too_stands_for_nothing_unknown(packed, tokenizer):
    gpt2 = copy.deepcopy(tokenizer)
    gpt2.unk_token = tokenizer.eos_token
    assert unknown_tokens(packed["validation"].tokens, gpt2) == 0
