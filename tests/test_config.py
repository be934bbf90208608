from dataclasses import dataclass, field

import pytest

from hfchat.config import parse
from hfchat.errors import UserError


@dataclass
class Arguments:
    learning_rate: float = 1e-4
    steps: int = 10
    names: list[str] = field(default_factory=list)
    bf16: bool = False


def parse_yaml(tmp_path, text, *argv):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return parse(Arguments, argv=["--config", str(file), *argv])[0]


def test_the_command_line_wins_over_the_file(tmp_path):
    arguments = parse_yaml(tmp_path, "steps: 5\nlearning_rate: 2e-3\nnames: [a, b]\nbf16: true", "--steps", "7")
    assert arguments == Arguments(learning_rate=2e-3, steps=7, names=["a", "b"], bf16=True)
    assert arguments.asked == {"learning_rate": 2e-3, "steps": 7, "names": ["a", "b"], "bf16": True}


def test_the_file_may_be_given_with_an_equals_sign(tmp_path):
    (tmp_path / "config.yaml").write_text("steps: 5")
    assert parse(Arguments, argv=[f"--config={tmp_path / 'config.yaml'}"])[0].steps == 5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("learing_rate: 1.0", "unknown key 'learing_rate'; did you mean 'learning_rate'?"),
        ("steps: many", "key 'steps': must be int, not 'many'"),
        ("steps: 1.5", "key 'steps': must be int, not 1.5"),
        ("steps: [1]", "key 'steps': must be one value"),
        ("names: a", "key 'names': must be a list"),
        ("bf16: perhaps", "key 'bf16': must be true or false, not 'perhaps'"),
        ("- steps", "must be a YAML mapping"),
        ("steps: [", "not a YAML file"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it_and_the_key(tmp_path, text, problem):
    with pytest.raises(UserError) as error:
        parse_yaml(tmp_path, text)
    assert problem in str(error.value)
    assert "config.yaml" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--config", "nowhere.yaml"], "nowhere.yaml: No such file"),
        (["--config"], "--config needs a file"),
        (["--stepz", "3"], "unknown key 'stepz'; did you mean 'steps'?"),
        (["--steps", "x"], "invalid int value: 'x'"),
    ],
)
def test_a_bad_command_line_is_one_line(argv, problem):
    with pytest.raises(UserError) as error:
        parse(Arguments, argv=argv)
    assert problem in str(error.value)
