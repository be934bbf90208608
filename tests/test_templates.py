from pathlib import Path

from hfchat.results import Difference
from hfchat.templates import as_typed, change, code, fenced, figure, place, shown_paths, visible


def test_a_path_shows_nothing_of_the_machine():
    assert place("outputs/model") == "outputs/model"
    assert place(str(Path.cwd() / "outputs" / "model")) == "outputs/model"
    assert place("/home/jane/model") == "…/model"
    assert place("/mnt/data/team/jane/model") == "…/jane/model"
    assert place("https://me:secret@host.example/v1#big") == "https://host.example/v1#big"


def test_a_command_is_shown_without_folders_of_the_machine():
    command = f"python {Path.cwd()}/recipes/evaluate.py --models a=/mnt/x/y/z/model b=https://host/v1/x c=lab/model"
    assert shown_paths(command) == "python recipes/evaluate.py --models a=…/z/model b=https://host/v1/x c=lab/model"
    assert as_typed(["pretrain.py", "--run_name", "two words"]) == "python recipes/pretrain.py --run_name 'two words'"


def test_numbers_are_shown_with_their_intervals():
    assert figure(-0.25, ".2f") == "−0.25"
    assert figure(float("nan"), ".2f") == "–"
    assert change(Difference(0.19, (-0.12, 0.26), 9), ".2f") == "+0.19 [−0.12, +0.26]"
    assert change(Difference(0.125, (0.1, 0.15), 9), ".1%") == "+12.5 [+10.0, +15.0] pp"


def test_code_of_markdown_ends_where_it_should():
    assert code("a`b") == "``a`b``"
    assert code("a|b") == "`a|b`"
    assert code("a|b", True) == "`a\\|b`"
    assert fenced("```\ncode\n```") == "````text\n```\ncode\n```\n````"


def test_what_hides_or_reorders_text_is_made_visible():
    assert visible("a\u202eb\x00c\x7f\ud800") == "a[U+202E]b␀c␡�"
    assert visible("line\n\tline") == "line\n\tline"
