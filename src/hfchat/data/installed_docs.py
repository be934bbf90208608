"""The documentation of the installed Python packages: real text that every machine has, with its licences."""

import ast
import hashlib
import re
import warnings
from collections.abc import Iterator
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import cast

from datatrove.data import DocumentsPipeline
from datatrove.pipeline.readers.base import BaseReader

from hfchat.lineage import Input

_DOC_SUFFIXES = {".md", ".rst"}
_SKIPPED_FOLDERS = {"tests", "test", "testing", "_vendor", "vendored", "__pycache__"}
_LICENSE_CLASSIFIER = "License :: OSI Approved :: "


class InstalledDocsReader(BaseReader):
    """Reads a document per module (its docstrings) and per README or package description.

    The packages are dealt out to the tasks round-robin in the order of their names.

    Args:
        max_bytes_per_package: UTF-8 bytes of text after which the rest of a package is left out, so that a few very
            large packages do not make up most of the corpus.
    """

    name = "📦 Installed documentation"

    def __init__(self, max_bytes_per_package: int):
        super().__init__()
        self.max_bytes_per_package = max_bytes_per_package

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        if data:
            yield from data
        for distribution in installed_distributions()[rank::world_size]:
            budget = self.max_bytes_per_package
            name = _about(distribution)["Name"]
            provenance = {
                "source": f"pkg:pypi/{name}@{distribution.version}",  # a package URL, ECMA-427
                "license": license_of(distribution),
                "url": _homepage(distribution),
            }
            for path, text in _documents(distribution):
                document = self.get_document_from_dict({"text": text, "metadata": provenance.copy()}, name, path)
                if document is None:
                    continue
                yield document
                budget -= len(text.encode("utf-8", errors="replace"))
                if budget <= 0:
                    break


def installed_distributions() -> list[metadata.Distribution]:
    """The installed packages, each once, in the order of their names."""
    found = {distribution.metadata["Name"]: distribution for distribution in metadata.distributions()}
    return [found[name] for name in sorted(name for name in found if name)]


def describe_installation() -> Input:
    """The installed packages as an input of a stage: identified by their names and versions."""
    packages = installed_distributions()
    names = [f"{package.metadata['Name']}=={package.version}" for package in packages]
    return {
        "path": "installed-docs",
        "sha256": hashlib.sha256("\n".join(names).encode()).hexdigest(),
        "licenses": sorted({license_of(package) for package in packages}),
    }


def license_of(distribution: metadata.Distribution) -> str:
    """The licence that a package's metadata states: its SPDX expression, classifier or short text, or "unknown"."""
    about = _about(distribution)
    if expression := about.get("License-Expression"):
        return expression
    for classifier in about.get_all("Classifier") or []:
        if classifier.startswith(_LICENSE_CLASSIFIER):
            return classifier.removeprefix(_LICENSE_CLASSIFIER)
    stated = (about.get("License") or "").strip()
    return stated if stated and len(stated) < 100 and "\n" not in stated else "unknown"


def _about(distribution: metadata.Distribution) -> Message:
    return cast(Message, distribution.metadata)  # which it is; Python declares fewer methods of it


def _homepage(distribution: metadata.Distribution) -> str:
    entries = _about(distribution).get_all("Project-URL") or []
    urls = dict(entry.split(", ", 1) for entry in entries if ", " in entry)
    urls = {label.lower(): url for label, url in urls.items()}
    known = ("homepage", "home", "documentation", "repository", "source", "source code")
    return _about(distribution).get("Home-page") or next((urls[label] for label in known if label in urls), "")


def _documents(distribution: metadata.Distribution) -> Iterator[tuple[str, str]]:
    """Yields (path in the package, text)."""
    about = _about(distribution)
    description = about.get("Description") or about.get_payload()
    if description and isinstance(description, str):
        yield "METADATA", description
    for file in sorted(distribution.files or [], key=str):
        if file.suffix not in {".py", *_DOC_SUFFIXES} or _SKIPPED_FOLDERS & set(file.parts[:-1]):
            continue
        try:
            content = Path(file.locate()).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        text = content if file.suffix in _DOC_SUFFIXES else module_documentation(content, _module_name(file.parts))
        if text:
            yield str(file), text


def module_documentation(code: str, module: str) -> str:
    """The docstrings of a module, its classes and functions, each under its signature; empty if it has none."""
    if '"""' not in code and "'''" not in code:
        return ""
    try:
        with warnings.catch_warnings():  # invalid escapes in other people's code
            warnings.simplefilter("ignore")
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError):
        return ""
    parts = [f"# {module}", ast.get_docstring(tree) or ""]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                parts += [_signature(node), docstring]
    return "\n\n".join(part for part in parts if part) if any(parts[1:]) else ""


def _signature(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"def {node.name}({ast.unparse(node.args)}){returns}"


def _module_name(parts: tuple[str, ...]) -> str:
    return re.sub(r"(\.__init__)?\.py$", "", ".".join(parts))
