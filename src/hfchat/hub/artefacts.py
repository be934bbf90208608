"""Which files of an artefact go into its repository on the Hub, and what is made anew for it."""

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hfchat.adapters import BASE_RECORD
from hfchat.errors import UserError
from hfchat.hub.contents import UnreadableError, pieces
from hfchat.hub.leaks import Leak, clean_paths, find_leaks
from hfchat.lineage import CERTIFICATE, LINEAGE, describe, digest, lineage_of
from hfchat.model_code import refuse_code
from hfchat.models import BUNDLED, BUNDLED_ON_HUB

CARD = "README.md"
EVALUATION = "evaluation/"  # in the repository of a model: its results
KINDS = ("dataset", "tokenizer", "base", "adapter", "model", "space")  # in the order in which they are published

_KEYS = ("kind", "folder", "name", "repo_id", "evaluation")
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "*.model",
)  # fmt: skip
_MODEL = (
    *_TOKENIZER, "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", CERTIFICATE,
)  # fmt: skip
_PUBLISHED = {
    "tokenizer": (*_TOKENIZER, "tokenizer_report.*"),
    "base": _MODEL,
    "model": _MODEL,
    "adapter": (*_TOKENIZER, "adapter_config.json", "adapter_model.safetensors", BASE_RECORD),
}
_NEEDED = {
    "tokenizer": ("tokenizer_config.json",),
    "base": ("config.json", "*.safetensors"),
    "model": ("config.json", "*.safetensors"),
    "adapter": ("adapter_config.json", "adapter_model.safetensors"),
    "dataset": (CARD,),
    "space": (CARD, "Dockerfile", "hfchat-*.whl"),
}
_HOW_TO_MAKE = {
    "hfchat-*.whl": "`pip wheel --no-deps --wheel-dir {folder} .` builds it",
    CARD: "write one: it says what the data is, and under which licence",
}
_DATA = (".parquet", ".jsonl", ".json", ".csv", ".arrow", ".txt", ".gz", ".zst")
_REMOVED = "removed"  # what a stage of the data took out, with the reasons for it


class ArtefactEntry(dict):
    """An entry of `artefacts`: `kind`, `folder`, and where wanted `name`, `repo_id` and `evaluation`.

    Its repository is `repo_id`, or that of the model with `-name` at its end. The name is by default the kind; a model
    has none.

    Raises:
        ValueError: If a key is unknown or missing, or a value is not as it should be.
    """

    def __init__(self, entry: Mapping[str, Any] | str):
        super().__init__(json.loads(entry) if isinstance(entry, str) else entry)
        name = f"artefacts: {dict(self)}"
        if unknown := set(self) - set(_KEYS):
            raise ValueError(f"{name}: unknown key '{min(unknown)}'; an entry has {', '.join(_KEYS)}")
        if self.get("kind") not in KINDS:
            raise ValueError(f"{name}: kind must be one of {', '.join(KINDS)}")
        if not isinstance(self.get("folder"), str):
            raise ValueError(f"{name}: needs a folder")
        if odd := next((key for key in _KEYS if not isinstance(self.get(key, ""), str)), None):
            raise ValueError(f"{name}: {odd} must be a text")
        if "evaluation" in self and self["kind"] not in ("base", "adapter", "model"):
            raise ValueError(f"{name}: evaluation is for a model or an adapter")

    def repository(self, model: str) -> str:
        """The id of its repository.

        Args:
            model: That of the model.

        Raises:
            ValueError: If it is none.
        """
        end = self.get("name", "" if self["kind"] == "model" else self["kind"])
        repo_id = self.get("repo_id") or model + (f"-{end}" if end else "")
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise ValueError(f"repo_id: {repo_id!r} is none: {error}") from error
        if repo_id.count("/") != 1:
            raise ValueError(f"repo_id: must be OWNER/NAME, such as alice/assistant, not {repo_id!r}")
        return repo_id

    @property
    def repo_type(self) -> str:
        return repo_type(self["kind"])


def repo_type(kind: str) -> str:
    """What the Hub calls it: `model`, `dataset` or `space`."""
    return kind if kind in ("dataset", "space") else "model"


