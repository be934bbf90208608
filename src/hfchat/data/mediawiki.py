"""Wikipedia and other MediaWiki sites: the pages of an XML dump, and the text of their markup."""

import re
from collections import deque
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import IO, TYPE_CHECKING
from xml.parsers import expat

from hfchat.character_encodings import reader_of
from hfchat.data.readers import LazyRecord, Record, Skipped
from hfchat.data.rows import EXCERPT_CHARACTERS

if TYPE_CHECKING:
    from mwparserfromhell.nodes import Node, Tag, Wikilink
    from mwparserfromhell.wikicode import Wikicode

# Tags whose content is no running text.
_DROPPED_TAGS = {
    "ref", "references", "table", "gallery", "math", "chem", "timeline", "imagemap", "score", "syntaxhighlight",
    "source", "templatedata", "hiero", "graph", "mapframe", "maplink", "inputbox", "categorytree", "style", "script",
}  # fmt: skip
# Sections that hold lists of links rather than text.
_DROPPED_SECTIONS = {
    "references", "external links", "see also", "further reading", "notes", "footnotes", "bibliography", "sources",
    "citations", "notes and references", "references and notes", "gallery", "works cited",
}  # fmt: skip
_HEADING = re.compile(r"^(=+)\s*(.+?)\s*\1\s*$")
# Links to these namespaces show no text (https://www.mediawiki.org/wiki/Manual:Namespace): their numbers, and names
# that every wiki knows beside those in its language.
_MEDIA, _FILE, _CATEGORY = "-2", "6", "14"
_SHOW_NOTHING = frozenset({"file", "image", "media", "category"})
# The ending tells a file: wikis know more names for that namespace than the one that a dump tells.
_MEDIA_FILE = re.compile(
    r"\.(?:jpe?g|png|svg|gif|tiff?|webp|xcf|djvu|pdf|og[agv]|oga|web[am]|mid|mp[34]|mpe?g|wav|flac|opus|stl)\s*$",
    re.IGNORECASE,
)
# Prefixes of links to the same page in another language: those of Wikipedia's editions.
_LANGUAGES = frozenset(files(__package__).joinpath("wikipedia_languages.txt").read_text(encoding="utf-8").split())
# A comment before the markup of each page, with the names that its dump gives to those namespaces.
_NAMES_OF_DUMP = re.compile(r"<!--namespaces\|(.*?)-->")
_MAX_TAG_BYTES = 1 << 20
_MAX_DEPTH = 32


def parse_dump(stream: IO[bytes], max_bytes: int, *, namespaces: Sequence[int]) -> Iterator[LazyRecord]:
    """The pages of a dump, their markup as text. Redirects, and pages of other namespaces, are no documents.

    expat reads the XML, as it does for mwxml; that holds a page in memory before one can see how large it is.

    Args:
        stream: Open XML.
        max_bytes: Largest size of a page's markup.
        namespaces: Numbers of MediaWiki's namespaces: 0 holds the articles, 1 their talk pages.

    Raises:
        ValueError: For XML that is not well formed, or is no dump.
    """
    dump, read = _Dump(max_bytes), reader_of(stream)
    while chunk := read(1 << 16):
        dump.feed(chunk)
        while dump.pages:
            yield partial(_document, dump.pages.popleft(), dump, namespaces)
    dump.close()


@dataclass
class _Page:
    title: str = ""
    namespace: str = ""
    timestamp: str = ""
    model: str = ""
    text: str = ""
    is_redirect: bool = False
    is_too_large: bool = False


