"""Import a model of SentencePiece, so that it gives the same ids with `tokenizers` as with sentencepiece itself."""

import functools
import itertools
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges

from hfchat.errors import UserError
from hfchat.models import VOCABULARY_MULTIPLE
from hfchat.token_ids import encode_texts
from hfchat.tokenization.chat_tokenizer import as_chat_tokenizer
from hfchat.tokenization.check import SAMPLES
from hfchat.tokenization.sentencepiece import SPACE

# A noncharacter that keeps characters apart from each other; and what stands for some that are not to be changed:
# other noncharacters, then the last for private use.
_APART = "\ufdd1"
_PLANE_ENDS = sorted([*range(0xFFFE, 0x110000, 0x10000), *range(0xFFFF, 0x110000, 0x10000)])
_KEPT = "".join(map(chr, [*range(0xFDD2, 0xFDF0), *_PLANE_ENDS, *range(0x10FFC0, 0x10FFFE)]))

# Each is encoded otherwise by some import of some model.
COMPARED = SAMPLES | {
    "Vietnamese, decomposed": unicodedata.normalize("NFD", "Tiếng Việt, Trường Sơn"),
    "Korean in jamo": unicodedata.normalize("NFD", "한국어 각"),
    "half-width kana": "ｶﾞｷﾞ ﾊﾟﾋﾟ ﾐ",
    "full-width letters": "ＡＢＣ～１２３　ａ",
    "ligatures and fractions": "ﬁ ½ ① ㎏ ™ x²",
    "capitals with marks": "STRASSE straße A\u0308\u0301 İ ΑΣ",
    "a line break first": "\nfirst",
    "a tab first": "\tfirst\t",
    "spaces around": "  a  b  ",
    "spaces alone": "   ",
    "a no-break space first": "\u00a0a\u3000",
    "no text": "",
}
_PLACES = {
    "alone": "{0}", "between letters": "x{0}y", "first": "{0}x", "between words": "x {0} y", "last": "x {0}",
    "twice": " {0} {0}{0}",
}  # fmt: skip


def import_sentencepiece(file: str | Path, vocab_multiple: int = VOCABULARY_MULTIPLE) -> PreTrainedTokenizerFast:
    """A SentencePiece `.model` (Unigram or BPE) as a tokenizer with the project's special tokens after its pieces.

    It normalises as the model says, and so may lose text: see `hfchat.tokenization.check.lost_texts`. Its ids are
    compared with those of sentencepiece (`find_differences`), and texts for which they differ are named.

    Raises:
        UserError: If sentencepiece is not installed, if the file holds no such model, or if tokenizers cannot do what
            it does to a text: white space as a suffix, or a map of characters of its own.
    """
    proto = read_sentencepiece(file)
    spec, kinds = proto.trainer_spec, proto.SentencePiece.Type
    if spec.treat_whitespace_as_suffix:
        raise UserError(
            f"sentencepiece_model {file}: was trained with treat_whitespace_as_suffix, which tokenizers cannot do; "
            "train it without"
        )
    tokenizer = Tokenizer(_model(proto))
    symbols = [piece.piece for piece in proto.pieces if piece.type == kinds.USER_DEFINED]
    prefixed = proto.normalizer_spec.add_dummy_prefix
    tokenizer.normalizer = normalizers.Sequence(_normalizers(proto, symbols))
    if spec.model_type == spec.UNIGRAM and (split := _literal_pieces(proto)):
        (tokenizer.pre_tokenizer,) = split
    # Symbols are found once a text is normalised, as only the whole of it has a beginning and an end.
    tokenizer.add_tokens([AddedToken(symbol, normalized=True, special=False) for symbol in symbols])
    controls = [piece.piece for piece in proto.pieces if piece.type == kinds.CONTROL]
    tokenizer.add_tokens([AddedToken(control, normalized=False, special=True) for control in controls])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(content=" ", left=1, right=0)] if prefixed else []),
        ]
    )
    # Where the ids are not those of sentencepiece after all, the user is told.
    imported = as_chat_tokenizer(tokenizer, vocab_multiple)
    places = itertools.product(symbols, _PLACES.items())
    texts = COMPARED | {f"the symbol {symbol!r} {name}": text.format(symbol) for symbol, (name, text) in places}
    if different := find_differences(imported, proto.SerializeToString(), texts):
        more = f" and {len(different) - 5} more" if len(different) > 5 else ""
        print(
            f"warning: sentencepiece_model {file}: sentencepiece gives other ids for {len(different)} of {len(texts)} "
            f"texts: {', '.join(different[:5])}{more}",
            flush=True,
        )
    return imported