@dataclass
class Repository:
    """What will be in a repository of the Hub.

    Attributes:
        kind: One of `KINDS`.
        repo_id: `"alice/assistant"`.
        folder: Where the artefact is on this machine.
        sha256: Of the artefact, as lineages and evaluations know it; None for a Space.
        lineage: Of the stage that made it, if one did.
        licenses: Of what it was made of, or of itself.
        files: Name in the repository to a file of this machine, or to the content that was made for it.
        left_out: What of the folder is not published.
    """

    kind: str
    repo_id: str
    folder: Path
    sha256: str | None = None
    lineage: dict[str, Any] | None = None
    licenses: Sequence[str] = ()
    files: dict[str, Path | bytes] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    _hashes: dict[Path, str] = field(default_factory=dict, repr=False)

    @property
    def repo_type(self) -> str:
        return repo_type(self.kind)

    @property
    def sizes(self) -> dict[str, int]:
        """Name to bytes."""
        return {name: self.size_of(name) for name in self.files}

    def size_of(self, name: str) -> int:
        """In bytes."""
        file = self.files[name]
        return len(file) if isinstance(file, bytes) else file.stat().st_size

    def sha256_of(self, name: str) -> str:
        """Of a file's content; a file of this machine, which may be weights, is read once."""
        file = self.files[name]
        if isinstance(file, bytes):
            return hashlib.sha256(file).hexdigest()
        if file not in self._hashes:
            self._hashes[file] = describe(file)["sha256"]
        return self._hashes[file]

    def read(self, name: str) -> bytes:
        file = self.files[name]
        return file if isinstance(file, bytes) else file.read_bytes()

    def write(self, name: str, content: str) -> None:
        """Put what was made in the place of a file, or beside the others."""
        self.files[name] = content.encode()

    def write_json(self, name: str, content: Any) -> None:
        self.write(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def place_of(self, name: str) -> str:
        """How to call a file in a message: by its path here, or where it will be if it was made."""
        file = self.files[name]
        return f"{self.repo_id}/{name}" if isinstance(file, bytes) else str(self.folder / name)

    def is_deposit(self, name: str) -> bool:
        """Whether a file of the repository is one that this kind consists of, so that it is stale when it is not in
        `files`."""
        return name == LINEAGE or name.startswith(EVALUATION) or _is_published(self.kind, PurePosixPath(name))


def collect(entry: ArtefactEntry, repo_id: str) -> Repository:
    """The files of an artefact as they are on this machine.

    Raises:
        UserError: If the folder or a file that it needs is missing, a model brings code (`refuse_code`), a file is a
            link that leads out of the folder, or the certificate is of other files.
    """
    kind, folder = entry["kind"], Path(entry["folder"]).expanduser()
    if not folder.is_dir():
        raise UserError(f"artefacts: {entry['folder']}: no such folder; an earlier recipe makes it, or name another")
    if kind in _PUBLISHED:
        refuse_code(folder)
    repository = Repository(kind, repo_id, folder)
    if kind != "space":
        described = describe(folder)
        repository.sha256, repository.lineage = described["sha256"], lineage_of(folder)
        repository.licenses = (repository.lineage or described)["licenses"]
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_dir():
            continue
        if not _is_published(kind, PurePosixPath(name)):
            if name.name not in (CARD, LINEAGE):  # these are made anew
                repository.left_out.append(name.as_posix())
        elif not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path}: is a link that leads out of the folder; put the file itself there")
        else:
            repository.files[name.as_posix()] = path
    for pattern in _NEEDED[kind]:
        if not any(fnmatch(name, pattern) for name in repository.files):
            how = _HOW_TO_MAKE.get(pattern, "save it with save_pretrained").format(folder=folder)
            raise UserError(f"{folder}: has no {pattern}, which a {kind} needs; {how}")
    wheels = [name for name in repository.files if name.endswith(".whl")]
    if kind == "space" and len(wheels) > 1:
        raise UserError(f"{folder}: has several wheels ({', '.join(wheels)}); leave the one that shall run")
    _check_certificate(repository)
    return repository


def link(repositories: Sequence[Repository]) -> None:
    """Let each adapter name its base as the Hub knows it.

    Raises:
        UserError: If a base is a folder of this machine that is not published too.
    """
    published = {one.folder.resolve(): one.repo_id for one in repositories if one.kind in ("base", "model")}
    for adapter in repositories:
        if adapter.kind != "adapter":
            continue
        config = json.loads(adapter.read("adapter_config.json"))
        base = config.get("base_model_name_or_path")
        if not base:
            raise UserError(f"{adapter.folder}/adapter_config.json: names no base_model_name_or_path; add it")
        on_hub = published.get(Path(base).resolve())
        if on_hub is None and _is_bundled(adapter, base):
            on_hub = BUNDLED_ON_HUB
        if on_hub is not None:
            adapter.write_json("adapter_config.json", config | {"base_model_name_or_path": on_hub})
            _name_base(adapter, on_hub)
        elif Path(base).is_dir() or base.startswith((".", "/", "~")) or base.count("/") > 1 or "\\" in base:
            raise UserError(
                f"{adapter.folder}/adapter_config.json: base_model_name_or_path is a folder of this machine, {base}; "
                f"publish it too, with {{kind: base, folder: {base}}} in artefacts, or train on a model of the Hub"
            )


