"""The documentation builds strictly, is complete, asks no other host for anything, and quotes what the code says."""

import ast
import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from datasets import Dataset
from lxml import html

from hfchat.data.conversation_formats import convert, find_format
from hfchat.data.rows import Row
from hfchat.training.supervision import show_supervised, supervise
from tests.conftest import ROOT
from tests.test_readme import DOCUMENTS

PAGES = sorted((ROOT / "docs").rglob("*.md"))
QUOTE = re.compile(r"^> `(.*)`$", re.MULTILINE)  # how the pages quote a message; … stands for what differs


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The built pages."""
    pytest.importorskip("mkdocs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def test_it_builds_strictly_and_has_every_page(site):
    built = {page.relative_to(site).with_suffix("").as_posix() for page in site.rglob("*.html")}
    written = {page.relative_to(ROOT / "docs").with_suffix("").as_posix() for page in PAGES}
    assert built - {"404"} == written | {"reference/commands", "reference/recipes"}
    assert not list(site.rglob("*.py"))


def test_the_reference_comes_from_the_code(site):
    commands = (site / "reference/commands.html").read_text(encoding="utf-8")
    assert "--max-waiting-requests" in commands  # of `hfchat serve`
    assert "hfchat feedback export" in commands  # a command of a command
    recipes = html.fromstring((site / "reference/recipes.html").read_text(encoding="utf-8"))
    rows = {tuple(cell.text_content() for cell in row.iter("td")) for row in recipes.iter("tr")}
    assert ("depth", "4", "From scratch: number of layers. What is not set follows from it.") in rows
    assert (
        "adam_beta2",
        "0.95",
        "AdamW's second beta, as in GPT-3 (arXiv:2005.14165).",
    ) in rows  # a library's, with our default
    assert not any(row and row[0] == "adam_epsilon" for row in rows)  # a library's own
    core = (site / "reference/core.html").read_text(encoding="utf-8")
    assert 'id="hfchat.stage.Stage.finish"' in core


def test_built_pages_load_nothing_from_other_hosts(site):
    for page in site.rglob("*.html"):
        for element in html.fromstring(page.read_text(encoding="utf-8")).iter(
            "script", "link", "img", "iframe", "use"
        ):
            for address in (element.get("src"), element.get("href")):
                assert not urlsplit(address or "").netloc, f"{page.name}: {address}"
    for style in [*site.rglob("*.css"), *site.rglob("*.svg")]:
        assert not re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)]*", style.read_text(encoding="utf-8")), (
            style
        )


def test_results_are_those_that_were_measured(site):
    """The pages include the tables of `benchmarks/RESULTS.md`; no number is copied by hand."""
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    sections = {"align": "Preference tuning", "chat": "The demo's assistant", "translation": "Three tasks"}
    for page, title in sections.items():
        section = results.split(f"## {title}")[1].split("\n## ")[0]
        cells = {cell.strip() for row in re.findall(r"^\| (.*) \|$", section, re.MULTILINE) for cell in row.split("|")}
        shown = html.fromstring((site / f"recipes/{page}.html").read_text(encoding="utf-8"))
        found = {cell.text_content().strip() for cell in shown.iter("td", "th")}
        measured = {cell for cell in cells if re.match(r"[\d.]+%? \[", cell)}
        assert measured
        assert measured <= found
        titles = [title.text_content() for title in shown.iter("h2") if "202" in title.text_content()]
        assert len(titles) == 1, f"{page}: more than the section was included: {titles}"


def test_each_run_has_a_page():
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "recipes").glob("*.md"))
    for folder in (ROOT / "recipes" / "configs").iterdir():
        assert f"`recipes/configs/{folder.name}/`" in pages, (
            f"no page of docs/recipes has recipes/configs/{folder.name}/"
        )


@pytest.fixture(scope="module")
def messages() -> list[str]:
    """The texts in the code, with … for what is put into them."""
    found = []
    for file in [*(ROOT / "src").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if QUOTE.search(page.read_text(encoding="utf-8"))], ids=str)
def test_quoted_messages_are_those_of_the_code(page, messages):
    for quote in QUOTE.findall(page.read_text(encoding="utf-8")):
        pieces = [piece for piece in re.split("…+", quote) if len(piece.strip()) > 1]
        pattern = re.compile("[^\0]*?".join(map(re.escape, pieces)))
        assert any(pattern.search(message) for message in messages), f"{page.name}: {quote}"


@pytest.mark.parametrize("document", [*DOCUMENTS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_examples_of_data_and_settings_can_be_read(document):
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", document.read_text(encoding="utf-8"), re.M | re.S):
        if language == "jsonl":
            assert all(isinstance(json.loads(line), dict) for line in block.splitlines())
        elif language == "json":
            json.loads(block)
        elif language in ("yaml", "yml"):
            assert list(yaml.safe_load_all(block))
        elif language == "python":
            ast.parse(block)


@pytest.mark.parametrize("guide", ["finetuning", "alignment", "evaluation"])
def test_examples_of_conversations_are_taken(guide, tokenizer):
    text = (ROOT / "docs" / "guides" / f"{guide}.md").read_text(encoding="utf-8")
    rows = [json.loads(line) for block in re.findall(r"```jsonl\n(.*?)```", text, re.S) for line in block.splitlines()]
    assert rows
    prepared = []
    for row in rows:
        example = convert(find_format(row), Row(row, "the guide"))
        assert example.keys() <= {"messages", "prompt", "chosen", "rejected", "completion", "label", "tools"}
        example["tools"] = example.get("tools")
        prepared.append(example)
    if guide == "finetuning":  # what the page says is learned of a turn with reasoning and a call
        (marked,) = re.findall(r"^⟦.*?⟧$", text, re.S | re.M)
        dataset, _ = supervise(Dataset.from_list(prepared), tokenizer, 4096, "the guide")
        assert any(f"{marked}\n" in show_supervised(row, tokenizer) for row in dataset)


def test_paths_that_are_named_exist():
    folders = "recipes|src|tests|benchmarks|accelerate_configs|deploy|tokenizer|docs"
    for document in DOCUMENTS:
        for path in re.findall(rf"`((?:{folders})/[\w./-]*)`", document.read_text(encoding="utf-8")):
            assert (ROOT / path).exists(), f"{document.name}: {path}"
