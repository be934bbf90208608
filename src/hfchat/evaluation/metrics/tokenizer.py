"""Words of a text in any script, for ROUGE and METEOR."""

import regex
from nltk.stem.porter import PorterStemmer

from hfchat.words import UNSPACED


class UnicodeTokenizer:
    """Lower-cased runs of letters, marks and digits; of scripts written without spaces, each character by itself.

    rouge-score's own tokenizer keeps only a-z and 0-9, so that identical Arabic or Chinese texts score 0. On English
    the two agree. A character takes its marks along: a vowel sign is not a word.

    Args:
        use_stemmer: Whether words of more than three ASCII letters are stemmed, as rouge-score does.
    """

    _WORD = r"[\p{L}\p{M}\p{N}]"
    _UNSPACED = f"[{UNSPACED}]"
    _TOKEN = regex.compile(rf"[{_UNSPACED}&&{_WORD}--\p{{M}}]\p{{M}}*|[{_WORD}--{_UNSPACED}]+", regex.V1)

    def __init__(self, use_stemmer: bool = False):
        self._stemmer = PorterStemmer() if use_stemmer else None

    def tokenize(self, text: str) -> list[str]:
        words = self._TOKEN.findall(text.lower())
        if self._stemmer is None:
            return words
        return [self._stemmer.stem(word) if len(word) > 3 and word.isascii() else word for word in words]
