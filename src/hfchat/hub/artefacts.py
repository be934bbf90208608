"""Which files of an artefact go into its repository on the Hub, and what is made anew for it."""

import itertools
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from pydantic import model_validator

from hfchat.adapters import BASE_RECORD
from hfchat.entries import Entry
from hfchat.errors import UserError
from hfchat.hub.contents import UnreadableError, pieces
from hfchat.hub.leaks import clean_paths, find_leaks
from hfchat.lineage import (
    CERTIFICATE,
    LINEAGE,
    Ancestor,
    Input,
    Lineage,
    OutputFile,
    describe,
    digest,
    lineage_of,
)
from hfchat.model_code import refuse_code
from hfchat.models import BUNDLED, BUNDLED_ON_HUB

CARD = "README.md"
EVALUATION = "evaluation/"  # in the repository of a model: its results
KINDS = ("dataset", "tokenizer", "base", "adapter", "model", "space")  # in the order in which they are published

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


class Artefact(Entry):
    """An entry of `artefacts`: what is published, and where.

    Its repository is `repo_id`, or that of the model with `-name` at its end. The name is by default the kind; a model
    has no name.
    """

    kind: Literal["dataset", "tokenizer", "base", "adapter", "model", "space"]
    folder: str
    name: str | None = None
    repo_id: str | None = None
    evaluation: str | None = None

    @classmethod
    def title(cls, fields: Mapping[str, Any]) -> str:
        return f"artefacts: {dict(fields)}" if fields else "artefacts"

    @model_validator(mode="after")
    def _check_evaluation(self) -> Self:
        if self.evaluation is not None and self.kind not in ("base", "adapter", "model"):
            raise ValueError("evaluation is for a model or an adapter")
        return self

    @property
    def repo_type(self) -> str:
        """What the Hub calls it: `model`, `dataset` or `space`."""
        return self.kind if self.kind in ("dataset", "space") else "model"

    def repository(self, model: str) -> str:
        """The id of its repository.

        Args:
            model: The id of the model's repository.

        Raises:
            ValueError: If the id is not valid.
        """
        default = "" if self.kind == "model" else self.kind
        end = default if self.name is None else self.name
        repo_id = self.repo_id or model + (f"-{end}" if end else "")
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise ValueError(f"repo_id: {repo_id!r} is not a valid id: {error}") from error
        if repo_id.count("/") != 1:
            raise ValueError(f"repo_id: must be OWNER/NAME, such as alice/assistant, not {repo_id!r}")
        return repo_id

    def publishes(self, name: PurePosixPath) -> bool:
        """Whether a file of its folder, by its path in there, goes into the repository."""
        if any(part.startswith(".") or part == "__pycache__" for part in name.parts):
            return False
        if self.kind == "space":
            return True
        if self.kind == "dataset":
            inside = len(name.parts) > 1 or name.suffix in (".jsonl", ".parquet", ".csv")
            return str(name) == CARD or (inside and name.parts[0] != _REMOVED and name.name.endswith(_DATA))
        return len(name.parts) == 1 and any(fnmatch(name.name, pattern) for pattern in _PUBLISHED[self.kind])


