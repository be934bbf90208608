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

from hfchat.errors import UserError

Settings = dict[str, Any]  # a recipe's, as its YAML has them; the recipe's own parser checks them


def recipe_command(
    recipe: str,
    configs: Path,
    wanted: Mapping[str, object],
    *,
    launched: bool,
    places: Mapping[str, str] | None = None,
    accelerate_config: str | None = None,
) -> list[str]:
    """The command line of a recipe. A value is passed only if it differs from the one in the YAML.

    Args:
        recipe: Name of the recipe, and of its YAML.
        configs: Folder of the YAML, relative to the working directory or to the place of the recipes.
        wanted: Values for its keys.
        launched: Whether Accelerate starts it.
        places: Folders in the YAML to where they really are; every path into the one becomes a path into the other.
        accelerate_config: File for Accelerate, by default the one for a CPU.

    Raises:
        UserError: If the YAML cannot be read, or is not a mapping.
    """
    root = recipes_root()
    config_file = config_folder(configs) / f"{recipe}.yaml"
    in_yaml = read_settings(config_file)
    wanted = moved_settings(in_yaml, places or {}) | dict(wanted)
    overrides = []
    for key, value in wanted.items():
        if in_yaml.get(key) != value:
            overrides += [f"--{key}", *map(_argument, value if isinstance(value, list) else [value])]
    launcher = ["python"]
    if launched:
        accelerate_config = accelerate_config or str(root / "accelerate_configs" / "cpu.yaml")
        launcher = ["accelerate", "launch", "--quiet", "--config_file", accelerate_config]
    return [*launcher, str(root / "recipes" / f"{recipe}.py"), "--config", str(config_file), *overrides]


def config_folder(configs: Path) -> Path:
    """A folder of YAMLs, where it is: relative to the working directory or to the place of the recipes."""
    return configs if configs.is_dir() else recipes_root() / configs


def read_settings(config_file: Path) -> Settings:
    """The settings in a YAML, not yet checked.

    Raises:
        UserError: If the file cannot be read, or is not a mapping.
    """
    try:
        settings = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise UserError(f"{config_file}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(settings, dict):
        raise UserError(f"{config_file}: must be a mapping of a recipe's settings")
    return settings


def moved_settings(settings: Settings, places: Mapping[str, str]) -> Settings:
    """Settings in which all paths lead to where their folders are; `recipes/` is one of these."""
    root = recipes_root()
    places = {**({} if root == Path() else {"recipes": str(root / "recipes")}), **places}
    return {key: _moved(value, places) for key, value in settings.items()}


def _moved(value: Any, places: Mapping[str, str]) -> Any:
    """The value in which every path into one of the folders, in lists and mappings too, leads into its place."""
    if isinstance(value, list):
        return [_moved(item, places) for item in value]
    if isinstance(value, dict):
        return {key: _moved(item, places) for key, item in value.items()}
    if isinstance(value, str):
        name, equals, path = value.rpartition("=")  # of a model that is evaluated: name=path
        for folder, place in places.items():
            if path == folder or path.startswith(f"{folder}/"):
                return name + equals + place + path.removeprefix(folder)
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