class _Dump:
    """Collects pages while a dump is fed to it, of each no more text than a document may have.

    Attributes:
        pages: Those that are complete; who takes them removes them. Of several revisions, a page has the last.
        base: Address of the site's main page.
        namespaces: Their names, by number.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.pages: deque[_Page] = deque()
        self.base, self.namespaces = "", dict[str, str]()
        self._path, self._page = list[str](), _Page()
        self._namespace = ""  # whose name is being read
        self._text, self._size = list[str](), 0
        self._fed = 0
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartElementHandler, self._parser.EndElementHandler = self._start, self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.StartDoctypeDeclHandler = self._doctype

    def feed(self, chunk: bytes) -> None:
        self._fed += len(chunk)
        self._parser.Parse(chunk, False)
        if self._fed - self._parser.CurrentByteIndex > _MAX_TAG_BYTES:
            raise ValueError(f"a tag has more than {_MAX_TAG_BYTES:,} bytes")

    def close(self) -> None:
        self._parser.Parse(b"", True)

    def _doctype(self, *_: object) -> None:
        raise ValueError("a dump has no document type")  # which could define entities

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if not self._path and name != "mediawiki":
            raise ValueError(f"this is no dump of MediaWiki: its first element is <{name[:100]}>")
        if len(self._path) == _MAX_DEPTH:
            raise ValueError(f"more than {_MAX_DEPTH} elements are nested")
        self._path.append(name)
        self._text, self._size = [], 0
        if name == "page":
            self._page = _Page()
        elif name == "redirect":
            self._page.is_redirect = True
        elif name == "namespace":
            self._namespace = attributes.get("key", "")

    def _characters(self, text: str) -> None:
        if self._size <= self.max_bytes:
            self._text.append(text)
            self._size += len(text.encode())

    def _end(self, name: str) -> None:
        text, path = "".join(self._text), self._path[-2:]
        self._path.pop()
        self._text = []
        if path == ["siteinfo", "base"]:
            self.base = text
        elif path == ["namespaces", "namespace"]:
            self.namespaces[self._namespace] = text
        elif path == ["page", "title"]:
            self._page.title = text
        elif path == ["page", "ns"]:
            self._page.namespace = text.strip()
        elif path == ["revision", "timestamp"]:
            self._page.timestamp = text
        elif path == ["revision", "model"]:
            self._page.model = text
        elif path == ["revision", "text"]:
            self._page.text, self._page.is_too_large = text, self._size > self.max_bytes
        elif name == "page":
            self.pages.append(self._page)
            self._page = _Page()


def _document(page: _Page, dump: _Dump, namespaces: Sequence[int]) -> Record | Skipped:
    by_name = {name: number for number, name in dump.namespaces.items() if name}
    namespace = page.namespace or by_name.get(page.title.split(":")[0], "0")
    if namespace not in map(str, namespaces):
        return Skipped("page of another namespace")
    if page.is_redirect or re.match(r"\s*#redirect\b", page.text, re.IGNORECASE):
        return Skipped("redirect")
    if page.model not in ("", "wikitext"):
        return Skipped("page that is no wikitext")
    if not page.text:
        return Skipped("page without text")
    base = dump.base.rsplit("/", 1)[0]
    url = f"{base}/{page.title.replace(' ', '_')}" if base else ""
    metadata = {"url": url, "date": page.timestamp, "title": page.title}
    if page.is_too_large:
        detail = f"more than {dump.max_bytes:,} bytes"
        return Record(page.text[:EXCERPT_CHARACTERS], metadata, ("too_large", detail))
    names = "|".join(dump.namespaces.get(number, "") for number in (_MEDIA, _FILE, _CATEGORY))
    return Record(f"<!--namespaces|{names}-->= {page.title} =\n\n{page.text}", metadata)


def wikitext_to_text(markup: str) -> str:
    """Readable text: paragraphs, lists and headings stay; templates, tables, references, files and categories go.

    Links become what they are shown as. Sections without text, such as "External links", are left out. A first line
    `= Title =` stays as the title.

    Args:
        markup: A page's text. `parse_dump` puts a comment with the wiki's names for files and categories before it.
    """
    import mwparserfromhell

    names = _SHOW_NOTHING
    if found := _NAMES_OF_DUMP.match(markup):
        names |= {_as_prefix(name) for name in found[1].split("|") if name}
        markup = markup[found.end() :]
    lines = _text(mwparserfromhell.parse(markup, skip_style_tags=True), names).split("\n")
    return _sections([_clean_line(line) for line in lines])


def _as_prefix(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()


def _text(code: "Wikicode", names: Set[str]) -> str:
    return "".join(_node_text(node, names) for node in code.nodes)


def _node_text(node: "Node", names: Set[str]) -> str:
    from mwparserfromhell import nodes

    if isinstance(node, nodes.Text):
        return node.value
    if isinstance(node, nodes.Wikilink):
        return _link_text(node, names)
    if isinstance(node, nodes.ExternalLink):
        return _text(node.title, names) if node.title else ("" if node.brackets else str(node.url))
    if isinstance(node, nodes.HTMLEntity):
        return node.normalize()
    if isinstance(node, nodes.Heading):
        return f"\n{'=' * node.level} {_text(node.title, names).strip()} {'=' * node.level}\n"
    if isinstance(node, nodes.Tag):
        return _tag_text(node, names)
    return ""  # templates, comments, arguments of templates


def _link_text(link: "Wikilink", names: Set[str]) -> str:
    title = str(link.title).strip()
    prefix, colon, rest = title.partition(":")
    if prefix and colon:  # `[[:Category:Ships]]` is shown
        prefix = _as_prefix(prefix)
        is_language = prefix in _LANGUAGES and not rest.startswith(" ")
        if prefix in names or is_language or _MEDIA_FILE.search(rest):
            return ""
    return _text(link.text, names) if link.text is not None else title.removeprefix(":")


def _tag_text(tag: "Tag", names: Set[str]) -> str:
    name = str(tag.tag).strip().lower()
    if name in _DROPPED_TAGS:
        return ""
    if name == "br":
        return "\n"
    if name == "li" and tag.wiki_markup:
        return "- "
    if name in ("dt", "dd") and tag.wiki_markup:
        return ""
    return _text(tag.contents, names) if tag.contents is not None else ""


_LEFTOVERS = [
    (re.compile(r"__[A-Z]+__"), ""),  # behaviour switches
    (re.compile(r"'{2,5}"), ""),  # italics and bold, which the parser was told to leave as they are
    (re.compile(r"\(\s*[,;:]?\s*\)|\[\s*\]"), ""),  # brackets that a template left empty
    (re.compile(r"\(\s*[,;:]\s*"), "("),
    (re.compile(r"[ \t\xa0]+"), " "),
    (re.compile(r" ([,.;:!?)])(?=\s|$)"), r"\1"),
]


_BROKEN_FILE = re.compile(
    r"\[\[(File|Image):|\[\[[^\[\]|:]{1,50}:[^\[\]|]{1,300}\.(jpe?g|png|svg|gif|webp)\b|(thumb(nail)?|frame(d)?|left|right|center)\|"
)


def _clean_line(line: str) -> str:
    line = re.sub(r"^[*#]+\s*", "- ", line)
    line = re.sub(r"^[:;]+\s*", "", line)
    for pattern, replacement in _LEFTOVERS:
        line = pattern.sub(replacement, line)
    # A file whose brackets do not match is left over as text.
    if line.strip() in ("-", "|", "|}", "}}") or _BROKEN_FILE.match(line):
        return ""
    return line.strip()


def _sections(lines: list[str]) -> str:
    """Join lines; leave out headings with nothing below them, and sections of links."""
    kept: list[str] = []
    headings: list[tuple[int, str]] = []  # that have had no text yet
    dropped_below = 0  # level of the heading whose section is being left out
    for line in lines:
        heading = _HEADING.match(line)
        if heading:
            level = len(heading[1])
            if dropped_below and level > dropped_below:
                continue
            dropped_below = level if heading[2].lower() in _DROPPED_SECTIONS else 0
            headings = [entry for entry in headings if entry[0] < level]
            if not dropped_below:
                headings.append((level, line))
        elif not dropped_below and line:
            for _, above in headings:
                kept += ["", above, ""]
            headings = []
            kept.append(line)
        elif not dropped_below and kept and kept[-1]:
            kept.append("")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()
