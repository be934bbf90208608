"""Configuration of a recipe: dataclasses, filled from a YAML file and the command line by TRL's parser."""

import argparse
import dataclasses
import difflib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import yaml
from trl import TrlParser

from hfchat.entries import Entry
from hfchat.errors import UserError

# Settings of the libraries' dataclasses that say where, how often or how fast, but not what comes out. Ours declare
# it themselves: `field(metadata={"identity": False})`.
_NO_IDENTITY = {
    "TrainingArguments": {
        "output_dir", "run_name", "project", "trackio_space_id", "report_to", "disable_tqdm",
        "logging_dir", "logging_steps", "logging_strategy", "logging_first_step", "log_level", "log_level_replica",
        "save_steps", "save_strategy", "save_total_limit", "save_on_each_node", "push_to_hub", "hub_model_id",
        "hub_token", "hub_private_repo", "hub_strategy", "hub_always_push", "dataloader_num_workers",
        "dataloader_pin_memory", "local_rank", "deepspeed", "fsdp", "fsdp_config", "accelerator_config",
        "batch_eval_metrics", "resume_from_checkpoint",
    },
    "SFTConfig": {"dataset_num_proc"},
    "DPOConfig": {"dataset_num_proc"},
    "KTOConfig": {"dataset_num_proc"},
    "ModelConfig": {"model_name_or_path"},  # the model is an input, which counts by its content
}  # fmt: skip


def setting(default: Any, help: str, **metadata: Any) -> Any:
    """A field of a dataclass of settings.

    Args:
        default: Its default; a list is copied for each instance.
        help: What `--help` and the reference say.
        metadata: More of it, such as `choices`, or `identity=False` for what does not shape the result.
    """
    metadata["help"] = help
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class StageArguments:
    """What every stage that does not train takes; the training stages get `output_dir` from `TrainingArguments`."""

    output_dir: str = field(
        metadata={"help": "Folder of the finished stage. Written beside it, renamed at the end.", "identity": False}
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "help": "Replace a finished output that was made from other inputs or settings.",
            "identity": False,
        },
    )


