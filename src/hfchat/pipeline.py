"""Runs recipes as a user would by hand, with a command that is shown."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


def recipe_command(
    recipe: str,
    configs: Path,
    wanted: Mapping[str, object],
    *,
    launched: bool,
    places: Mapping[str, str] | None = None,
) -> list[str]:
    """The command line of a recipe. A value is passed only if it differs from the one in the YAML.

    Args:
        recipe: Name of the recipe, and of its YAML.
        configs: Folder of the YAML, relative to the working directory or to the place of the recipes.
        wanted: Values for its keys.
        launched: Whether Accelerate starts it.
        places: Folders in the YAML to where they really are; every path into the one becomes a path into the other.
    """
    root = recipes_root()
    config_file = (configs if configs.is_dir() else root / configs) / f"{recipe}.yaml"
    in_yaml = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    places = {**({} if root == Path() else {"recipes": str(root / "recipes")}), **(places or {})}
    wanted = {key: _moved(value, places) for key, value in in_yaml.items()} | dict(wanted)
    overrides = []
    for key, value in wanted.items():
        if in_yaml.get(key) != value:
            overrides += [f"--{key}", *map(_argument, value if isinstance(value, list) else [value])]
    launcher = ["python"]
    if launched:
        launcher = ["accelerate", "launch", "--quiet", "--config_file", str(root / "accelerate_configs" / "cpu.yaml")]
    return [*launcher, str(root / "recipes" / f"{recipe}.py"), "--config", str(config_file), *overrides]


def _moved(value: Any, places: Mapping[str, str]) -> Any:
    """The value in which every path into one of the folders, in lists and mappings too, leads into its place."""
    if isinstance(value, list):
        return [_moved(item, places) for item in value]
    if isinstance(value, dict):
        return {key: _moved(item, places) for key, item in value.items()}
    if isinstance(value, str):
        for folder, place in places.items():
            if value == folder or value.startswith(f"{folder}/"):
                return place + value.removeprefix(folder)
    return value


def _argument(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


def recipes_root() -> Path:
    """Where `recipes/` is: in the working directory if it is a checkout, else in this package's checkout or wheel."""
    if (Path("recipes") / "configs" / "demo").is_dir():
        return Path()
    package = Path(__file__).parent
    bundled = package / "_recipes"
    return bundled if bundled.is_dir() else package.parent.parent


def run_recipe(arguments: list[str]) -> None:
    """Print a command and run it; if it fails, end with its status."""
    print(f"$ {shlex.join(arguments)}", flush=True)
    programs = Path(sys.executable).parent  # of the virtual environment, whether it is activated or not
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))}
    environment["PYTHONWARNINGS"] = os.environ.get("PYTHONWARNINGS", "ignore::FutureWarning,ignore::UserWarning")
    environment["PATH"] = f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"
    finished = subprocess.run(arguments, env=environment, check=False)
    if finished.returncode:
        print("stopped there; what was wrong is said above. The same command goes on from here", file=sys.stderr)
        sys.exit(finished.returncode)
