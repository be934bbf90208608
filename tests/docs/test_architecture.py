"""What docs/architecture.md names is there."""

import ast
import re

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def names_in(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if hasattr(node, "name") and isinstance(node.name, str)}


def test_each_file_is_there_and_has_what_is_said_to_be_in_it():
    found = re.findall(r"`([\w/]+\.py)`(?:\s+`(\w+)`)?", PAGE)
    assert len(found) > 50
    for path, name in found:
        file = ROOT / path if path.startswith("recipes/") else ROOT / "src" / "hfchat" / path
        assert file.is_file(), path
        assert not name or name in names_in(file), f"{path} has no {name}"


def test_each_shape_of_a_table_is_in_its_file():
    for shapes, places in re.findall(r"^\| (.*) \| (`.*\.py`.*) \|$", PAGE, re.MULTILINE):
        files = [ROOT / "src" / "hfchat" / path for path in re.findall(r"`([\w/]+\.py)`", places)]
        defined = set().union(*map(names_in, files))
        named = re.findall(r"`([A-Z]\w+)`", shapes)
        assert named, shapes
        assert {name for name in named if name != "Document"} <= defined, shapes
