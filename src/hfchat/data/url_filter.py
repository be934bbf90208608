"""Filter documents by where they come from."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from datatrove.data import Document
from datatrove.pipeline.filters import URLFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from hfchat.data.removal import Removal

if TYPE_CHECKING:
    from tldextract import TLDExtract


class UrlFilter(URLFilter):
    """Removes documents of blocked sites (FineWeb's, arXiv:2406.17557, section 3.2); one without a URL passes.

    The lists of domains and words (UT1's and RefinedWeb's) are in datatrove's wheel; nothing is downloaded.

    Args:
        use_integrated_lists: Whether these lists are used.
        extra_domains: Further domains that are blocked.
        extra_urls: Further pages that are blocked.
        banned_words: Words that may not stand in a URL between characters other than letters and digits.
        banned_subwords: Strings that may not stand in a URL.
        soft_banned_words: Words of which a URL must have fewer than `soft_word_threshold`.
    """

    def __init__(
        self,
        use_integrated_lists: bool = True,
        extra_domains: Sequence[str] = (),
        extra_urls: Sequence[str] = (),
        banned_words: Sequence[str] = (),
        banned_subwords: Sequence[str] = (),
        soft_banned_words: Sequence[str] = (),
        soft_word_threshold: int = 2,
        exclusion_writer: DiskWriter | None = None,
    ):
        super().__init__(
            soft_word_threshold=soft_word_threshold,
            extra_domains=extra_domains,
            extra_urls=extra_urls,
            banned_words=banned_words,
            banned_subwords=banned_subwords,
            soft_banned_words=soft_banned_words,
            use_integrated_lists=False,
            exclusion_writer=exclusion_writer,
        )
        self.with_integrated_lists = use_integrated_lists
        self.tldextractor = suffix_list()

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        url = doc.metadata.get("url")
        if not url:
            return True
        result = super().filter(doc)
        if result is True and self.with_integrated_lists:
            result = _integrated(self.soft_word_threshold).filter(doc)
        if isinstance(result, tuple):
            return Removal(result[1], detail=url).note(doc)
        return result


@functools.cache
def _integrated(soft_word_threshold: int) -> URLFilter:
    """The lists, 4.6 million domains, once per process: a filter of its own would read them for each task."""
    blocker = URLFilter(soft_word_threshold=soft_word_threshold)
    blocker.tldextractor = suffix_list()
    return blocker


@functools.cache
def suffix_list() -> "TLDExtract":
    """What finds the registered domain of a host, by the list in tldextract's wheel: nothing is fetched."""
    from tldextract import TLDExtract

    return TLDExtract(suffix_list_urls=(), cache_dir=None)