@dataclass
class Repository:
    """What will be in a repository of the Hub.

    Attributes:
        artefact: What is published.
        repo_id: `"alice/assistant"`.
        staged: Folder with the files as they will be in the repository: links to those of the artefact, and beside
            them what was made anew.
        sha256: Digest of the artefact, as lineages and evaluations know it; None for a Space.
        lineage: Lineage of the stage that made the artefact, if one did.
        licenses: Licences of what the artefact was made of, or its own.
        left_out: Files of the artefact's folder that are not published.
    """

    artefact: Artefact
    repo_id: str
    staged: Path
    sha256: str | None = None
    lineage: Ancestor | None = None
    licenses: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    _hashes: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def kind(self) -> str:
        return self.artefact.kind

    @property
    def repo_type(self) -> str:
        return self.artefact.repo_type

    @property
    def folder(self) -> Path:
        """Where the artefact is on this machine."""
        return Path(self.artefact.folder).expanduser()

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each file in bytes, by its name in the repository."""
        files = (path for path in sorted(self.staged.rglob("*")) if path.is_file())
        return {path.relative_to(self.staged).as_posix(): path.stat().st_size for path in files}

    def has(self, name: str) -> bool:
        return (self.staged / name).is_file()

    def sha256_of(self, name: str) -> str:
        """Digest of a file's content. Weights are large, so that each file is read once."""
        if name not in self._hashes:
            self._hashes[name] = describe(self.staged / name)["sha256"]
        return self._hashes[name]

    def read(self, name: str) -> str:
        return (self.staged / name).read_text(encoding="utf-8")

    def write(self, name: str, content: str) -> None:
        """Put what was made in the place of a file, or beside the others."""
        path = self.staged / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # the file of the artefact, to which a link leads, stays as it is
        path.write_text(content, encoding="utf-8")
        self._hashes.pop(name, None)

    def write_json(self, name: str, content: Mapping[str, object]) -> None:
        self.write(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def place_of(self, name: str) -> str:
        """How messages call a file: by its path here, or by where it will be if it was made."""
        return str(self.folder / name) if (self.staged / name).is_symlink() else f"{self.repo_id}/{name}"

    def is_deposit(self, name: str) -> bool:
        """Whether a file on the Hub is of the files that this kind consists of. If it is not here, it is stale."""
        return name == LINEAGE or name.startswith(EVALUATION) or self.artefact.publishes(PurePosixPath(name))


def collect(artefact: Artefact, repo_id: str, scratch: Path) -> Repository:
    """Stage the files of an artefact as they are on this machine.

    Args:
        artefact: What to publish.
        repo_id: Where to publish it.
        scratch: Folder in which a folder for the staged files is made.

    Raises:
        UserError: If the folder or a file that it needs is missing, a model brings code (`refuse_code`), a file is a
            link that leads out of the folder, or the certificate is of other files.
    """
    repository = Repository(artefact, repo_id, scratch / artefact.repo_type / repo_id)
    kind, folder = artefact.kind, repository.folder
    if not folder.is_dir():
        raise UserError(f"artefacts: {artefact.folder}: no such folder; an earlier recipe makes it, or name another")
    if kind in _PUBLISHED:
        refuse_code(folder)
    if kind != "space":
        described = describe(folder)
        repository.sha256, repository.lineage = described["sha256"], lineage_of(folder)
        repository.licenses = (repository.lineage or described)["licenses"]
    _stage(repository)

    # What is missing, or is there twice, would be found by others only after the upload.
    for pattern in _NEEDED[kind]:
        if not any(repository.staged.glob(pattern)):
            how = _HOW_TO_MAKE.get(pattern, "save it with save_pretrained").format(folder=folder)
            raise UserError(f"{folder}: has no {pattern}, which a {kind} needs; {how}")
    wheels = [path.name for path in sorted(repository.staged.rglob("*.whl"))]
    if kind == "space" and len(wheels) > 1:
        raise UserError(f"{folder}: has several wheels ({', '.join(wheels)}); leave the one that shall run")
    _check_certificate(repository)
    return repository


def _stage(repository: Repository) -> None:
    """Link to each file that is published, and note the names of the others."""
    repository.staged.mkdir(parents=True)
    for path in sorted(repository.folder.rglob("*")):
        name = path.relative_to(repository.folder)
        if path.is_dir():
            continue
        if not repository.artefact.publishes(PurePosixPath(name)):
            if name.name not in (CARD, LINEAGE):  # these are made anew
                repository.left_out.append(name.as_posix())
        elif not path.resolve().is_relative_to(repository.folder.resolve()):
            raise UserError(f"{path}: is a link that leads out of the folder; put the file itself there")
        else:
            target = repository.staged / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path.resolve())


