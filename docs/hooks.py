"""What MkDocs does for this site beyond Markdown: the reference of command lines, made from the code, and links.

MkDocs calls the functions named `on_...` (https://www.mkdocs.org/user-guide/configuration/#hooks).
"""

import argparse
import dataclasses
import functools
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
_WIDTH = 100  # of the commands' help, in characters
_LINK = re.compile(r"(!?)\[([^\]]+)\]\(([^)\s]+)\)")
_INCLUDE = re.compile(r"<!-- include (\S+?)(?:: (.+))? -->")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what the reference says of command lines."""
    for name, text in {"commands": commands_page(), "recipes": recipes_page()}.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in what is said elsewhere in the repository, and turn links out of `docs` into what they can be on the site.

    `<!-- include FILE -->` is a file, `<!-- include FILE: HEADING -->` its section whose heading begins so.
    """
    folder = PurePosixPath("docs", page.file.src_uri).parent

    def included(directive: re.Match) -> str:
        file, heading = directive.groups()
        text = (ROOT / file).read_text(encoding="utf-8")
        text = (
            section(text, heading, file) if heading else text.partition("---\n\n")[2] if text[:4] == "---\n" else text
        )
        return _outside_of_code(text, _LINK, lambda link: _moved(link, PurePosixPath(file).parent, folder))

    markdown = _INCLUDE.sub(included, markdown)
    return _outside_of_code(markdown, _LINK, lambda link: _of_the_site(link, folder, config.repo_url))


def section(text: str, heading: str, file: str) -> str:
    """A heading of a Markdown text that begins so, and what is below it up to the next heading.

    Raises:
        PluginError: If no heading begins so.
    """
    lines, is_code, found = [], False, False
    for line in text.splitlines():
        is_code ^= line.startswith("```")
        if not is_code and re.match(r"#+ ", line):
            if found:
                break
            found = line.lstrip("# ").startswith(heading)
        if found:
            lines.append(line)
    if not found:
        raise PluginError(f"{file} has no section '{heading}'")
    return "\n".join(lines)


def _outside_of_code(markdown: str, pattern: re.Pattern, replace: Callable[[re.Match], str]) -> str:
    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else pattern.sub(replace, part) for part in parts)


def _moved(link: re.Match, of: PurePosixPath, to: PurePosixPath) -> str:
    """A link of a file in one folder, as a file in another would write it."""
    picture, text, target = link.groups()
    return link[0] if _is_elsewhere(target) else f"{picture}[{text}]({os.path.relpath(of / target, to)})"


def _of_the_site(link: re.Match, folder: PurePosixPath, repository: str | None) -> str:
    """A link to a file that is no page, as one to the repository's host, or if that is not known, as its text."""
    _, text, target = link.groups()
    path = os.path.normpath(folder / target.partition("#")[0])
    if _is_elsewhere(target) or path.startswith("docs/") or not (ROOT / path).exists():
        return link[0]  # if it leads nowhere, a strict build says so
    return f"[{text}]({repository.rstrip('/')}/blob/main/{path})" if repository else text


def _is_elsewhere(target: str) -> bool:
    return re.match(r"[a-z]+:|#", target) is not None


def commands_page() -> str:
    """The help of `hfchat` and of each of its commands."""
    from hfchat.cli import _parser, serve_parser

    # The parser of `serve` is made only when it runs, because it takes a while to import.
    parsers = [serve_parser() if parser.prog == "hfchat serve" else parser for parser in _with_subparsers(_parser())]
    for parser in parsers:
        parser.formatter_class = functools.partial(argparse.HelpFormatter, width=_WIDTH)
    sections = [f"## {parser.prog}\n\n```text\n{parser.format_help().rstrip()}\n```" for parser in parsers]
    return "\n\n".join(["# The command `hfchat`", "As `hfchat COMMAND --help` prints it.", *sections]) + "\n"


def _with_subparsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from _with_subparsers(subparser)


def recipes_page() -> str:
    """The arguments of each recipe that hfchat defines, or whose default it sets."""
    sys.path.insert(0, str(ROOT))
    try:
        recipes = [importlib.import_module(f"recipes.{file.stem}") for file in sorted(ROOT.glob("recipes/*.py"))]
    finally:
        sys.path.remove(str(ROOT))
    sections = [
        "# Arguments of the recipes",
        "Each is a key of the YAML that `--config` names, and an option of the command line, which wins. The training "
        "recipes also take all of the library's arguments that they build on: "
        "[`TrainingArguments`](https://huggingface.co/docs/transformers/main_classes/trainer) (`pretrain.py`), "
        "TRL's [`SFTConfig`](https://huggingface.co/docs/trl/sft_trainer) (`finetune.py`) and "
        "[`DPOConfig`](https://huggingface.co/docs/trl/dpo_trainer) (`align.py`). Here are those that "
        "hfchat adds, and those whose default it changes.",
    ]
    for recipe in recipes:
        name = recipe.__name__.removeprefix("recipes.")
        sections += [f"## recipes/{name}.py", recipe.__doc__.partition("\n\n")[0].strip()]
        rows = ["| argument | default | |", "| --- | --- | --- |"]
        for arguments in _argument_classes(recipe):
            for field in _own_fields(arguments):
                help = field.metadata.get("help", "").replace("%%", "%").replace("|", "\\|")
                rows.append(f"| `{field.name}` | {_default(field)} | {help} |")
        sections.append("\n".join(rows))
    return "\n\n".join(sections) + "\n"


def _argument_classes(recipe: Any) -> list[type]:
    """The dataclasses that a recipe parses."""
    return [
        value
        for name, value in vars(recipe).items()
        if dataclasses.is_dataclass(value) and name.endswith("Arguments") and name != "StageArguments"
    ]


def _own_fields(arguments: type) -> list[dataclasses.Field]:
    """The fields that hfchat says something of, and not only a library."""
    own = {
        name
        for kind in arguments.__mro__
        if kind.__module__.startswith(("hfchat.", "recipes."))
        for name in inspect.get_annotations(kind)
    }
    return [field for field in dataclasses.fields(arguments) if field.name in own]


def _default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    elif field.default is dataclasses.MISSING:
        return "needed"
    else:
        value = field.default
    if field.name == "workers":  # not those of the machine that builds this page
        return "the number of cores"
    if value is None or value == []:
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
