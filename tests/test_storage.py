import json
from dataclasses import dataclass

import pytest

from hfchat.config import parse
from hfchat.lineage import LINEAGE, describe, read_lineage
from hfchat.stage import Stage
from hfchat.storage import as_path, is_remote, move_folder, remove_tree, write_whole


@dataclass
class Arguments:
    steps: int = 1


def open_stage(output, *argv, **kwargs):
    return Stage.begin("test", str(output), config=parse(Arguments, argv=argv), inputs={}, **kwargs)


@pytest.fixture(params=["disk", "memory"])
def root(request, tmp_path):
    """A folder on a disk, and one on a storage that is not a disk."""
    return tmp_path if request.param == "disk" else as_path(f"memory://{tmp_path.name}")


def test_a_url_is_remote_and_a_path_is_not(tmp_path):
    assert is_remote("s3://bucket/corpus")
    assert not is_remote(tmp_path)
    assert as_path("s3://bucket/corpus").with_name("other").name == "other"


def test_folders_move_and_go(root):
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/file").write_text("x")
    move_folder(root / "a", root / "c")
    assert (root / "c/b/file").read_text() == "x"
    assert not (root / "a/b/file").exists()
    remove_tree(root / "c")
    remove_tree(root / "c")  # what is not there is no error
    assert not (root / "c/b/file").exists()


def test_a_stage_is_the_same_on_every_storage(root):
    output = root / "out"
    stage = open_stage(output)
    (stage.work_dir / "data").mkdir(parents=True)
    (stage.work_dir / "data/file").write_text("content")
    stage.finish(metrics={"n": 1})
    assert json.loads((output / LINEAGE).read_text())["metrics"] == {"n": 1}
    assert not stage.work_dir.exists()
    assert describe(str(output))["sha256"] == read_lineage(str(output))["sha256"]
    assert open_stage(output).complete

    other = open_stage(output, "--steps", "2", overwrite=True)
    assert not other.complete
    (other.work_dir / "new").write_text("x")
    other.finish()
    assert (output / "new").read_text() == "x"
    assert not (output / "data/file").exists()


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path):
    file = tmp_path / "certificate.json"
    write_whole(file, "first")
    with pytest.raises(UnicodeEncodeError):
        write_whole(file, "second \ud800")  # fails when the file is open already, as a full disk does
    assert file.read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["certificate.json"]
    write_whole(file, "second")
    assert file.read_text() == "second"
