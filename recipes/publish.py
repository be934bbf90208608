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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hfchat.config import parse
from hfchat.errors import run
from hfchat.hub.artefacts import CARD, KINDS, ArtefactEntry, Repository, add_lineage, check_leaks, collect, link
from hfchat.hub.cards import add_card
from hfchat.hub.upload import Push, connect, look, push


@dataclass
class PublishArguments:
    """What goes where."""

    repo_id: str = field(default="", metadata={"help": "The model's, alice/assistant; the others' begin with it."})
    artefacts: list[ArtefactEntry] = field(
        default_factory=list,
        metadata={
            "help": "Mappings with kind (dataset, tokenizer, base, adapter, model, space), folder, and where wanted "
            "name (the end of its repository's), repo_id and evaluation (a folder of recipes/evaluate.py)."
        },
    )
    private: bool = field(default=True, metadata={"help": "New repositories can be seen by their owner only."})
    tag: str | None = field(
        default=None, metadata={"help": "Name for what is published now, e.g. v1. It never moves."}
    )
    commit_message: str = field(default="Publish with hfchat", metadata={"help": "Of the commits."})
    dry_run: bool = field(default=False, metadata={"help": "Only say what would be published."})
    show_cards: bool = field(default=False, metadata={"help": "Also print the cards."})
    allowed_findings: list[str] = field(
        default_factory=list,
        metadata={"help": "Places, as the message names them, that only look like a secret or a local path."},
    )
    record: str | None = field(default=None, metadata={"help": "A file (JSON) that then says what was put where."})

    def __post_init__(self):
        self.artefacts = [ArtefactEntry(entry) for entry in self.artefacts]
        if not self.artefacts:
            raise ValueError("artefacts: needs at least one mapping with kind and folder")
        # What a card links to is there before the card is.
        self.artefacts.sort(key=lambda entry: KINDS.index(entry["kind"]))
        ids = [(entry.repo_type, entry.repository(self.repo_id)) for entry in self.artefacts]
        if twice := next((id for id in ids if ids.count(id) > 1), None):
            raise ValueError(f"artefacts: two of them would be {twice[1]}; give one a name or a repo_id")


def main(argv: Sequence[str] | None = None) -> None:
    (args,) = parse(PublishArguments, argv=argv)
    repositories = prepare(args)
    print(table(repositories))
    if args.show_cards:
        for repository in repositories:
            print(f"\n----- {repository.repo_id}/{CARD}\n{repository.read(CARD).decode('utf-8')}")
    if args.dry_run:
        print("a dry run: no request was made")
        return
    api = connect()
    remotes = [look(api, repository, args.private, args.tag) for repository in repositories]
    pushes = []
    for repository, remote in zip(repositories, remotes, strict=True):
        done = push(api, repository, remote, private=args.private, tag=args.tag, message=args.commit_message)
        pushes.append(done)
        print(sentence(done))
        if not args.private and remote.exists and remote.private:
            print(f"{done.repo_id}: was private before, and stays so; make it public in its settings")
        write_record(args.record, pushes)


def prepare(args: PublishArguments) -> list[Repository]:
    """All repositories as they will be, in the order of publication; checked, and nothing sent."""
    repositories = [collect(entry, entry.repository(args.repo_id)) for entry in args.artefacts]
    link(repositories)
    published = {one.sha256: one.repo_id for one in repositories if one.sha256}
    model = next((one.repo_id for one in repositories if one.kind == "model"), None)
    for entry, repository in zip(args.artefacts, repositories, strict=True):
        add_card(repository, published, evaluation=entry.get("evaluation"), served=model)
        add_lineage(repository, published)
    check_leaks(repositories, args.allowed_findings)
    return repositories


def table(repositories: Sequence[Repository]) -> str:
    """Every file with its size, by repository, and the sums."""
    lines = []
    for repository in repositories:
        sizes = repository.sizes
        lines += [f"{repository.repo_type} {repository.repo_id}: {len(sizes)} files, {sum(sizes.values()):,} bytes"]
        lines += [f"  {size:>15,}  {name}" for name, size in sorted(sizes.items())]
        if repository.left_out:
            left_out = sorted({f"{name.split('/')[0]}/" if "/" in name else name for name in repository.left_out})
            lines += [f"  not published: {', '.join(left_out)}"]
    files = sum(len(repository.files) for repository in repositories)
    size = sum(sum(repository.sizes.values()) for repository in repositories)
    return "\n".join([*lines, f"in all: {len(repositories)} repositories, {files} files, {size:,} bytes"])


def sentence(done: Push) -> str:
    """What became of a repository."""
    what = f"{done.sent} files sent" if done.sent else "nothing sent" if done.removed else "nothing had changed"
    removed = f", {done.removed} of before removed" if done.removed else ""
    return f"{done.url}: {what}{removed}; commit {done.commit[:12]}{f', tag {done.tag}' if done.tag else ''}"


def write_record(file: str | None, pushes: Sequence[Push]) -> None:
    """What was put where, so far."""
    if file is not None:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(json.dumps([asdict(done) for done in pushes], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