def add_lineage(repository: Repository, published: Mapping[str, str]) -> None:
    """Add `lineage.json`, without paths of this machine: an input is known by its name, its hash and its licences.

    Its `outputs` are those that are published, with the hashes that they have there; `unpublished_sha256` is the
    digest of the whole output, by which the lineages of later stages and evaluations know it.

    Args:
        repository: Whose configs have been linked.
        published: The digest of an artefact to the id of its repository.
    """
    lineage = repository.lineage
    if lineage is None:
        return
    outputs = {
        name: {"size": repository.size_of(name), "sha256": repository.sha256_of(name)}
        for name in sorted(lineage["outputs"].keys() & repository.files.keys())
    }
    record = {key: value for key, value in lineage.items() if key != "path"} | {
        "inputs": named_inputs(lineage, published),
        "outputs": outputs,
        "sha256": digest(outputs),
        "unpublished_sha256": digest(lineage["outputs"]),
    }
    repository.write(LINEAGE, clean_json(record))


def named_inputs(lineage: Mapping[str, Any], published: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The inputs of a stage by their roles, those that are published with the id of their repository as their path."""
    return {
        role: source | {"path": published.get(source["sha256"], source["path"])}
        for role, source in lineage["inputs"].items()
    }


def clean_json(value: Any) -> str:
    """JSON in which local paths are as others may see them."""
    return json.dumps(_cleaned(value), indent=2, ensure_ascii=False) + "\n"


def check_leaks(repositories: Sequence[Repository], allowed: Sequence[str] = ()) -> None:
    """Refuse secrets and local paths in what would be published.

    All files are looked at, compressed ones and tables too (`hfchat.hub.contents`); in the rows of a dataset, in
    tables, archives and pictures only secrets are looked for. A file at which nobody can look is refused as well.

    Args:
        repositories: All of them.
        allowed: Places, as the message names them, at which there is none whatever it looks like.

    Raises:
        UserError: That names the files and lines, and what is there.
    """
    found = {
        (f"{repository.place_of(name)}{leak.place}", leak.what): None
        for repository in repositories
        for name, leak in _leaks(repository)
    }
    leaks = [(place, what) for place, what in found if place not in allowed]
    if leaks:
        shown = "; ".join(f"{place}: {what}" for place, what in leaks[:5])
        more = f", and {len(leaks) - 5} more" if len(leaks) > 5 else ""
        raise UserError(
            f"{shown}{more}; nothing was published: take it out or, if it is not a secret, pass "
            f"--allowed_findings {shlex.quote(leaks[0][0])}"
        )


def _leaks(repository: Repository) -> Iterator[tuple[str, Leak]]:
    """Each with the file's name."""
    for name, file in repository.files.items():
        is_data = repository.kind == "dataset" and name.endswith(_DATA) and name != LINEAGE
        try:
            for piece in pieces(PurePosixPath(name).name, file):
                paths = piece.is_text and not piece.inside and not is_data
                for leak in find_leaks(piece.text, paths=paths):
                    line = None if leak.line is None else piece.line + leak.line - 1
                    yield name, Leak(line, leak.what, piece.inside)
        except UnreadableError as error:
            yield name, Leak(None, f"nobody can look for secrets in it, because it {error}", error.inside)


def _is_published(kind: str, name: PurePosixPath) -> bool:
    if any(part.startswith(".") or part == "__pycache__" for part in name.parts):
        return False
    if kind == "space":
        return True
    if kind == "dataset":
        inside = len(name.parts) > 1 or name.suffix in (".jsonl", ".parquet", ".csv")
        return str(name) == CARD or (inside and name.parts[0] != _REMOVED and name.name.endswith(_DATA))
    return len(name.parts) == 1 and any(fnmatch(name.name, pattern) for pattern in _PUBLISHED[kind])


def _check_certificate(repository: Repository) -> None:
    """A certificate is published with the files that it is of, or not at all."""
    if CERTIFICATE not in repository.files:
        return
    for name, sha256 in json.loads(repository.read(CERTIFICATE))["files"].items():
        if name in repository.files and repository.sha256_of(name) != sha256:
            raise UserError(
                f"{repository.folder}/{CERTIFICATE}: is not of {name} as it is now; "
                f"run `hfchat certify {repository.folder}`"
            )


def _is_bundled(adapter: Repository, base: str) -> bool:
    """Whether the base is SmolLM2 as a wheel carries it: PEFT was told the folder, the record has its name."""
    if base == BUNDLED:
        return True
    record = json.loads(adapter.read(BASE_RECORD)) if BASE_RECORD in adapter.files else {}
    return record.get("model_name_or_path") == BUNDLED


def _name_base(adapter: Repository, on_hub: str) -> None:
    if BASE_RECORD in adapter.files:
        record = json.loads(adapter.read(BASE_RECORD))
        if record["model_name_or_path"] != BUNDLED:
            adapter.write_json(BASE_RECORD, record | {"model_name_or_path": on_hub})


def _cleaned(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_cleaned(key): _cleaned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    return clean_paths(value) if isinstance(value, str) else value
