import nltk
import pytest
from nltk.corpus.reader import CorpusReader, WordNetCorpusReader
from nltk.corpus.util import LazyCorpusLoader

from hfchat.cli import main
from hfchat.evaluation.metrics import METEOR
from hfchat.evaluation.resources import find_wordnet, nltk_data

NOUN = "00001740 03 n 02 car 0 auto 0 000 | a machine\n"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HFCHAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(nltk.data, "path", [])


@pytest.fixture
def wordnet_folder(tmp_path):
    """A WordNet of one synset, in the files that Debian's package has: no `lexnames`."""
    folder = tmp_path / "wordnet"
    folder.mkdir()
    files = {f"{kind}.{part}": "" for kind in ("index", "data") for part in ("adj", "adv", "noun", "verb")}
    files |= {f"{part}.exc": "" for part in ("adj", "adv", "noun", "verb")} | {"cntlist.rev": "", "index.sense": ""}
    files["index.noun"] = "auto n 1 0 1 0 00001740\ncar n 1 0 1 0 00001740\n"
    files["data.adj"] = "  1 WordNet 3.0 Copyright 2006 by Princeton University.\n"
    files["data.noun"] = " " * (1740 - 1) + "\n" + NOUN  # a synset stands where its number says
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def fresh_reader(monkeypatch):
    """NLTK keeps the WordNet that it has loaded."""
    reader = LazyCorpusLoader("wordnet", WordNetCorpusReader, LazyCorpusLoader("omw-2.0", CorpusReader, r".*"))
    monkeypatch.setattr(nltk.corpus, "wordnet", reader)


@pytest.mark.usefixtures("fresh_reader")
def test_wordnet_is_taken_from_a_folder(wordnet_folder, capsys):
    texts = {"predictions": ["a red car"], "references": ["a red auto"]}
    before = METEOR().compute(**texts)
    main(["resources", "--wordnet", str(wordnet_folder)])
    assert capsys.readouterr().out.startswith(f"WordNet: {nltk_data() / 'corpora' / 'wordnet'} (0 MB)")
    after = METEOR().compute(**texts)
    assert "modules:exact+stem|" in before["signature"]
    assert "modules:exact+stem+synonym(wordnet:3.0)|" in after["signature"]
    assert after["score"] == pytest.approx(1 - 0.5 / 3**3)  # all three words match
    assert before["score"] < after["score"]


def test_a_missing_file_is_named(wordnet_folder, capsys):
    (wordnet_folder / "index.sense").unlink()
    with pytest.raises(SystemExit) as exit:
        main(["resources", "--wordnet", str(wordnet_folder)])
    assert exit.value.code == 2
    assert capsys.readouterr().err == (
        f"error: --wordnet {wordnet_folder}: has no index.sense "
        "(Debian: packages wordnet-base and wordnet-sense-index)\n"
    )
    assert find_wordnet() is None


def test_what_is_missing_is_said(capsys):
    main(["resources", "--list"])
    out = capsys.readouterr().out
    assert out.startswith("WordNet: missing; METEOR matches no synonyms, and its signature says so")
    assert "WordNet 3.0 licence" in out


def test_wordnet_is_downloaded_where_it_is_missing(monkeypatch, capsys):
    asked = []

    def download(package, download_dir, **options):
        asked.append(package)
        place = nltk_data() / "corpora"
        assert download_dir == str(nltk_data())
        place.mkdir(parents=True)
        (place / "wordnet.zip").write_bytes(b"x")

    monkeypatch.setattr(nltk, "download", download)
    main(["resources"])
    main(["resources"])
    assert asked == ["wordnet"]
    assert "wordnet.zip (0 MB)" in capsys.readouterr().out


def test_no_network_is_one_line(monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise ValueError("Error loading wordnet:\n<urlopen error>")

    monkeypatch.setattr(nltk, "download", refuse)
    with pytest.raises(SystemExit) as exit:
        main(["resources"])
    assert exit.value.code == 2
    assert capsys.readouterr().err == (
        "error: WordNet cannot be downloaded: Error loading wordnet: <urlopen error>; install it otherwise "
        "(Debian: wordnet-base, wordnet-sense-index) and pass --wordnet FOLDER\n"
    )
