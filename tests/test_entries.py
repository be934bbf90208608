import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import pytest

from hfchat.config import parse
from hfchat.entries import Entry
from hfchat.errors import UserError


class Dish(Entry):
    kind: str
    name: str

    @classmethod
    def title(cls, fields):
        return f"dish {fields.get('name', '')}".strip()

    @classmethod
    def expand(cls, value):
        return {"kind": "soup", "name": value} if isinstance(value, str) and value.isalpha() else super().expand(value)

    @classmethod
    def alternatives(cls):
        return Soup, Cake


class Soup(Dish):
    kind: Literal["soup", "broth"] = "soup"
    salt: float = 0.5


class Cake(Dish):
    kind: Literal["cake"]
    layers: int = 1
    fillings: Sequence[str] = ()


@dataclass
class Menu:
    dishes: list[Dish] = field(default_factory=list)
    best: Dish | None = None


def test_the_kind_chooses_the_model():
    assert Dish.parse({"kind": "cake", "name": "Sacher", "layers": 3}) == Cake(kind="cake", name="Sacher", layers=3)
    assert Dish.parse({"kind": "broth", "name": "b", "salt": 1}) == Soup(kind="broth", name="b", salt=1.0)
    assert Dish.parse('{"kind": "cake", "name": "json"}').name == "json"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"kind": "cakes", "name": "x"},
            "dish x: kind must be one of soup, broth, cake, not 'cakes'; did you mean 'cake'?",
        ),
        ({"kind": "cake", "name": "x", "layer": 2}, "dish x: unknown key 'layer'; did you mean 'layers'?"),
        ({"kind": "cake", "name": "x", "zzz": 2}, "dish x: unknown key 'zzz'; it takes kind, name, layers, fillings"),
        ({"kind": "cake"}, "dish: needs 'name'"),
        ({"kind": "cake", "name": "x", "layers": "2"}, "dish x: 'layers' must be a valid integer, not '2'"),
        ({"kind": "cake", "name": "x", "layers": True}, "dish x: 'layers' must be a valid integer, not True"),
        (
            {"kind": "cake", "name": "x", "fillings": "jam"},
            "dish x: 'fillings': 'str' instances are not allowed as a Sequence value, not 'jam'",
        ),
        ({"kind": None, "name": "x"}, "dish x: needs 'kind', one of soup, broth, cake"),
        ([1], "dish: must be a mapping, not [1]"),
        ("12 3", "dish: must be a mapping, not '12 3'"),
        (
            '{"kind": "cake"',
            "dish: is not valid JSON: Expecting ',' delimiter: line 1 column 16 (char 15)",
        ),
    ],
)
def test_a_fault_is_one_line_that_names_entry_and_key(value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Dish.parse(value)


def test_recipes_get_entries_from_the_file_and_from_the_command_line(tmp_path):
    file = tmp_path / "menu.yaml"
    file.write_text("dishes: [tomato, {kind: cake, name: Sacher}]\nbest: {kind: cake, name: nut}")
    (menu,) = parse(Menu, argv=["--config", str(file)])
    assert menu.dishes == [Soup(kind="soup", name="tomato"), Cake(kind="cake", name="Sacher")]
    assert menu.best == Cake(kind="cake", name="nut")
    assert menu.asked["dishes"] == menu.dishes
    (menu,) = parse(Menu, argv=["--config", str(file), "--dishes", "pea", '{"kind": "cake", "name": "plum"}'])
    assert [dish.name for dish in menu.dishes] == ["pea", "plum"]


def test_an_entry_may_be_left_out():
    (menu,) = parse(Menu, argv=["--dishes", "pea"])
    assert menu.best is None


def test_a_bad_entry_names_the_file_and_the_key(tmp_path):
    file = tmp_path / "menu.yaml"
    file.write_text("dishes: [{kind: cake, name: Sacher, layer: 2}]")
    with pytest.raises(UserError) as error:
        parse(Menu, argv=["--config", str(file)])
    assert str(error.value) == f"{file}: key 'dishes': dish Sacher: unknown key 'layer'; did you mean 'layers'?"
    with pytest.raises(UserError, match="command line: --dishes: dish: needs 'name'"):
        parse(Menu, argv=["--dishes", '{"kind": "cake"}'])


def test_an_entry_says_what_was_given():
    assert Dish.parse({"kind": "cake", "name": "Sacher"}).given() == {"kind": "cake", "name": "Sacher"}
