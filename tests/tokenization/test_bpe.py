import itertools
import random
import sys

import pytest

from hfchat.errors import UserError
from hfchat.tokenization.bpe import SPLIT_PATTERNS, byte_level_splitter, resolve_trainer, train_bpe
from hfchat.tokenization.check import SAMPLES, unicode_blocks
from tests.conftest import SHARED_DATA, TEXTS

# Of equally frequent pairs: many, so that an order other than that of the byte values shows.
TIES = [f"{a}{b} {b}\u00e9{a}" for a, b in itertools.permutations("abc~!|\u00ff\u4e00\t", 2)]


def same_ids(texts, vocab_size, split_pattern):
    pytest.importorskip("rustbpe")
    first, second = (
        train_bpe(texts, vocab_size, split_pattern=split_pattern, trainer=trainer).backend_tokenizer.to_str()
        for trainer in ("tokenizers", "rustbpe")
    )
    return first == second


@pytest.mark.parametrize("split_pattern", list(SPLIT_PATTERNS))
def test_both_trainers_give_the_same_tokenizer(split_pattern):
    generator = random.Random(0)
    runs = ["".join(generator.choices("a= \n", k=30)) for _ in range(200)]
    for texts in (TIES, runs, [*TEXTS, *SAMPLES.values()]):
        assert same_ids(texts, 768, split_pattern)


@pytest.mark.parametrize("split_pattern", list(SPLIT_PATTERNS))
def test_both_trainers_give_the_same_tokenizer_of_real_text(split_pattern):
    if not SHARED_DATA.exists():
        pytest.skip("the shared data are not here")
    text = (SHARED_DATA / "pretrain" / "wikitext2-valid.txt").read_text(encoding="utf-8")
    assert same_ids(text.split("\n"), 4096, split_pattern)


@pytest.mark.parametrize("split_pattern", list(SPLIT_PATTERNS))
def test_both_trainers_split_at_every_character_alike(split_pattern):
    rustbpe = pytest.importorskip("rustbpe")
    characters = [c for name, text in unicode_blocks().items() for c in text if len(text) < 3000]
    texts = [f"x{c}1 {c}\n'{c}\n" for c in characters]
    trainer = rustbpe.Tokenizer()
    # Enough merges that every piece becomes one token: then an encoded text has as many tokens as pieces.
    trainer.train_from_iterator(iter(texts), 2_000_000, pattern=SPLIT_PATTERNS[split_pattern])
    splitter = byte_level_splitter(split_pattern)
    differ = [text for text in texts if len(trainer.encode(text)) != len(splitter.pre_tokenize_str(text))]
    assert not differ
    assert len(texts) > 20_000


@pytest.mark.parametrize("trainer", ["tokenizers", "auto"])
def test_long_runs_neither_take_hours_nor_break_the_regex(trainer):
    texts = ["a" + " " * 1_000_000 + "b", "ACGT" * 50_000]
    assert "ACGTACGT" in train_bpe(texts, 512, trainer=trainer).get_vocab()


def test_without_rustbpe_tokenizers_trains(monkeypatch):
    monkeypatch.setitem(sys.modules, "rustbpe", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert resolve_trainer("auto") == "tokenizers"
    with pytest.raises(UserError, match="pip install rustbpe"):
        resolve_trainer("rustbpe")
    assert "the" in train_bpe(["the the"], 512).get_vocab()


def test_what_a_text_raises_is_passed_on():
    class Refused:
        def __iter__(self):
            yield "a text"
            raise UserError("too much")

    for trainer in ("tokenizers", "auto"):
        with pytest.raises(UserError, match="too much"):
            train_bpe(Refused(), 512, trainer=trainer)


def test_the_patterns_differ_in_numbers_and_line_breaks():
    def pieces(pattern, text):
        return [piece for piece, _ in byte_level_splitter(pattern).pre_tokenize_str(text)]

    assert pieces("gpt2", "12345 it's;\n\n  x") == ["12345", "Ġit", "'s", ";", "ĊĊĠ", "Ġx"]
    assert pieces("gpt4", "12345 it'S;\n\n  x") == ["123", "45", "Ġit", "'S", ";ĊĊ", "Ġ", "Ġx"]
