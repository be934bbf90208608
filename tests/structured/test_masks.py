"""Matchers follow answers token by token, each by itself."""

import pytest
import torch

from hfchat.structured import masks
from hfchat.structured.grammars import json_grammar
from hfchat.structured.masks import GrammarCompiler, MatcherError, allowed_next

GRAMMAR = json_grammar({"type": "array", "items": {"enum": [1, 2]}, "minItems": 1, "maxItems": 2})


def feed(matcher, tokenizer, text):
    for token in tokenizer.encode(text, add_special_tokens=False):
        matcher.accept(token)


def tokens_of(mask):
    return mask.nonzero().squeeze(-1).tolist()


def test_the_end_is_allowed_exactly_where_the_grammar_accepts(compiler, tokenizer):
    matcher, end = compiler.matcher(GRAMMAR), tokenizer.eos_token_id
    for text, accepting in (("[", False), ("1", False), ("]", True)):
        assert not matcher.allowed()[end]
        feed(matcher, tokenizer, text)
        assert matcher.accepting == accepting
    assert matcher.done
    assert tokens_of(matcher.allowed()) == [end]


def test_every_token_that_ends_an_answer_may_end_this_one(tokenizer):
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_start|>")}
    vocabulary = len(tokenizer) + 5  # a model may have more embeddings than its tokenizer has tokens
    matcher = GrammarCompiler(tokenizer, vocabulary, ends).matcher(GRAMMAR)
    feed(matcher, tokenizer, "[1]")
    assert set(tokens_of(matcher.allowed())) == ends
    assert matcher.allowed().shape == (vocabulary,)


def test_matchers_of_one_grammar_know_nothing_of_each_other(compiler, tokenizer):
    one, other = compiler.matcher(GRAMMAR), compiler.matcher(GRAMMAR)
    at_first = tokens_of(other.allowed())
    feed(one, tokenizer, "[1]")
    assert tokens_of(other.allowed()) == at_first
    with pytest.raises(MatcherError):
        one.accept(tokenizer.encode("x")[0])
    feed(other, tokenizer, "[2, 1]")
    assert tokens_of(compiler.matcher(GRAMMAR).allowed()) == at_first


def test_masks_side_by_side_are_those_made_alone(compiler, tokenizer):
    texts = ["", "[", "[1", "[1, ", "[1, 2]"]
    matchers = [compiler.matcher(GRAMMAR) for _ in texts]
    for matcher, text in zip(matchers, texts, strict=True):
        feed(matcher, tokenizer, text)
    alone = [matcher.allowed() for matcher in matchers]
    broken = compiler.matcher(GRAMMAR)
    with pytest.raises(MatcherError):
        feed(broken, tokenizer, "x")
    together = allowed_next([*matchers[:2], broken, *matchers[2:]])
    assert isinstance(together.pop(2), MatcherError)
    assert all(torch.equal(mask, other) for mask, other in zip(together, alone, strict=True))
    assert allowed_next([]) == []


def test_a_grammar_is_compiled_once_as_long_as_it_is_kept(compiler, monkeypatch):
    compiled = []
    matcher = masks.LLMatcher

    def compiling(*arguments, **options):
        compiled.append(arguments[1])
        return matcher(*arguments, **options)

    monkeypatch.setattr(masks, "LLMatcher", compiling)
    monkeypatch.setattr(masks, "_COMPILED", 2)
    grammars = [json_grammar({"const": number}) for number in range(3)]
    for number in (0, 1, 0, 1, 2, 1, 0):
        compiler.matcher(grammars[number])
    assert [grammars.index(grammar) for grammar in compiled] == [0, 1, 2, 0]


def test_what_cannot_be_compiled_says_why_in_a_line(compiler, tokenizer):
    with pytest.raises(MatcherError, match=r"^[^\n]*Unimplemented keys[^\n]*not[^\n]*$"):
        compiler.matcher('%llguidance {}\nstart: %json {"not": {}}')
    with pytest.raises(MatcherError):
        compiler.matcher("start: nothing")