def link(repositories: Sequence[Repository]) -> None:
    """Have each adapter name its base as the Hub knows it.

    Raises:
        UserError: If a base is a folder of this machine that is not published too.
    """
    models = (repository for repository in repositories if repository.kind in ("base", "model"))
    published = {model.folder.resolve(): model.repo_id for model in models}
    for adapter in repositories:
        if adapter.kind != "adapter":
            continue
        config = json.loads(adapter.read("adapter_config.json"))
        base = config.get("base_model_name_or_path")
        if not base:
            raise UserError(f"{adapter.folder}/adapter_config.json: names no base_model_name_or_path; add it")
        # Of SmolLM2 from a wheel, PEFT was told a folder, and the record has the name; that stays as it is.
        record = json.loads(adapter.read(BASE_RECORD)) if adapter.has(BASE_RECORD) else {}
        is_bundled = BUNDLED in (base, record.get("model_name_or_path"))
        on_hub = published.get(Path(base).resolve(), BUNDLED_ON_HUB if is_bundled else None)
        if on_hub is not None:
            adapter.write_json("adapter_config.json", config | {"base_model_name_or_path": on_hub})
            if record and not is_bundled:
                adapter.write_json(BASE_RECORD, record | {"model_name_or_path": on_hub})
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
    outputs: dict[str, OutputFile] = {
        name: {"size": size, "sha256": repository.sha256_of(name)}
        for name, size in repository.sizes.items()
        if name in lineage["outputs"]
    }
    record = {key: value for key, value in lineage.items() if key != "path"} | {
        "inputs": named_inputs(lineage, published),
        "outputs": outputs,
        "sha256": digest(outputs),
        "unpublished_sha256": digest(lineage["outputs"]),
    }
    repository.write(LINEAGE, clean_json(record))


def named_inputs(lineage: Lineage, published: Mapping[str, str]) -> dict[str, Input]:
    """The inputs of a stage by their roles, those that are published with the id of their repository as their path."""
    return {
        role: {**source, "path": published.get(source["sha256"], source["path"])}
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
        allowed: Places, as the message names them, that only look like a leak.

    Raises:
        UserError: Names the files and lines, and what is there.
    """
    found = dict.fromkeys(itertools.chain.from_iterable(map(_leaks, repositories)))  # each once
    leaks = [(place, what) for place, what in found if place not in allowed]
    if leaks:
        shown = "; ".join(f"{place}: {what}" for place, what in leaks[:5])
        more = f", and {len(leaks) - 5} more" if len(leaks) > 5 else ""
        raise UserError(
            f"{shown}{more}; nothing was published: take it out or, if it is not a secret, pass "
            f"--allowed_findings {shlex.quote(leaks[0][0])}"
        )


def _leaks(repository: Repository) -> Iterator[tuple[str, str]]:
    """The place of each leak, as messages name it, and what is there."""
    for name in repository.sizes:
        place = repository.place_of(name)
        # The rows of a dataset speak of many paths that are nobody's.
        is_data = repository.kind == "dataset" and name.endswith(_DATA) and name != LINEAGE
        try:
            for piece in pieces(PurePosixPath(name).name, repository.staged / name):
                for leak in find_leaks(piece.text, paths=piece.is_text and not piece.inside and not is_data):
                    yield f"{place}{_inside(piece.inside)}:{piece.line + leak.line - 1}", leak.what
        except UnreadableError as error:
            yield f"{place}{_inside(error.inside)}", f"nobody can look for secrets in it, because it {error}"


def _inside(name: str) -> str:
    """How a place names the file within an archive."""
    return f"!{name}" if name else ""


def _check_certificate(repository: Repository) -> None:
    """A certificate is published with the files that it is of, or not at all."""
    if not repository.has(CERTIFICATE):
        return
    for name, sha256 in json.loads(repository.read(CERTIFICATE))["files"].items():
        if repository.has(name) and repository.sha256_of(name) != sha256:
            raise UserError(
                f"{repository.folder}/{CERTIFICATE}: is not of {name} as it is now; "
                f"run `hfchat certify {repository.folder}`"
            )


def _cleaned(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_cleaned(key): _cleaned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    return clean_paths(value) if isinstance(value, str) else value
