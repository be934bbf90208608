"""Imports run one way: recipes, stage packages, core; a stage package never imports another."""

import ast
from graphlib import TopologicalSorter

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "src" / "hfchat"
STAGES = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
# `safety` says what personal data and obscenity are; those who clean, guard and measure must mean the same by it.
ALLOWED = {
    ("serving", "safety"),
    ("serving", "feedback"),
    ("serving", "registry"),
    ("data", "safety"),
    ("feedback", "safety"),
    ("doctor", "training"),
    ("evaluation", "safety"),
    ("gguf", "safety"),
    # Engines that are servers of their own, and the files that they read: those who serve, evaluate and export share.
    ("serving", "engines"),
    ("serving", "gguf"),
    ("evaluation", "engines"),
    ("evaluation", "gguf"),
    ("engines", "gguf"),
    ("export", "gguf"),
    # A model of this machine is served for a conversation in the terminal: a child with a key that it knows.
    ("terminal", "engines"),
    ("terminal", "serving"),
    # What an answer must be, and what it says: those who serve and who evaluate mean the same by it.
    ("serving", "structured"),
    ("evaluation", "structured"),
}


def imported_stages(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            parts = name.split(".")
            assert parts[0] != "recipes", f"{file} imports a recipe"
            if parts[0] == "hfchat" and len(parts) > 1 and parts[1] in STAGES:
                yield parts[1]


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_stage_imports_only_itself_and_the_core(stage):
    for file in (PACKAGE / stage).rglob("*.py"):
        others = {other for other in imported_stages(file) if other != stage and (stage, other) not in ALLOWED}
        assert not others, f"{file.relative_to(ROOT)} imports {others}"


def test_the_core_imports_no_stage():
    for file in PACKAGE.glob("*.py"):
        if file.stem not in ("cli", "run", "improve"):  # the programs on top of everything
            assert not set(imported_stages(file)), file


def test_there_is_no_drawer_for_leftovers():
    names = {path.stem for folder in ("src", "recipes", "tests") for path in (ROOT / folder).rglob("*.py")}
    assert not names & {"utils", "helpers", "misc", "common"}


def modules():
    """Every module of the package by its dotted name, with its syntax tree."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imported_modules(tree, known):
    """What a module imports of the package, under `TYPE_CHECKING` and inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            # `from package import module` needs the module alone; `from module import name` needs the module.
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from [name for name in whole if name in known] or [node.module]


def test_no_imports_run_in_a_circle():
    trees = modules()
    graph = {name: set(imported_modules(tree, trees)) - {name} for name, tree in trees.items()}
    TopologicalSorter(graph).prepare()  # raises a CycleError that names the circle
