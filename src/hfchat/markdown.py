"""The Markdown of a report, made from its HTML page, so that each fact is in one template.

What a page draws (`<figure>`, `<svg>`) is left out, so the numbers behind it belong into a table. Cells, headings,
lists, code and folded parts become what GitHub and the Hub show for them.
"""

import html
import re
from typing import TYPE_CHECKING

from markdownify import MarkdownConverter

from hfchat.templates import code, escaped, fenced

if TYPE_CHECKING:
    from bs4.element import Tag


def markdown_of(page: str) -> str:
    """A page of HTML as Markdown, in which no text of the page can act as markup."""
    text = _Converter(heading_style="atx", bullets="-").convert(page)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip() + "\n"


class _Converter(MarkdownConverter):
    """markdownify's rules, with ours for code, tables of numbers, folded parts, and what cannot be shown."""

    def escape(self, text: str, parent_tags: set[str]) -> str:
        return escaped(text)

    def convert_head(self, el: "Tag", text: str, parent_tags: set[str]) -> str:
        return ""

    convert_figure = convert_svg = convert_head

    def convert_pre(self, el: "Tag", text: str, parent_tags: set[str]) -> str:
        return f"\n\n{fenced(el.get_text(), str(el.get('lang') or 'text'))}\n\n"

    def convert_code(self, el: "Tag", text: str, parent_tags: set[str]) -> str:
        return str(code(el.get_text(), in_table=bool({"td", "th"} & parent_tags)))

    def convert_small(self, el: "Tag", text: str, parent_tags: set[str]) -> str:
        return f"<br>{text.strip()}" if "td" in parent_tags else text

    def convert_img(self, el: "Tag", text: str, parent_tags: set[str]) -> str:
        """A picture that is in the page itself is also a file beside it, which `data-file` names."""
        return f"\n\n![{escaped(str(el['alt']))}]({el.get('data-file') or el['src']})\n\n"

    def convert_details(self, el: "Tag", text: str, parent_tags: set[str]) -> str:
        summary = el.find("summary")
        title = html.escape(" ".join(summary.get_text().split())) if summary else ""
        return f"\n\n<details><summary>{title}</summary>\n\n{text.strip()}\n\n</details>\n\n"

    def convert_summary(self, el: "Tag", text: str, parent_tags: set[str]) -> str:
        return ""

    def convert_tr(self, el: "Tag", text: str, parent_tags: set[str]) -> str:
        row: str = super().convert_tr(el, text, parent_tags)
        # Columns of numbers have the class `n`, and are set to the right.
        marks = ["---:" if "n" in (cell.get("class") or ()) else "---" for cell in el.find_all("th")]
        return row.replace(f"| {' | '.join(['---'] * len(marks))} |", f"| {' | '.join(marks)} |") if marks else row
