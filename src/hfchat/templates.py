"""The Jinja templates that reports and cards are made of, and how numbers, paths and texts are shown in them."""

import math
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

    from hfchat.results import Difference

# Control characters, marks of direction (they can make text read otherwise than it is), halves of surrogate pairs.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# What Markdown would take for its own: anywhere, at either end of a word, and at the start of a line.
_MARKDOWN = re.compile(r"[\\`*|~\[\]$]|(?<![^\W_])_|_(?![^\W_])|^\s*[-+=#]")
_ABSOLUTE = re.compile(r"(?<![\w:/.])/[^\s'\"=,]+")  # a path, but no part of a URL or of a relative path
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")


def template_environment(package: str, **options: Any) -> "jinja2.Environment":
    """An environment in which a name that is not there is an error, with filters for numbers, sizes and paths.

    Args:
        package: The package whose folder `templates` has them.
        options: Further options of `jinja2.Environment`.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    filters: dict[str, Callable[..., Any]] = {
        "number": lambda value: f"{value:,}",
        "megabytes": megabytes,
        "place": place,
        "as_typed": as_typed,
        "shown_paths": shown_paths,
    }
    environment.filters |= filters
    return environment


def megabytes(size: float) -> str:
    """A number of bytes in MB, or in kB where that would be less than 0.05 MB."""
    return f"{size / 1e6:,.1f} MB" if size >= 50_000 else f"{size / 1e3:,.1f} kB"


def add_figures(environment: "jinja2.Environment") -> "jinja2.Environment":
    """Add the filters `figure`, `interval` and `change`, whose results need no escaping."""
    from markupsafe import Markup

    def as_markup(show: Callable[..., str]) -> Callable[..., Markup]:
        return lambda *arguments: Markup(show(*arguments))

    environment.filters |= {show.__name__: as_markup(show) for show in (figure, interval, change)}
    return environment


def figure(value: float, form: str) -> str:
    """A number by a format specification, or a dash for NaN and infinity."""
    return format(value, form).replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else "–"


def interval(ends: Sequence[float], form: str) -> str:
    """`"[0.35, 0.47]"`."""
    return f"[{', '.join(figure(end, form) for end in ends)}]"


def change(difference: "Difference", form: str) -> str:
    """A difference with its interval, `"+0.19 [+0.12, +0.26]"`. Differences of shares are in percentage points.

    Args:
        difference: The difference of two models in an evaluation.
        form: Format specification of the values that differ.
    """
    factor, unit = (100, " pp") if form.endswith("%") else (1, "")
    form = f"+{form.replace('%', 'f')}"
    ends = [factor * end for end in difference.interval]
    return f"{figure(factor * difference.difference, form)} {interval(ends, form)}{unit}"


def html_environment(package: str) -> "jinja2.Environment":
    """Templates in which every value is escaped for HTML, see `template_environment`."""
    from markupsafe import Markup

    def literal(value: Any) -> Any:
        # Markup is the output of a macro, in which each value has been through this already.
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    return template_environment(package, autoescape=True, finalize=literal)


def markdown_environment(package: str) -> "jinja2.Environment":
    """Templates in which every value is escaped for Markdown, within one line; `fenced` makes a block of a text."""
    from markupsafe import Markup

    def literal(value: Any) -> Markup:
        return value if isinstance(value, Markup) else Markup(escaped(str(value)))

    environment = template_environment(package, autoescape=True, finalize=literal)
    environment.filters |= {"fenced": fenced, "code": code}
    return environment


def escaped(text: str) -> str:
    """A text in one line in which nothing is markup of Markdown or HTML."""
    text = re.sub(r"\s+", " ", visible(text))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(lambda match: f"{match[0][:-1]}\\{match[0][-1]}", text)


def fenced(text: str, language: str = "text") -> Any:
    """A block of Markdown that shows a text letter by letter."""
    from markupsafe import Markup

    text = visible(text).rstrip("\n")
    fence = "`" * max(3, 1 + _longest_run(text))
    return Markup(f"{fence}{language}\n{text}\n{fence}")


def code(text: str, in_table: bool = False) -> Any:
    """Inline code of Markdown. Only within a table does its `|` need a backslash."""
    from markupsafe import Markup

    text = re.sub(r"\s+", " ", visible(text))
    text = text.replace("|", "\\|") if in_table else text
    fence = "`" * (1 + _longest_run(text))
    edge = " " if text.startswith("`") or text.endswith("`") else ""
    return Markup(f"{fence}{edge}{text}{edge}{fence}")


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def visible(text: str) -> str:
    """The text with what hides or reorders it made visible: control characters, marks of direction, surrogates."""
    return _HIDDEN.sub(_picture, text)


def _picture(match: re.Match) -> str:
    code = ord(match[0])
    if 0xD800 <= code <= 0xDFFF:
        return "\N{REPLACEMENT CHARACTER}"
    if code == 0x7F:
        return "\N{SYMBOL FOR DELETE}"
    return chr(0x2400 + code) if code < 0x20 else f"[U+{code:04X}]"


def place(path: str) -> str:
    """A path or URL as it may be shown to others: nothing of the machine or the user in it.

    Below the working directory it is relative; elsewhere only its end is left.
    """
    if "://" in path:
        return _USER_IN_URL.sub("", path)
    if not Path(path).is_absolute():
        return path
    if Path(path).is_relative_to(Path.cwd()):
        return Path(path).relative_to(Path.cwd()).as_posix()
    names = Path(path).parts[1:]
    return "/".join(["…", *names[-2 if len(names) > 3 else -1 :]])  # the third may be a user's: /home/jane/model


def as_typed(command: Sequence[str]) -> str:
    """The command line of a stage, as its lineage has it, for others to type."""
    return shown_paths(shlex.join(["python", f"recipes/{command[0]}", *command[1:]]))


def shown_paths(text: str) -> str:
    """A command or a sentence in which each path is as `place` shows it."""
    return _ABSOLUTE.sub(lambda path: place(path[0]), text)