def _model(proto: Any) -> models.Model:
    spec, kinds = proto.trainer_spec, proto.SentencePiece.Type
    vocabulary = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    # Only normal pieces are found in a text; a score below all others keeps Unigram from the rest of them.
    floor = min((piece.score for piece in proto.pieces if piece.type == kinds.NORMAL), default=0.0) - 100
    scores = [(piece.piece, piece.score if piece.type == kinds.NORMAL else floor) for piece in proto.pieces]
    if spec.model_type == spec.UNIGRAM:
        return models.Unigram(scores, unk_id=spec.unk_id, byte_fallback=spec.byte_fallback)
    skipped = {piece.piece for piece in proto.pieces if piece.type != kinds.NORMAL}
    return models.BPE(
        vocab=vocabulary,
        merges=generate_merges(vocabulary, scores, skipped),
        unk_token=spec.unk_piece,
        fuse_unk=True,
        byte_fallback=spec.byte_fallback,
    )


def find_differences(tokenizer: PreTrainedTokenizerFast, model: bytes, texts: Mapping[str, str]) -> list[str]:
    """Names of the texts that `tokenizer` encodes otherwise than sentencepiece does with a model."""
    from sentencepiece import SentencePieceProcessor

    expected = SentencePieceProcessor(model_proto=model).encode(list(texts.values()))
    ids = encode_texts(tokenizer, list(texts.values()))
    return [name for name, ours, theirs in zip(texts, ids, expected, strict=True) if ours != theirs]


def _normalizers(proto: Any, symbols: Sequence[str]) -> list[normalizers.Normalizer]:
    """What sentencepiece does to a text before it looks for pieces (`normalizer.cc`), step by step.

    Args:
        proto: The model.
        symbols: Those of its user. One that is the whole text gets no space before it: the same normalizer is applied
            to the symbol, which is then looked for in texts.
    """
    spec = proto.normalizer_spec
    steps = _character_map(proto) if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:  # of spaces alone, and at the end also of what stands for one
        replaced = {r"\A +": "", " {2,}": " ", rf"[ {SPACE}]+\z": ""}
        steps += [normalizers.Replace(Regex(pattern), by) for pattern, by in replaced.items()]
    if spec.add_dummy_prefix and symbols:
        wholes = "|".join(map(re.escape, symbols))
        steps.append(normalizers.Replace(Regex(rf"\A(?=(?m:.))(?!(?:{wholes})\z)"), SPACE))
    elif spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return [*steps, normalizers.Replace(" ", SPACE)]


def _character_map(proto: Any) -> list[normalizers.Normalizer]:
    """The model's map of characters as sentencepiece applies it, if it is NFKC with rules for single characters.

    Such are all of sentencepiece's own. `Precompiled` of tokenizers is different: it maps a grapheme by the first
    character of it that has a rule, so marks are lost, and panics at a text that begins with a character that is taken
    away (tokenizers 0.23). 66 letters and digits beyond U+FFFF that tokenizers' tables do not have yet, as the digits
    of old computers at U+1FBF0, are left as they are.

    Raises:
        UserError: For another map.
    """
    from sentencepiece import SentencePieceNormalizer

    mapped = SentencePieceNormalizer(
        model_proto=proto.SerializeToString(),
        add_dummy_prefix=False,
        escape_whitespaces=False,
        remove_extra_whitespaces=False,
    ).normalize
    # Each character that the model maps otherwise than NFKC: those that it keeps from NFKC, and what it adds to it
    nfkc, kept, by_result = normalizers.NFKC(), list[tuple[str, str]](), defaultdict[str, list[str]](list)
    for character in _assigned():
        result, composed = mapped(character), unicodedata.normalize("NFKC", character)
        if composed != character and result != "".join(map(mapped, composed)):
            kept.append((character, result))  # nmt_nfkc keeps the full-width tilde, which is a dash in Japanese
        elif result == character or nfkc.normalize_str(character) != character:
            continue
        elif composed == character or character <= "\uffff":  # a step for each of the others would cost too much
            by_result[result].append(character)
    replacements, lowers = _replacements(by_result)
    if lowers:
        kept += [(c, c) for c in _assigned() if c.lower() != c == mapped(c)]
    if len(kept) > len(_KEPT):
        raise UserError(
            f"sentencepiece_model: its map of characters ({proto.normalizer_spec.name or 'without a name'}) is not "
            "one of sentencepiece's own forms of NFKC, and tokenizers cannot apply another; train the model with "
            "normalization_rule_name nmt_nfkc, nfkc, nmt_nfkc_cf, nfkc_cf or identity"
        )
    # NFKC between steps that hide what it must not change or join, and steps that add the rest
    marks = dict(zip(_KEPT, kept, strict=False))  # which stand for what is kept meanwhile
    return [
        *(normalizers.Replace(character, mark) for mark, (character, _) in marks.items()),
        normalizers.Replace(Regex(_uncomposed()), _APART),
        nfkc,
        normalizers.Replace(_APART, ""),
        *replacements,
        *(normalizers.Replace(mark, result) for mark, (_, result) in marks.items()),
    ]


