"""Dataset, tokenizer, base model, adapter, merged model -> repositories on the Hub, with cards and results.

What would be published, without a request to the Hub:

    python recipes/publish.py --config recipes/configs/publish/demo.yaml --repo_id alice/assistant --dry_run true

Then, with `hf auth login` or HF_TOKEN (a token that may write):

    python recipes/publish.py --config recipes/configs/publish/demo.yaml --repo_id alice/assistant --tag v1

`alice/assistant` is the merged model; the others are `alice/assistant-dataset`, `-tokenizer`, `-base` and `-adapter`,
unless their entries have a `name` or a `repo_id`. One model on its own:

    python recipes/publish.py --repo_id alice/assistant \
        --artefacts '{"kind": "model", "folder": "outputs/mine/assistant/merged"}'

Repositories are private unless `--private false` says otherwise. Weights are safetensors; optimizer states,
checkpoints and removed documents stay here. Cards are made of the lineage, and name as results only those of an
evaluation of these very files. A secret in any file, or a path of this machine in a card or config, stops it before
anything is sent; so does a file at which nobody can look. A run that was broken off is run again: it sends what is
missing, and nothing where nothing is.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hfchat.config import parse
from hfchat.errors import run
from hfchat.hub.artefacts import CARD, KINDS, Artefact, Repository, add_lineage, check_leaks, collect, link
from hfchat.hub.cards import add_card
from hfchat.hub.upload import Push, connect, look, push


@dataclass
class PublishArguments:
    """What goes where."""

    repo_id: str = field(
        default="",
        metadata={"help": "The model's repository, e.g. alice/assistant. The names of the others begin with it."},
    )
    artefacts: list[Artefact] = field(
        default_factory=list,
        metadata={
            "help": "Mappings with kind (dataset, tokenizer, base, adapter, model, space), folder, and where wanted "
            "name (the end of its repository's name), repo_id and evaluation (a folder of recipes/evaluate.py)."
        },
    )
    private: bool = field(default=True, metadata={"help": "New repositories can be seen by their owner only."})
    tag: str | None = field(
        default=None, metadata={"help": "Name for what is published now, e.g. v1. It never moves."}
    )
    commit_message: str = field(default="Publish with hfchat", metadata={"help": "Message of the commits."})
    dry_run: bool = field(default=False, metadata={"help": "Only say what would be published."})
    show_cards: bool = field(default=False, metadata={"help": "Also print the cards."})
    allowed_findings: list[str] = field(
        default_factory=list,
        metadata={"help": "Places, as the message names them, that only look like a secret or a local path."},
    )
    record: str | None = field(default=None, metadata={"help": "A file (JSON) that then says what was put where."})

    def __post_init__(self) -> None:
        if not self.artefacts:
            raise ValueError("artefacts: needs at least one mapping with kind and folder")
        # What a card links to is there before the card is.
        self.artefacts.sort(key=lambda entry: KINDS.index(entry.kind))
        ids = [(entry.repo_type, entry.repository(self.repo_id)) for entry in self.artefacts]
        if twice := next((id for id in ids if ids.count(id) > 1), None):
            raise ValueError(f"artefacts: two of them would be {twice[1]}; give one a name or a repo_id")


def main(argv: Sequence[str] | None = None) -> None:
    (args,) = parse(PublishArguments, argv=argv)
    with tempfile.TemporaryDirectory(prefix="hfchat-publish-") as scratch:
        repositories = prepare(args, Path(scratch))
        print(table(repositories))
        if args.show_cards:
            for repository in repositories:
                print(f"\n----- {repository.repo_id}/{CARD}\n{repository.read(CARD)}")
        if args.dry_run:
            print("a dry run: no request was made")
        else:
            publish(args, repositories)


def prepare(args: PublishArguments, scratch: Path) -> list[Repository]:
    """All repositories as they will be, in the order of publication; checked, and nothing sent."""
    repositories = [collect(artefact, artefact.repository(args.repo_id), scratch) for artefact in args.artefacts]
    link(repositories)
    published = {repository.sha256: repository.repo_id for repository in repositories if repository.sha256}
    model = next((repository.repo_id for repository in repositories if repository.kind == "model"), None)
    for repository in repositories:
        add_card(repository, published, served=model)
        add_lineage(repository, published)
    check_leaks(repositories, args.allowed_findings)
    return repositories


def publish(args: PublishArguments, repositories: Sequence[Repository]) -> None:
    """Ask the Hub about all repositories, and then send one after the other."""
    api = connect()
    remotes = [look(api, repository, args.private, args.tag) for repository in repositories]
    pushes = []
    for repository, remote in zip(repositories, remotes, strict=True):
        pushed = push(api, repository, remote, private=args.private, tag=args.tag, message=args.commit_message)
        pushes.append(pushed)
        print(sentence(pushed))
        if not args.private and remote.exists and remote.private:
            print(f"{pushed.repo_id}: was private before, and stays so; make it public in its settings")
        write_record(args.record, pushes)


def table(repositories: Sequence[Repository]) -> str:
    """Every file with its size, by repository, and the sums."""
    lines, files, size = [], 0, 0
    for repository in repositories:
        sizes = repository.sizes
        files, size = files + len(sizes), size + sum(sizes.values())
        lines += [f"{repository.repo_type} {repository.repo_id}: {len(sizes)} files, {sum(sizes.values()):,} bytes"]
        lines += [f"  {bytes:>15,}  {name}" for name, bytes in sizes.items()]
        if repository.left_out:
            left_out = sorted({f"{name.split('/')[0]}/" if "/" in name else name for name in repository.left_out})
            lines += [f"  not published: {', '.join(left_out)}"]
    return "\n".join([*lines, f"in all: {len(repositories)} repositories, {files} files, {size:,} bytes"])


def sentence(pushed: Push) -> str:
    """What became of a repository."""
    what = f"{pushed.sent} files sent" if pushed.sent else "nothing sent" if pushed.removed else "nothing had changed"
    removed = f", {pushed.removed} old files removed" if pushed.removed else ""
    return f"{pushed.url}: {what}{removed}; commit {pushed.commit[:12]}{f', tag {pushed.tag}' if pushed.tag else ''}"


def write_record(file: str | None, pushes: Sequence[Push]) -> None:
    """What was put where, so far."""
    if file is not None:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(json.dumps([asdict(pushed) for pushed in pushes], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
