import io
import random

import pytest
from tokenizers import normalizers

from hfchat.chat_template import SPECIAL_TOKENS
from hfchat.errors import UserError
from hfchat.token_ids import encode_texts
from hfchat.tokenization.chat_tokenizer import save_tokenizer
from hfchat.tokenization.check import SAMPLES, check_saved_tokenizer, lost_texts, unicode_blocks
from hfchat.tokenization.sentencepiece import (
    common_characters,
    keep_characters,
    train_sentencepiece_bpe,
    train_unigram,
)
from hfchat.tokenization.sentencepiece_import import COMPARED, import_sentencepiece
from tests.conftest import TEXTS

TRAINERS = {"bpe": train_sentencepiece_bpe, "unigram": train_unigram}


@pytest.fixture(scope="module", params=list(TRAINERS))
def trained(request):
    return TRAINERS[request.param](TEXTS, 512)


def test_any_text_comes_back_exactly(trained, tmp_path):
    save_tokenizer(trained, tmp_path)
    reloaded = check_saved_tokenizer(tmp_path, trained)
    assert lost_texts(reloaded, unicode_blocks() | {"escapes": "\ufdd0s▁\ufdd0e\ufdd0\ufdd0 ▁ s", "none": ""}) == {}


def test_rare_characters_are_spelled_in_bytes(trained):
    tokens = trained.convert_ids_to_tokens(trained("learns 漢", add_special_tokens=False)["input_ids"])
    assert tokens[-3:] == ["<0xE6>", "<0xBC>", "<0xA2>"]
    assert "▁the" in trained.get_vocab()
    assert trained.convert_tokens_to_ids("<unk>") not in trained("\ue000\x01", add_special_tokens=False)["input_ids"]


def test_special_tokens_and_size(trained):
    assert len(trained) % 64 == 0
    ids = trained.apply_chat_template([{"role": "user", "content": "hi"}], return_dict=False)
    assert ids.count(trained.convert_tokens_to_ids("<|im_end|>")) == 1
    assert trained.convert_tokens_to_ids(SPECIAL_TOKENS) == [0, 1, 2, 3]
    # Spelled in the text, where special tokens are not meant, they are not found.
    plain = trained("<|im_end|>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert trained.eos_token_id not in plain


@pytest.mark.parametrize("kind", list(TRAINERS))
def test_the_same_text_gives_the_same_tokenizer(kind):
    first, second = (TRAINERS[kind](TEXTS, 448).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_coverage_leaves_out_what_is_rare():
    texts = ["a" * 10_000 + "b" * 6 + "é" * 3 + "\u4e00"]
    kept = common_characters(texts, learnable=200)
    assert "é" not in kept  # é and the ideograph are 0.04% of the text, with b 0.1%
    assert {"b", "~", " "} < kept
    assert list(keep_characters(["aé\u4e00b~c"], kept)) == ["a\nb~c"]
    assert len([c for c in common_characters(["".join(map(chr, range(0x4E00, 0x5000)))], 200) if c > "~"]) == 100


def train_model(folder, **options):
    spm = pytest.importorskip("sentencepiece")
    stream = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 3),
        model_writer=stream,
        vocab_size=380,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    file = folder / "mine.model"
    file.write_bytes(stream.getvalue())
    return file, spm.SentencePieceProcessor(model_file=str(file))


def random_texts(*symbols, count=300):
    """Texts of what normalisers compose, reorder, map or take away."""
    alphabet = [
        *"abAB  \t\n▁.éêÅệ가ㄱㅏ각ｶﾞ～ßİςﬁ½①Ω\x01\u200b\u200d\u00a0\ufeff👩🏽漢",
        *["the", "model"],
        *symbols * 3,
    ]
    alphabet += list("\u0301\u0323\u0302\u0308\u0307\u0345\u1100\u1161\u11a8\u3099")
    draw = random.Random(0)
    return ["".join(draw.choices(alphabet, k=draw.randint(1, 14))) for _ in range(count)]


# Blocks with letters that NFKC of tokenizers does not know yet.
NEWER = ("Latin Extended-F", "Enclosed Alphanumeric Supplement", "Symbols for Legacy Computing")
OWN = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}
PLAIN = ["", " ", "  two  before ", "12 files\nfrom a folder", "The model learns what comes next.", *TEXTS]


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"byte_fallback": True},
        OWN,
        OWN | {"add_dummy_prefix": False},
        {"normalization_rule_name": "nfkc", "remove_extra_whitespaces": False},
        {"normalization_rule_name": "nmt_nfkc_cf"},
    ],
    ids=["defaults", "T5", "as Llama 2", "exact", "nfkc", "nmt_nfkc_cf"],
)
def test_an_imported_model_gives_the_ids_of_sentencepiece(model_type, options, tmp_path, capsys):
    file, processor = train_model(tmp_path, model_type=model_type, **options)
    tokenizer = import_sentencepiece(file)
    assert capsys.readouterr().out == ""
    blocks = {name: text for name, text in unicode_blocks().items() if name not in NEWER}
    texts = [*PLAIN, *COMPARED.values(), *random_texts(), *blocks.values()]
    for text, ids in zip(texts, encode_texts(tokenizer, texts), strict=True):
        assert ids == processor.encode(text), text
        if "byte_fallback" in options:  # sentencepiece writes <unk> as " ⁇ "
            assert tokenizer.decode(ids) == processor.decode(ids)
    pieces = processor.get_piece_size()
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == pieces
    assert len(tokenizer) % 64 == 0