def parse(*dataclass_types: type, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Fill each dataclass from `--config file.yaml` and the command line, which wins.

    Args:
        dataclass_types: Dataclasses whose field names are disjoint.
        argv: The command line, by default that of the process.

    Returns:
        One instance per dataclass, in their order. Its attribute `asked` holds the keys that the file or the command
        line set to other values than the default, before the dataclass derives anything from the machine.

    Raises:
        UserError: For a file that is missing or is not a YAML mapping, an unknown key, or a value of a wrong type.
            The message names the key and where it stands. Also for `trust_remote_code`, if it is true.
    """
    return _Parser(dataclass_types, allow_abbrev=False).fill(sys.argv[1:] if argv is None else argv)


def settings_of(part: Any) -> dict[str, object]:
    """All settings of a dataclass as JSON has them, but for the keys that open the Hub."""
    names = (field.name for field in dataclasses.fields(part) if field.init)
    return {name: _as_json(getattr(part, name)) for name in names if "token" not in name.split("_")}


def identity_of(part: Any) -> dict[str, object]:
    """The settings that a run was asked for and that shape its result, as JSON has them.

    Args:
        part: One of those that `parse` returned.
    """
    declared = {field.name for field in dataclasses.fields(part) if not field.metadata.get("identity", True)}
    inherited = (_NO_IDENTITY.get(base.__name__, set()) for base in type(part).__mro__)
    ignored = declared.union(*inherited)
    return {key: _as_json(value) for key, value in part.asked.items() if key not in ignored}


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=lambda item: item.given() if isinstance(item, Entry) else str(item)))


def _entry_fields(dataclass_type: type) -> Iterator[tuple[str, type[Entry]]]:
    """The fields that hold an entry, or a list of entries, each with the class of the entries."""
    for name, hint in get_type_hints(dataclass_type).items():
        for kind in _parts(hint):
            if isinstance(kind, type) and issubclass(kind, Entry):
                yield name, kind


def _parts(hint: Any) -> Iterator[Any]:
    """A type and those that it is made of: `list[X] | None` has `X`."""
    yield hint
    for part in get_args(hint):
        yield from _parts(part)


def _converter(kind: type[Entry]) -> Callable[[object], Entry]:
    """What makes an entry of its YAML or text; argparse shows no messages but those of its own error."""

    def convert(value: object) -> Entry:
        try:
            return kind.parse(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(" ".join(str(error).split())) from error

    return convert


class _Parser(TrlParser):
    """TrlParser that checks the file's keys and types, and answers bad input in one line."""

    def __init__(self, dataclass_types: Sequence[type], **options: Any):
        super().__init__(dataclass_types, **options)
        self._unchanged = {action.dest: action.default for action in self._actions}
        entry_fields = chain.from_iterable(map(_entry_fields, dataclass_types))
        self._entries = {name: _converter(kind) for name, kind in entry_fields}
        for action in self._actions:
            action.type = self._entries.get(action.dest, action.type)
        self.asked: dict[str, object] = {}

    def add_argument(self, *names: Any, identity: bool = True, **options: Any) -> argparse.Action:
        """As argparse has it; `identity` is metadata of a field, which `identity_of` reads from the dataclass."""
        return super().add_argument(*names, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"command line: {message.removeprefix('argument ')}")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            raise UserError(f"command line: {self._unknown(unknown[0].split('=')[0].lstrip('-'))}")
        changed = [key for key, value in vars(namespace).items() if value != self._unchanged.get(key)]
        # argparse converts texts alone; what a YAML says is a mapping still.
        for key, convert in self._entries.items():
            value = getattr(namespace, key)
            if isinstance(value, list):
                setattr(namespace, key, [convert(item) for item in value])
            elif value is not None:
                setattr(namespace, key, convert(value))
        self.asked = {key: getattr(namespace, key) for key in changed}
        return namespace, unknown

    def fill(self, argv: Sequence[str]) -> tuple[Any, ...]:
        """The filled dataclasses: see `parse`."""
        # TrlParser knows only `--config FILE`.
        argv = list(chain.from_iterable(arg.split("=", 1) if arg.startswith("--config=") else [arg] for arg in argv))
        if "--config" in argv:
            position = argv.index("--config") + 1
            if position == len(argv):
                raise UserError("--config needs a file, e.g. --config recipes/configs/demo/pretrain.yaml")
            self.check_file(argv[position])
        try:
            parsed = self.parse_args_and_config(argv)
        except UserError:
            raise
        except ValueError as error:  # raised by the dataclasses' own checks
            raise UserError(" ".join(str(error).split())) from error
        for part in parsed:
            if getattr(part, "trust_remote_code", False):  # a key of TRL's configs
                raise UserError("trust_remote_code: code that a model brings is never run; leave the key out")
            part.asked = {key: value for key, value in self.asked.items() if key in part.__dataclass_fields__}
        return parsed

    def check_file(self, path: str) -> None:
        try:
            config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"--config {path}: {error.strerror or error}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"--config {path}: not a YAML file: {' '.join(str(error).split())}") from error
        if not isinstance(config, dict):
            raise UserError(f"--config {path}: must be a YAML mapping of keys to values")
        # Each key must be one that the dataclasses have, with a value of its type.
        actions = {action.dest: action for action in self._actions}
        for key, value in config.items():
            if key == "env":
                continue
            if key not in actions:
                raise UserError(f"{path}: {self._unknown(str(key))}")
            self._check_entry(path, actions[key], value)

    def _unknown(self, key: str) -> str:
        close = difflib.get_close_matches(key, [action.dest for action in self._actions], n=1)
        return f"unknown key '{key}'" + (f"; did you mean '{close[0]}'?" if close else "")

    def _check_entry(self, path: str, action: argparse.Action, value: Any) -> None:
        convert: Any = action.type
        if value is None or convert is None:
            return
        is_list = isinstance(value, list)
        takes_list = action.nargs == "+" or isinstance(action, _Repeated)
        if is_list != takes_list and action.option_strings:  # what is no option takes one value or several
            raise UserError(f"{path}: key '{action.dest}': must be {'one value' if is_list else 'a list'}")
        for item in value if is_list else [value]:
            if isinstance(action.type, type) and isinstance(item, action.type) and not isinstance(item, bool):
                continue
            takes_mapping = action.dest in self._entries or action.type is dict
            if isinstance(item, dict) and not takes_mapping:
                if isinstance(action.type, type):
                    raise UserError(f"{path}: key '{action.dest}': must be {action.type.__name__}, not a mapping")
                continue  # a union with `dict`; its library checks it
            expected = getattr(action.type, "__name__", "value").replace("string_to_bool", "true or false")
            try:
                converted = convert(item if takes_mapping else str(item))
            except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
                problem = str(error) if takes_mapping else f"must be {expected}, not {item!r}"
                raise UserError(f"{path}: key '{action.dest}': {problem}") from error
            if action.choices is not None and converted not in action.choices:
                raise UserError(f"{path}: key '{action.dest}': must be one of {list(action.choices)}, not {item!r}")


class CommandParser(_Parser):
    """Fills the dataclass of a command as `parse` does, with options that are spelled as other programs spell theirs.

    `--some-key VALUE` is one value, also where the key is a list: the option is then repeated, and what the command
    line says replaces the list of the file. `--flag` and `--no-flag` take no value.

    Args:
        dataclass_type: A dataclass whose fields have a `help` in their metadata.
        program: What the help calls the program, e.g. `hfchat serve`.
        positional: The field that is given without an option. It takes one value or several.
    """

    def __init__(self, dataclass_type: type, *, program: str, positional: str):
        self._positional = positional
        description = (
            "Every option can also be a key of a YAML file, e.g. `port: 8080`, that `--config FILE.yaml` reads."
        )
        # Without defaults in the help: the fields' own words say them.
        shape = {"formatter_class": argparse.HelpFormatter, "allow_abbrev": False}
        super().__init__([dataclass_type], prog=program, description=description, **shape)

    def fill(self, argv: Sequence[str]) -> tuple[Any, ...]:
        # A key may be pasted as the file spells it.
        return super().fill([re.sub("^--[^=]+", lambda option: option[0].replace("_", "-"), arg) for arg in argv])

    def add_argument(self, *names: Any, identity: bool = True, **options: Any) -> argparse.Action:
        """Add what `HfArgumentParser` makes of a field, in the form that it has on the command line of a command."""
        if names == (f"--{self._positional}",):
            options.pop("required", None)
            return super().add_argument(self._positional, **options)
        if names[0] == "-h":
            return super().add_argument(*names, **options)
        # The last name is that of the help: an alias, or else the one with hyphens.
        names, options = tuple(name for name in reversed(names) if "_" not in name), {"dest": names[0][2:]} | options
        if options.get("nargs") == "+":
            return super().add_argument(*names, **options | {"nargs": None, "action": _Repeated})
        if options.get("action") == "store_false":
            return super().add_argument(*names, **options | {"help": "the opposite"})
        if options.get("nargs") != "?":
            return super().add_argument(*names, **options)
        kind, default = options["type"], options["default"]
        shared = {"dest": options["dest"], "default": default, "help": options["help"]}
        flag = super().add_argument(*names, action="store_true", **shared)
        flag.type = kind  # for the value in a file
        if not default:  # `HfArgumentParser` itself adds `--no-...` to those that are true
            hidden = shared | {"help": argparse.SUPPRESS}
            super().add_argument(*(f"--no-{name[2:]}" for name in names), action="store_false", **hidden).type = kind
        return flag


class _Repeated(argparse.Action):
    """An option that is given once for each value of a list."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*([] if before is self.default else before), values])
