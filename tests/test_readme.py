"""Every command of the documentation is one that its program takes, and every link leads somewhere.

What else is to be said of the pages of docs/ is in tests/docs.
"""

import re
import shlex

import pytest
from accelerate.commands.launch import launch_command_parser

from hfchat.cli import _parser, serve_parser
from hfchat.config import parse
from recipes.data import tool_conversations
from tests.conftest import ROOT
from tests.recipes.test_configs import config_classes, names_absent_data

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "tokenizer" / "README.md",
    *sorted((ROOT / "recipes").rglob("README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
RECIPE_DOCSTRINGS = sorted((ROOT / "recipes").glob("*.py"))


def commands(text: str) -> list[str]:
    text = text.replace("\\\n", " ")
    return [line.split("  #")[0].strip().removeprefix("$ ") for line in text.splitlines() if line.strip()]


def documented() -> list[str]:
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```bash\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL):
            found += commands(block)
    for recipe in RECIPE_DOCSTRINGS:
        docstring = recipe.read_text(encoding="utf-8").split('"""')[1]
        indented = "\n".join(line for line in docstring.splitlines() if line.startswith("    "))
        found += [line for line in commands(indented) if line.startswith(("python", "accelerate"))]
    return sorted(set(found))


@pytest.mark.parametrize("command", documented())
def test_a_documented_command_is_taken_by_its_program(command, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    if "recipes/configs/tools/" in command:  # its sources are what a program writes
        monkeypatch.chdir(tmp_path)
        (tmp_path / "recipes").symlink_to(ROOT / "recipes")
        monkeypatch.setattr("sys.argv", ["program", "--output-dir", "outputs/tools/written"])
        tool_conversations.main()
    words = shlex.split(command)
    while re.match(r"[A-Z_]+=", words[0]):  # the environment of the command
        words.pop(0)
    recipe = next((i for i, word in enumerate(words) if re.fullmatch(r"recipes/\w+\.py", word)), None)
    if recipe is not None:
        launcher = words[:recipe]
        assert launcher in (["python"], ["accelerate", "launch", *launcher[2:]])
        if launcher[2:]:
            launched = launch_command_parser().parse_args(words[2 : recipe + 1])
            assert launched.config_file is None or (ROOT / launched.config_file).is_file(), launched.config_file
        if "--config" in words and names_absent_data(ROOT / words[words.index("--config") + 1]):
            pytest.skip("names files of the shared data, which are not here")
        if "--load_in_4bit" in words:
            pytest.importorskip("bitsandbytes")
        parse(*config_classes(words[recipe].removeprefix("recipes/").removesuffix(".py")), argv=words[recipe + 1 :])
    elif words[0] == "python" and words[1].startswith(("benchmarks/", "recipes/data/")):
        program = (ROOT / words[1]).read_text(encoding="utf-8")
        assert all(f'"{word}"' in program for word in words[2:] if word.startswith("--"))
    elif words[0] == "hfchat":
        args, rest = _parser().parse_known_args(words[1:])
        assert not rest or hasattr(args, "takes_other_arguments"), rest
        if words[1] == "serve":
            serve_parser().fill(rest)
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words[1]
    else:
        known = ("git", "cd", "curl", "pip", "cp", "source", "jupyter", "papermill", "mkdocs", "ollama")
        assert words[0] in known, f"no test knows how to check: {command}"
        for path in (word for word in words[1:] if word.startswith(("recipes/", "deploy/", "docs/"))):
            assert (ROOT / path).exists(), path


def test_links_and_pictures_are_there():
    for document in DOCUMENTS:
        if ROOT / "docs" in document.parents:
            continue  # some of their targets are made at the build, which checks them (tests/docs)
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (document.parent / target).exists(), f"{document}: {target}"


def test_a_recipe_reads_on_one_screen():
    import ast

    for recipe in RECIPE_DOCSTRINGS:
        tree = ast.parse(recipe.read_text(encoding="utf-8"))
        (main,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
        assert main.end_lineno - main.lineno < 66, f"{recipe.name}: main has {main.end_lineno - main.lineno} lines"
