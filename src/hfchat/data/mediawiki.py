"""Wikipedia and other MediaWiki sites: the pages of an XML dump, and the text of their markup."""

import re
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING

from hfchat.data.readers import EXCERPT_CHARACTERS, Record

if TYPE_CHECKING:
    from mwparserfromhell.nodes import Node, Wikilink
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
_NAMESPACED_LINK = re.compile(r"^\s*:?[\w -]+:\S")
_HEADING = re.compile(r"^(=+)\s*(.+?)\s*\1\s*$")


def parse_dump(stream: IO[bytes], max_bytes: int, namespaces: Sequence[int]) -> Iterator[Record | None]:
    """The pages of a dump, their markup as text. Redirects, and pages of other namespaces, are no documents.

    Args:
        stream: Open XML.
        max_bytes: Of a page's markup.
        namespaces: Numbers of MediaWiki's namespaces: 0 holds the articles, 1 their talk pages.
    """
    import mwxml

    dump = mwxml.Dump.from_file(stream)
    base = (dump.site_info.base or "").rsplit("/", 1)[0]
    for page in dump:
        revision = None
        for revision in page:  # of a full history, the last  # noqa: B007
            pass
        if page.redirect or page.namespace not in namespaces or revision is None or not revision.text:
            yield None
            continue
        title = page.title.replace(" ", "_")
        metadata = {"url": f"{base}/{title}" if base else "", "date": str(revision.timestamp), "title": page.title}
        if len(revision.text.encode()) > max_bytes:
            yield Record(revision.text[:EXCERPT_CHARACTERS], metadata, ("too_large", f"more than {max_bytes:,} bytes"))
        else:
            yield Record(f"= {page.title} =\n\n{revision.text}", metadata)


def wikitext_to_text(markup: str) -> str:
    """Readable text: paragraphs, lists and headings stay; templates, tables, references, files and categories go.

    Links become what they are shown as. Sections without text, such as "External links", are left out. A first line
    `= Title =` stays as the title.
    """
    import mwparserfromhell

    lines = _text(mwparserfromhell.parse(markup, skip_style_tags=True)).split("\n")
    return _sections([_clean_line(line) for line in lines])


def _text(code: "Wikicode") -> str:
    return "".join(map(_node_text, code.nodes))


def _node_text(node: "Node") -> str:
    from mwparserfromhell import nodes

    if isinstance(node, nodes.Text):
        return node.value
    if isinstance(node, nodes.Wikilink):
        return _link_text(node)
    if isinstance(node, nodes.ExternalLink):
        return _text(node.title) if node.title else ("" if node.brackets else str(node.url))
    if isinstance(node, nodes.HTMLEntity):
        return node.normalize()
    if isinstance(node, nodes.Heading):
        return f"\n{'=' * node.level} {_text(node.title).strip()} {'=' * node.level}\n"
    if isinstance(node, nodes.Tag):
        return _tag_text(node)
    return ""  # templates, comments, arguments of templates


def _link_text(link: "Wikilink") -> str:
    if _NAMESPACED_LINK.match(str(link.title)) and not str(link.title).lstrip().startswith(":"):
        # A file, a category, another language; but also "Star Trek: Voyager", which has a space after the colon.
        return ""
    return _text(link.text) if link.text is not None else str(link.title).strip().lstrip(":")


def _tag_text(tag: "Node") -> str:
    name = str(tag.tag).strip().lower()
    if name in _DROPPED_TAGS:
        return ""
    if name == "br":
        return "\n"
    if name == "li" and tag.wiki_markup:
        return "- "
    if name in ("dt", "dd") and tag.wiki_markup:
        return ""
    return _text(tag.contents) if tag.contents is not None else ""


_LEFTOVERS = [
    (re.compile(r"__[A-Z]+__"), ""),  # behaviour switches
    (re.compile(r"'{2,5}"), ""),  # italics and bold, which the parser was told to leave as they are
    (re.compile(r"\(\s*[,;:]?\s*\)|\[\s*\]"), ""),  # brackets that a template left empty
    (re.compile(r"\(\s*[,;:]\s*"), "("),
    (re.compile(r"[ \t\xa0]+"), " "),
    (re.compile(r" ([,.;:!?)])(?=\s|$)"), r"\1"),
]


_BROKEN_FILE = re.compile(r"\[\[(File|Image):|(thumb(nail)?|frame(d)?|left|right|center)\|")


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
            kept += [part for _, entry in headings for part in ("", entry, "")]
            headings = []
            kept.append(line)
        elif not dropped_below and kept and kept[-1]:
            kept.append("")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()