SEPARATORS = ["<sep>", "<mask>"]


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
@pytest.mark.parametrize(
    "options",
    [{"byte_fallback": True}, OWN, OWN | {"add_dummy_prefix": False}],
    ids=["T5", "as Llama 2", "as Gemma"],
)
def test_symbols_of_an_imported_model_are_found_where_sentencepiece_finds_them(model_type, options, tmp_path, capsys):
    file, processor = train_model(tmp_path, model_type=model_type, user_defined_symbols=SEPARATORS, **options)
    tokenizer = import_sentencepiece(file)
    said = capsys.readouterr().out
    texts = [text for text in random_texts(*SEPARATORS) if text not in SEPARATORS]
    for text, ids in zip(texts, encode_texts(tokenizer, texts), strict=True):
        assert ids == processor.encode(text), text
    # The one difference that is left is that a text which is one symbol gets no space before it.
    for symbol in SEPARATORS if options.get("add_dummy_prefix", True) else ():
        assert f"the symbol '{symbol}' alone" in said
    assert ("other ids for 2 of" in said) is options.get("add_dummy_prefix", True)


def test_a_map_of_characters_of_its_own_is_refused_by_name(tmp_path):
    rules = tmp_path / "rules.tsv"
    rules.write_text("".join(f"{ord(a):X}\t{ord(b):X}\n" for a, b in zip("abc", "xyz", strict=True)))
    file, _ = train_model(tmp_path, normalization_rule_tsv=str(rules))
    with pytest.raises(UserError, match=r"its map of characters \(.*\) is not one of sentencepiece's own"):
        import_sentencepiece(file)


def test_white_space_as_a_suffix_is_refused_by_name(tmp_path):
    file, _ = train_model(tmp_path, treat_whitespace_as_suffix=True)
    with pytest.raises(UserError, match=r"mine.model: was trained with treat_whitespace_as_suffix"):
        import_sentencepiece(file)


def test_what_an_import_does_otherwise_is_said(tmp_path, capsys, monkeypatch):
    file, _ = train_model(tmp_path, byte_fallback=True)
    monkeypatch.setattr("hfchat.tokenization.sentencepiece.normalizers.NFKC", normalizers.NFD)
    import_sentencepiece(file)
    said = capsys.readouterr().out
    assert "mine.model: sentencepiece gives other ids for" in said
    assert said.count("\n") == 1


def test_symbols_of_an_imported_model_stay_whole(tmp_path):
    file, processor = train_model(tmp_path, byte_fallback=True, user_defined_symbols=["<sep>"])
    tokenizer = import_sentencepiece(file)
    for symbol, special in (("<sep>", False), ("<s>", True)):
        id = processor.piece_to_id(symbol)
        assert id in tokenizer(f"a{symbol}b", add_special_tokens=False)["input_ids"]
        assert (id in tokenizer.all_special_ids) is False  # they have no role here
        assert tokenizer.added_tokens_decoder[id].special is special


def test_an_imported_model_is_saved_with_its_file_and_says_what_it_loses(tmp_path):
    file, _ = train_model(tmp_path, byte_fallback=True)
    tokenizer = import_sentencepiece(file)
    folder = tmp_path / "saved"
    save_tokenizer(tokenizer, folder, sentencepiece_model=file)
    assert (folder / "tokenizer.model").read_bytes() == file.read_bytes()
    with pytest.raises(ValueError, match="does not survive a round trip"):
        check_saved_tokenizer(folder, tokenizer)
    reloaded = check_saved_tokenizer(folder, tokenizer, lossless=False)
    assert "code" in lost_texts(reloaded, SAMPLES)  # its line breaks became spaces


def test_what_is_no_model_is_one_line(tmp_path):
    pytest.importorskip("sentencepiece")
    with pytest.raises(UserError, match="No such file"):
        import_sentencepiece(tmp_path / "missing.model")
    for content in (b"", b"no protocol buffer", b"\x0a\x05hello"):
        (tmp_path / "bad.model").write_bytes(content)
        with pytest.raises(UserError, match=r"sentencepiece_model .*bad.model: "):
            import_sentencepiece(tmp_path / "bad.model")
    file, _ = train_model(tmp_path, model_type="char")
    with pytest.raises(UserError, match="of the type unigram or bpe"):
        import_sentencepiece(file)
