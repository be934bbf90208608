"""What is built from the checkout: a wheel that works anywhere, and an sdist without what was made here."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DATA = (".jinja", ".yaml", ".json", ".jsonl", ".txt", ".html", ".css", ".js", ".svg", ".csv", ".typed")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    pytest.importorskip("hatchling", reason="the build backend is not installed")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder), "-t", "wheel", "-t", "sdist"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert finished.returncode == 0, finished.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        yield archive


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """The wheel alone in a folder: everything else is of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    wheel = str(next(built.glob("*.whl")))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return folder


def run(installed, tmp_path, *command):
    environment = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip


def test_the_wheel_has_the_code_and_its_data(wheel):
    names = set(wheel.namelist())
    for path in (ROOT / "src" / "hfchat").rglob("*"):
        if path.suffix == ".py" or path.name.endswith(DATA):
            assert path.relative_to(ROOT / "src").as_posix() in names
    for folder in ("recipes", "accelerate_configs"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".jsonl"):
                assert f"hfchat/_recipes/{path.relative_to(ROOT).as_posix()}" in names


def test_the_wheel_has_nothing_else(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"hfchat", f"hfchat-{PROJECT['version']}.dist-info"}
    assert not [name for name in wheel.namelist() if "__pycache__" in name or name.endswith((".pyc", ".db"))]
    here = str(ROOT).encode()
    assert not [name for name in wheel.namelist() if here in wheel.read(name)]


def test_the_sdist_has_what_builds_and_tests_it_and_nothing_that_was_made_here(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        tops = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert {"src", "recipes", "tests", "accelerate_configs", "tokenizer", "pyproject.toml", "LICENSE"} <= tops
    assert not tops & {"outputs", ".venv", ".hypothesis", ".pytest_cache", ".mypy_cache", ".git"}


def test_the_metadata(wheel):
    metadata = message_from_bytes(wheel.read(f"hfchat-{PROJECT['version']}.dist-info/METADATA"))
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert metadata["License-Expression"] == PROJECT["license"]
    assert set(metadata.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])


def test_extras_that_are_named_exist():
    texts = [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").rglob("*.md")]
    texts += [ROOT / "README.md", ROOT / "pyproject.toml", ROOT / "deploy" / "README.md"]
    named = {
        (extra.strip(), path.name)
        for path in texts
        for extras in re.findall(r"hfchat\[([\w, -]+)\]", path.read_text(encoding="utf-8"))
        for extra in extras.split(",")
    }
    assert len(named) > 8
    assert not [use for use in named if use[0] not in PROJECT["optional-dependencies"]]


def test_the_installed_command_works_in_an_empty_folder(installed, tmp_path):
    finished = run(installed, tmp_path, "-m", "hfchat.cli", "--help")
    assert finished.returncode == 0, finished.stderr
    assert "demo" in finished.stdout


def test_the_installed_recipes_run_in_an_empty_folder(installed, tmp_path):
    """As far as their first check: the config is found, its paths lead into the wheel, the input is missing."""
    script = (
        "from pathlib import Path\n"
        "import hfchat\n"
        "from hfchat.pipeline import recipe_command, recipes_root\n"
        "root = Path(hfchat.__file__).parent / '_recipes'\n"
        "assert recipes_root() == root, recipes_root()\n"
        "wanted = {'dataset_name': './none'}\n"
        "command = recipe_command('train_tokenizer', Path('recipes/configs/demo'), wanted, launched=False)\n"
        "print('\\n'.join(command[1:]))\n"
    )
    finished = run(installed, tmp_path, "-c", script)
    assert finished.returncode == 0, finished.stderr
    command = finished.stdout.splitlines()
    assert command[0].startswith(str(installed))
    finished = run(installed, tmp_path, *command)
    assert finished.returncode == 2, finished.stderr
    assert re.search(r"^error: .*\./none: no such file or folder", finished.stderr, re.M), finished.stderr
    assert not list(tmp_path.iterdir())
