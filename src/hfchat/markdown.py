"""The Markdown of a report, made from its HTML page, so that each fact is in one template.

What a page draws (`<figure>`, `<svg>`, any element with `data-drawn`) is left out, so the numbers behind it belong in
a table. The rest becomes what GitHub and the Hub show: headings, tables, lists, code, folded parts.
"""

import html
import re

from bs4 import BeautifulSoup
from bs4.element import Tag
from markdownify import MarkdownConverter

from hfchat.templates import code, escaped, fenced

# Not where a link could begin.
_INTERVAL = re.compile(r"\\\[([+−\d][+−\d., %]*)\\\](?![(:]|\\\[)")


def markdown_of(page: str) -> str:
    """A page of HTML as Markdown, in which no text of the page can act as markup."""
    soup = BeautifulSoup(page, "html.parser")
    for drawn in soup.select("head, figure, svg, [data-drawn]"):
        drawn.decompose()
    text = _Converter(heading_style="atx", bullets="-", newline_style="backslash").convert_soup(soup)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip() + "\n"


class _Converter(MarkdownConverter):
    """markdownify's rules, with ours for code, tables of numbers, pictures and folded parts."""

    def escape(self, text: str, parent_tags: set[str]) -> str:
        """An interval of numbers stays as it is: nothing in it can act as markup, and people read the file itself."""
        return _INTERVAL.sub(r"[\1]", escaped(text))

    def convert_a(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        """A link within the page has no target in Markdown."""
        if str(el.get("href")).startswith("#"):
            return text
        return super().convert_a(el, text, parent_tags)  # type: ignore[misc]  # its stub leaves out the converters

    def convert_pre(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        return f"\n\n{fenced(el.get_text(), str(el.get('data-language') or 'text'))}\n\n"

    def convert_code(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        return str(code(el.get_text(), in_table=bool({"td", "th"} & parent_tags)))

    def convert_small(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        return f"<br>{text.strip()}" if "td" in parent_tags else text

    def convert_img(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        """A picture that is in the page itself is also a file beside it, which `data-file` names."""
        return f"\n\n![{escaped(str(el['alt']))}]({el.get('data-file') or el['src']})\n\n"

    def convert_details(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        summary = el.find("summary")
        title = html.escape(" ".join(summary.get_text().split())) if summary else ""
        return f"\n\n<details><summary>{title}</summary>\n\n{text.strip()}\n\n</details>\n\n"

    def convert_summary(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        return ""

    def convert_tr(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        row: str = super().convert_tr(el, text, parent_tags)  # type: ignore[misc]
        # Columns of numbers have the class `n`, and are set to the right.
        marks = ["---:" if "n" in (cell.get("class") or ()) else "---" for cell in el.find_all("th")]
        return row.replace(f"| {' | '.join(['---'] * len(marks))} |", f"| {' | '.join(marks)} |") if marks else row
