"""`hfchat resources`: data that metrics use where it is there, and that the package does not carry: WordNet."""

import argparse
import io
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from hfchat.errors import UserError
from hfchat.models import cache_dir

if TYPE_CHECKING:
    from nltk.corpus.reader import WordNetCorpusReader

_LICENSE = "WordNet 3.0 licence (Princeton University; free use, keep the notice)"
_WITHOUT = "METEOR matches no synonyms, and its signature says so"
# The lexicographer files in their order, from lexnames(5WN) of WordNet 3.0; Debian's package leaves the file out.
_LEXNAMES = (
    "adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact", "noun.attribute",
    "noun.body", "noun.cognition", "noun.communication", "noun.event", "noun.feeling", "noun.food", "noun.group",
    "noun.location", "noun.motive", "noun.object", "noun.person", "noun.phenomenon", "noun.plant",
    "noun.possession", "noun.process", "noun.quantity", "noun.relation", "noun.shape", "noun.state",
    "noun.substance", "noun.time", "verb.body", "verb.change", "verb.cognition", "verb.communication",
    "verb.competition", "verb.consumption", "verb.contact", "verb.creation", "verb.emotion", "verb.motion",
    "verb.perception", "verb.possession", "verb.social", "verb.stative", "verb.weather", "adj.ppl",
)  # fmt: skip
_SYNTACTIC_CATEGORY = {"noun": 1, "verb": 2, "adj": 3, "adv": 4}


def nltk_data() -> Path:
    """The folder of hfchat's own that NLTK looks into."""
    return cache_dir() / "nltk_data"


def find_wordnet() -> "WordNetCorpusReader | None":
    """NLTK's reader of WordNet, if it is on this machine: in `nltk_data()`, or wherever NLTK looks."""
    if _wordnet_place() is None:
        return None
    from nltk.corpus import wordnet

    return wordnet


def fetch_wordnet() -> None:
    """Download WordNet by NLTK's downloader into `nltk_data()`.

    Raises:
        UserError: If it cannot be reached.
    """
    import nltk

    try:
        # It prints errors beside raising them.
        silence = io.StringIO()
        nltk.download(
            "wordnet", download_dir=str(nltk_data()), quiet=True, raise_on_error=True, print_error_to=silence
        )
    except (ValueError, OSError) as error:
        raise UserError(
            f"WordNet cannot be downloaded: {' '.join(str(error).split())}; "
            "install it otherwise (Debian: wordnet-base, wordnet-sense-index) and pass --wordnet FOLDER"
        ) from error


def copy_wordnet(folder: Path) -> None:
    """Take WordNet from a folder with its database files (`dict` of Princeton's archive, Debian's /usr/share/wordnet).

    Raises:
        UserError: If a file that NLTK's reader needs is not there.
    """
    from nltk.corpus.reader import WordNetCorpusReader

    needed = [name for name in WordNetCorpusReader._FILES if name != "lexnames"]
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"--wordnet {folder}: has no {', '.join(missing)} (Debian: packages wordnet-base and wordnet-sense-index)"
        )
    target = nltk_data() / "corpora" / "wordnet"
    scratch = target.with_name("wordnet.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    for name in needed:
        shutil.copyfile(folder / name, scratch / name)
    lines = (
        f"{number:02d}\t{name}\t{_SYNTACTIC_CATEGORY[name.partition('.')[0]]}\n"
        for number, name in enumerate(_LEXNAMES)
    )
    (scratch / "lexnames").write_text("".join(lines), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    scratch.rename(target)


def describe_wordnet() -> str:
    """Where it is and how large, or what is done without it; and its licence."""
    place = _wordnet_place()
    if place is None:
        return f"WordNet: missing; {_WITHOUT}\n  {_LICENSE}; 36 MB unpacked"
    files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
    return f"WordNet: {place} ({sum(file.stat().st_size for file in files) / 1e6:.0f} MB)\n  {_LICENSE}"


def _wordnet_place() -> Path | None:
    import nltk

    if str(nltk_data()) not in nltk.data.path:
        nltk.data.path.append(str(nltk_data()))
    for folder in map(Path, nltk.data.path):
        for name in ("wordnet", "wordnet.zip"):
            if (place := folder / "corpora" / name).exists():
                return place
    return None


def handler(args: argparse.Namespace) -> None:
    """Fetch what is missing, and say what is there."""
    if args.wordnet:
        copy_wordnet(Path(args.wordnet))
    elif _wordnet_place() is None and not args.list:
        fetch_wordnet()
    print(describe_wordnet())
