"""Imports run one way: recipes, stage packages, core; a stage package never imports another."""

import ast

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
        if file.stem not in ("cli", "demo", "improve"):  # the programs on top of everything
            assert not set(imported_stages(file)), file


def test_there_is_no_drawer_for_leftovers():
    names = {path.stem for folder in ("src", "recipes", "tests") for path in (ROOT / folder).rglob("*.py")}
    assert not names & {"utils", "helpers", "misc", "common"}