def _replacements(by_result: Mapping[str, Sequence[str]]) -> tuple[list[normalizers.Normalizer], bool]:
    """One step per result, and one for all capitals that become their small letters; whether there is that one."""
    before, after, lowers = list[normalizers.Normalizer](), list[normalizers.Normalizer](), False
    for result, characters in by_result.items():
        others = [character for character in characters if character.lower() != result]
        lowers |= len(others) < len(characters)
        capitals = [character for character in others if character.lower() != character]
        small = [character for character in others if character.lower() == character]
        for steps, those in ((before, capitals), (after, small)):
            if those:
                steps.append(normalizers.Replace(Regex(_any_of(those)), result))
    return [*before, *([normalizers.Lowercase()] if lowers else []), *after], lowers


@functools.cache
def _uncomposed() -> str:
    """A pattern of the places in a text over which NFKC may compose or reorder, and sentencepiece does not.

    Its rules are the whole decomposition of each character, in canonical order: "e", dot below, circumflex is one
    letter, "ê" and dot below are two.
    """
    composed = [character for character in _assigned() if len(unicodedata.normalize("NFKD", character)) > 1]
    bases = defaultdict[tuple[str, str], list[str]](list)  # by the marks before the place, and the one after it
    for character in composed:
        whole = unicodedata.normalize("NFD", character)
        for place in range(1, len(whole)):
            if unicodedata.category(whole[place - 1])[0] == "M" and unicodedata.normalize("NFC", whole) == character:
                bases[whole[1:place], whole[place]].append(whole[0])
    rules = "|".join(f"(?<={_any_of(first)}{marks}){last}" for (marks, last), first in sorted(bases.items()))
    several = _any_of(composed)
    # Not at the beginning of a text: NFKC of tokenizers panics at what was put in there
    mark = r"[\p{M}\x{FF9E}\x{FF9F}]"
    return rf"(?<={several})|(?<=(?m:.))(?={several})|(?<={mark})(?={mark})(?!{rules})"


def _any_of(characters: Sequence[str]) -> str:
    """A class of characters, as ranges."""
    codes = sorted(map(ord, characters))
    starts = [code for before, code in zip([-2, *codes], codes, strict=False) if code != before + 1]
    ends = [code for code, after in zip(codes, [*codes[1:], -2], strict=True) if code + 1 != after]
    return "[" + "".join(rf"\x{{{start:X}}}-\x{{{end:X}}}" for start, end in zip(starts, ends, strict=True)) + "]"


@functools.cache
def _assigned() -> list[str]:
    characters = map(chr, range(sys.maxunicode + 1))
    return [character for character in characters if unicodedata.category(character) not in ("Cn", "Co", "Cs")]


def _literal_pieces(proto: Any) -> list[pre_tokenizers.PreTokenizer]:
    """Keeps Unigram from a piece that only stands for something, as <0x41> for a byte, where a text spells it.

    Its score is below all others, but a character that is no piece is worth still less, so such a one is set apart.
    """
    kinds = proto.SentencePiece.Type
    known = {piece.piece for piece in proto.pieces if piece.type == kinds.NORMAL}
    rest = defaultdict[tuple[str, str], list[str]](list)
    for piece in proto.pieces:
        if piece.type in (kinds.CONTROL, kinds.UNKNOWN, kinds.BYTE, kinds.UNUSED):
            unknown = next((place for place, character in enumerate(piece.piece) if character not in known), None)
            if unknown is not None:
                rest[piece.piece[:unknown], piece.piece[unknown]].append(re.escape(piece.piece[unknown + 1 :]))
    patterns = [
        (f"(?<={re.escape(before)})" if before else "") + f"{re.escape(character)}(?={'|'.join(after)})"
        for (before, character), after in rest.items()
    ]
    # The character stays with those before it: of several that are no pieces, sentencepiece makes one <unk>.
    return [pre_tokenizers.Split(Regex("|".join(patterns)), behavior="merged_with_previous")] if patterns else []


def read_sentencepiece(file: str | Path) -> Any:
    """Parse a `.model`.

    Raises:
        UserError: If sentencepiece is not installed, or the file holds no Unigram or BPE model.
    """
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise UserError(
            f"sentencepiece_model {file}: needs sentencepiece and protobuf; run `pip install 'hfchat[tokenization]'`"
        ) from error
    proto = vars(sentencepiece_model_pb2)["ModelProto"]()  # protobuf makes the class on import: no checker knows it
    try:
        proto.ParseFromString(Path(file).read_bytes())
    except OSError as error:
        raise UserError(f"sentencepiece_model {file}: {error.strerror or error}") from error
    except DecodeError as error:
        raise UserError(f"sentencepiece_model {file}: is not a SentencePiece model") from error
    spec = proto.trainer_spec
    if not proto.pieces or spec.model_type not in (spec.UNIGRAM, spec.BPE):
        raise UserError(f"sentencepiece_model {file}: holds no SentencePiece model of the type unigram or bpe")
    return proto
