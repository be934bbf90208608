"""Repositories -> the Hub: all questions are asked before anything is sent, each repository gets one commit.

A repository is as it was until its commit, which brings all of its files at once. What a broken upload has sent is not
sent again: the Hub knows large files by their content, and those of finished repositories are compared with it first.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING

from hfchat.errors import UserError
from hfchat.hub.artefacts import Repository

if TYPE_CHECKING:
    from huggingface_hub import HfApi, RepoFile

_GO_ON = "run the same command again: it goes on where it was"


@dataclass
class Remote:
    """A repository as the Hub has it.

    Attributes:
        exists: Whether it is there.
        private: Whether others cannot see it.
        head: Commit of the branch `main`; None if there is no repository.
        files: Name to `"sha256:..."` of a large file, or `"git:..."`.
        tag: Commit of the tag that is asked for; None if there is none.
        tagged_files: As `files`, at the tag.
    """

    exists: bool = False
    private: bool = True
    head: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    tag: str | None = None
    tagged_files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Push:
    """What was done with a repository.

    Attributes:
        repo_id: Of it.
        repo_type: `model`, `dataset` or `space`.
        url: Of its page.
        commit: That has the files now.
        sent: How many files the commit changed or added, 0 if there was nothing to do.
        removed: Stale ones that it deleted.
        tag: That names the commit, if one was asked for.
    """

    repo_id: str
    repo_type: str
    url: str
    commit: str
    sent: int
    removed: int
    tag: str | None


def connect() -> "HfApi":
    """The Hub, as whom the environment or `hf auth login` says.

    Raises:
        UserError: If there is no token, it is not valid, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi, constants, get_token

    if constants.is_offline_mode():
        raise UserError("HF_HUB_OFFLINE is set, so nothing can be published; unset it, or pass --dry_run true")
    if get_token() is None:
        raise UserError("there is no token of the Hub: run `hf auth login`, or set HF_TOKEN to one that may write")
    api = HfApi(library_name="hfchat")
    with _hub_errors("the Hub"):
        api.whoami()
    return api


def look(api: "HfApi", repository: Repository, private: bool, tag: str | None) -> Remote:
    """What the Hub has under the name of a repository.

    Raises:
        UserError: If it is public and should be private, or the tag is there with other files.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    of = {"repo_id": repository.repo_id, "repo_type": repository.repo_type}
    with _hub_errors(repository.repo_id):
        try:
            info = api.repo_info(**of)
        except RepositoryNotFoundError:
            return Remote()
        refs = api.list_repo_refs(**of).tags if tag else []
        remote = Remote(True, bool(info.private), info.sha, _digests(api, of, None))
        remote.tag = next((one.target_commit for one in refs if one.name == tag), None)
        if remote.tag:
            remote.tagged_files = _digests(api, of, tag)
    if private and not remote.private:
        raise UserError(
            f"{repository.repo_id}: is public on the Hub; pass --private false to publish there all the same, or make "
            "it private in its settings"
        )
    if remote.tag and _changed(repository, remote.tagged_files):
        raise UserError(f"{repository.repo_id}: has the tag {tag} already, with other files; choose another --tag")
    return remote


def push(
    api: "HfApi", repository: Repository, remote: Remote, *, private: bool, tag: str | None, message: str
) -> Push:
    """Create a repository if it is not there, commit what is not in it as it is here, and tag the commit.

    Files that this kind of artefact consists of and that are not here any more are deleted, as a model must not be
    loaded from the weights of its predecessor. Whatever else is in the repository stays.

    Args:
        api: From `connect`.
        repository: What it shall be.
        remote: From `look`.
        private: Of a new repository.
        tag: Name for the commit.
        message: Of the commit.

    Raises:
        UserError: If the Hub refuses, or the connection breaks.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    of = {"repo_id": repository.repo_id, "repo_type": repository.repo_type}
    with _hub_errors(repository.repo_id):
        head = remote.head
        if not remote.exists:
            sdk = {"space_sdk": "docker"} if repository.kind == "space" else {}
            api.create_repo(**of, private=private, exist_ok=True, **sdk)
        changed = [] if remote.tag else _changed(repository, remote.files)
        stale = [] if remote.tag else _stale(repository, remote.files)
        if changed or stale:
            additions = [CommitOperationAdd(name, repository.files[name]) for name in changed]
            deletions = [CommitOperationDelete(name, is_folder=False) for name in stale]
            commit = api.create_commit(
                **of, operations=deletions + additions, commit_message=message, parent_commit=head
            )
            head = commit.oid
        if tag and not remote.tag:
            api.create_tag(**of, tag=tag, revision=head)
        prefix = "" if repository.repo_type == "model" else f"{repository.repo_type}s/"
        url = f"{api.endpoint}/{prefix}{repository.repo_id}"
        return Push(**of, url=url, commit=remote.tag or head, sent=len(changed), removed=len(stale), tag=tag)


def _changed(repository: Repository, remote: dict[str, str]) -> list[str]:
    """Names of the files that are not there as they are here."""
    return [name for name in repository.files if not _is_same(repository, name, remote.get(name))]


def _stale(repository: Repository, remote: dict[str, str]) -> list[str]:
    """Names of files of an earlier publication."""
    return [name for name in remote if name not in repository.files and repository.is_deposit(name)]


def _digests(api: "HfApi", of: dict[str, str], revision: str | None) -> dict[str, str]:
    from huggingface_hub import RepoFile

    entries = api.list_repo_tree(**of, recursive=True, revision=revision)
    return {entry.path: _digest(entry) for entry in entries if isinstance(entry, RepoFile)}


def _digest(file: "RepoFile") -> str:
    return f"sha256:{file.lfs.sha256}" if file.lfs else f"git:{file.blob_id}"


def _is_same(repository: Repository, name: str, remote: str | None) -> bool:
    """Whether a file has the digest that the Hub gives, a SHA-256 or, of a small one, that of Git."""
    if remote is None:
        return False
    kind, _, digest = remote.partition(":")
    if kind == "sha256":
        return repository.sha256_of(name) == digest
    file = repository.files[name]
    blob = hashlib.sha1(f"blob {repository.size_of(name)}\0".encode(), usedforsecurity=False)
    with BytesIO(file) if isinstance(file, bytes) else file.open("rb") as content:
        return hashlib.file_digest(content, lambda: blob).hexdigest() == digest


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """What the Hub or the connection says, as one line that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = " ".join((error.server_message or str(error)).split())[:300]
        if status == 401:
            advice = "log in again with `hf auth login`, or set HF_TOKEN"
        elif status == 403:
            advice = "the token may not write there: choose another repo_id, or a token that may"
        elif status in (409, 412):
            advice = f"it was changed meanwhile; {_GO_ON}"
        elif status >= 500 or status == 429:
            advice = _GO_ON
        else:
            advice = "change what it names"
        raise UserError(f"{what}: the Hub answers {status}: {said}; {advice}") from error
    except ValueError as error:  # of metadata that the Hub refuses, before anything is sent
        raise UserError(f"{what}: {' '.join(str(error).split())}") from error
    except (OSError, RuntimeError) as error:  # of the connection, of the threads that send, of hf_xet
        cause = error.__cause__ or error
        raise UserError(
            f"{what}: {error} ({type(cause).__name__}: {' '.join(str(cause).split())[:200]}); {_GO_ON}"
        ) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore"):
            raise
        raise UserError(f"{what}: the Hub cannot be reached ({type(error).__name__}: {error}); {_GO_ON}") from error
