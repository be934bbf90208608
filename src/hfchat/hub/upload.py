"""Repositories -> the Hub: all questions are asked before anything is sent, each repository gets one commit.

A repository is as it was until its commit, which brings all of its files at once. What a broken upload has sent is not
sent again: the Hub knows large files by their content, and those of finished repositories are compared with it first.
"""

import glob
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hfchat.errors import UserError
from hfchat.hub.artefacts import Repository

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_GO_ON = "run the same command again: it goes on where it was"


@dataclass(frozen=True)
class Remote:
    """A repository as the Hub has it.

    Attributes:
        exists: Whether it is there.
        private: Whether others cannot see it.
        head: Commit of the branch `main`; None if there is no repository.
        tag: Commit of the tag that is asked for; None if the repository does not have the tag.
        files: The name of each file, in `main` or at the tag, to `"sha256:..."` for a large file, else `"git:..."`.
    """

    exists: bool = False
    private: bool = True
    head: str | None = None
    tag: str | None = None
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Push:
    """What was done with a repository.

    Attributes:
        repo_id: Its id.
        repo_type: `model`, `dataset` or `space`.
        url: Its page.
        commit: The commit that has the files now.
        sent: How many files the commit changed or added, 0 if there was nothing to do.
        removed: How many stale files it deleted.
        tag: Name of the commit, if one was asked for.
    """

    repo_id: str
    repo_type: str
    url: str
    commit: str
    sent: int
    removed: int
    tag: str | None


def connect() -> "HfApi":
    """The Hub, with the token of the environment or of `hf auth login`.

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

    repo_id, repo_type = repository.repo_id, repository.repo_type
    with _hub_errors(repo_id):
        try:
            info = api.repo_info(repo_id, repo_type=repo_type)
        except RepositoryNotFoundError:
            return Remote()
        refs = api.list_repo_refs(repo_id, repo_type=repo_type).tags if tag else []
        tagged = next((ref.target_commit for ref in refs if ref.name == tag), None)
        files = _digests(api, repository, tag if tagged else None)
        remote = Remote(exists=True, private=bool(info.private), head=info.sha, tag=tagged, files=files)
    if private and not remote.private:
        raise UserError(
            f"{repo_id}: is public on the Hub; pass --private false to publish there all the same, or make it private "
            "in its settings"
        )
    if remote.tag and _changed(repository, remote.files):
        raise UserError(f"{repo_id}: has the tag {tag} already, with other files; choose another --tag")
    return remote


def push(
    api: "HfApi", repository: Repository, remote: Remote, *, private: bool, tag: str | None, message: str
) -> Push:
    """Create a repository if it is not there, commit what is not in it as it is here, and tag the commit.

    Files that this kind of artefact consists of and that are not here any more are deleted, because a model must not
    be loaded from the weights of its predecessor. Whatever else is in the repository stays.

    Args:
        api: From `connect`.
        repository: What it shall be.
        remote: From `look`.
        private: Whether a new repository is private.
        tag: Name for the commit.
        message: Message of the commit.

    Raises:
        UserError: If the Hub refuses, or the connection breaks.
    """
    repo_id, repo_type = repository.repo_id, repository.repo_type
    url = f"{api.endpoint}/{'' if repo_type == 'model' else f'{repo_type}s/'}{repo_id}"
    if remote.tag:  # `look` has seen that its files are these
        return Push(repo_id, repo_type, url, remote.tag, sent=0, removed=0, tag=tag)
    with _hub_errors(repo_id):
        if not remote.exists:
            sdk = "docker" if repository.kind == "space" else None
            api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=sdk)

        # One commit for additions and deletions: nobody downloads a mixture of two models.
        changed = _changed(repository, remote.files)
        stale = [name for name in remote.files if not repository.has(name) and repository.is_deposit(name)]
        head = remote.head or ""
        if changed or stale:
            commit = api.upload_folder(
                repo_id=repo_id,
                repo_type=repo_type,
                folder_path=repository.staged,
                commit_message=message,
                parent_commit=remote.head,
                delete_patterns=list(map(glob.escape, stale)) or None,
            )
            head = commit.oid
        if tag:
            api.create_tag(repo_id, repo_type=repo_type, tag=tag, revision=head)
    return Push(repo_id, repo_type, url, head, sent=len(changed), removed=len(stale), tag=tag)


def _digests(api: "HfApi", repository: Repository, revision: str | None) -> dict[str, str]:
    from huggingface_hub import RepoFile

    entries = api.list_repo_tree(repository.repo_id, repo_type=repository.repo_type, recursive=True, revision=revision)
    return {
        file.path: f"sha256:{file.lfs.sha256}" if file.lfs else f"git:{file.blob_id}"
        for file in entries
        if isinstance(file, RepoFile)
    }


def _changed(repository: Repository, remote: dict[str, str]) -> list[str]:
    """Names of the files that the Hub does not have as they are here."""
    return [name for name in repository.sizes if not _is_same(repository, name, remote.get(name))]


def _is_same(repository: Repository, name: str, remote: str | None) -> bool:
    """Whether a file has the digest that the Hub gives: a SHA-256 or, of a small file, that of Git."""
    if remote is None:
        return False
    kind, _, digest = remote.partition(":")
    if kind == "sha256":
        return repository.sha256_of(name) == digest
    path = repository.staged / name
    blob = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as content:
        return hashlib.file_digest(content, lambda: blob).hexdigest() == digest


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """Turn what the Hub or the connection says into one line that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        # What to do depends on whether the token, somebody else or the Hub is the cause.
        status = error.response.status_code
        reason = " ".join((error.server_message or str(error)).split())[:300]
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
        raise UserError(f"{what}: the Hub answers {status}: {reason}; {advice}") from error
    except ValueError as error:  # metadata that the Hub refuses, before anything is sent
        raise UserError(f"{what}: {' '.join(str(error).split())}") from error
    except (OSError, RuntimeError) as error:  # from the connection, the threads that send, or hf_xet
        cause = error.__cause__ or error
        raise UserError(
            f"{what}: {error} ({type(cause).__name__}: {' '.join(str(cause).split())[:200]}); {_GO_ON}"
        ) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore"):
            raise
        raise UserError(f"{what}: the Hub cannot be reached ({type(error).__name__}: {error}); {_GO_ON}") from error
