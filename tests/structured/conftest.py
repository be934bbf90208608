"""What the tests of structured answers share."""

import pytest

from hfchat.structured.masks import GrammarCompiler


@pytest.fixture(scope="session")
def compiler(tokenizer):
    return GrammarCompiler(tokenizer, len(tokenizer), {tokenizer.eos_token_id})


def is_allowed(compiler, tokenizer, grammar, text):
    """Whether an answer may be this text and end there."""
    matcher = compiler.matcher(grammar)
    for token in tokenizer.encode(text, add_special_tokens=False):
        if not matcher.allowed()[token]:
            return False
        matcher.accept(token)
    return matcher.accepting and bool(matcher.allowed()[tokenizer.eos_token_id])
