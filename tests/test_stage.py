import json
import os
import shutil
from dataclasses import dataclass, field

import pytest

from hfchat import stage as stage_module
from hfchat.config import parse
from hfchat.errors import UserError
from hfchat.lineage import LINEAGE, ancestry, describe, read_lineage
from hfchat.stage import Stage
from hfchat.storage import move_folder


@dataclass
class Arguments:
    steps: int = 1
    logging_steps: int = field(default=1, metadata={"identity": False})
    source: str = field(default="", metadata={"identity": False})


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "text.txt").write_text("some text")
    return folder


def open_stage(tmp_path, source, *argv, **kwargs):
    config = parse(Arguments, argv=[*argv, "--source", str(source)])
    return Stage.begin("test", tmp_path / "out", config=config, inputs={"source": source}, **kwargs)


def finish(stage, content="result"):
    (stage.work_dir / "result.txt").write_text(content)
    stage.finish(metrics={"loss": 1.0})


def test_a_model_that_is_certified_again_is_the_same(tmp_path, source):
    stage = open_stage(tmp_path, source)
    (stage.work_dir / "merged").mkdir()
    (stage.work_dir / "merged" / "certificate.json").write_text("{}")
    (stage.work_dir / "merged" / "config.json").write_text("{}")
    finish(stage)
    before = describe(tmp_path / "out" / "merged")
    (tmp_path / "out" / "merged" / "certificate.json").write_text('{"another": "day"}')
    assert open_stage(tmp_path, source).complete
    assert describe(tmp_path / "out" / "merged") == before
    (tmp_path / "out" / "merged" / "config.json").write_text('{"another": "model"}')
    assert describe(tmp_path / "out" / "merged") != before


def test_a_finished_stage_is_a_no_op_until_its_settings_change(tmp_path, source):
    finish(open_stage(tmp_path, source))
    again = open_stage(tmp_path, source)
    assert again.complete
    lineage = read_lineage(tmp_path / "out")
    assert lineage["metrics"] == {"loss": 1.0}
    assert lineage["inputs"]["source"]["licenses"] == ["unknown"]
    assert set(lineage["outputs"]) == {"result.txt"}
    with pytest.raises(UserError, match=r"was made with steps=its default, now 2; .*overwrite_output_dir"):
        open_stage(tmp_path, source, "--steps", "2")


def test_an_output_may_be_read_by_those_whom_the_umask_lets(tmp_path, source):
    stage = open_stage(tmp_path, source)
    weights = stage.work_dir / "merged" / "model.safetensors"
    weights.parent.mkdir()
    weights.touch(mode=0o600)  # as safetensors does
    umask = os.umask(0o027)
    try:
        finish(stage)
    finally:
        os.umask(umask)
    assert oct((tmp_path / "out" / "merged" / "model.safetensors").stat().st_mode & 0o777) == oct(0o640)


def test_settings_that_do_not_shape_the_result_do_not_count(tmp_path, source):
    finish(open_stage(tmp_path, source))
    assert open_stage(tmp_path, source, "--logging_steps", "50").complete


def test_a_setting_counts_though_its_text_is_an_inputs_path(tmp_path, source):
    @dataclass
    class Named:
        title: str = ""

    config = parse(Named, argv=["--title", str(source)])
    stage = Stage.begin("test", tmp_path / "out", config=config, inputs={"source": source})
    assert stage.identity["config"] == {"title": str(source)}


def test_another_release_of_hfchat_finds_what_was_finished(tmp_path, source, monkeypatch):
    finish(open_stage(tmp_path, source))
    monkeypatch.setattr("hfchat.lineage.__version__", "9.9")
    assert open_stage(tmp_path, source).complete
    config = parse(Arguments, argv=["--source", str(source)])
    with pytest.raises(UserError, match="was made by another version of hfchat"):
        Stage.begin("test", tmp_path / "out", config=config, inputs={"source": source}, version=2)


def test_an_input_counts_by_its_content_wherever_it_lies(tmp_path, source):
    finish(open_stage(tmp_path, source))
    moved = source.rename(tmp_path / "moved")
    assert open_stage(tmp_path, moved).complete
    (moved / "text.txt").write_text("other text")
    with pytest.raises(UserError, match="was made from another source"):
        open_stage(tmp_path, moved)


def test_what_is_replaced_stays_until_its_replacement_is_whole(tmp_path, source):
    finish(open_stage(tmp_path, source), "old")
    stage = open_stage(tmp_path, source, "--steps", "2", overwrite=True)
    assert not stage.complete
    assert (tmp_path / "out" / "result.txt").read_text() == "old"
    finish(stage, "new")
    assert (tmp_path / "out" / "result.txt").read_text() == "new"
    assert [path.name for path in tmp_path.glob("*.partial-*")] == []


def test_an_interrupted_run_finds_its_work_again_and_is_never_taken_as_whole(tmp_path, source):
    first = open_stage(tmp_path, source)
    (first.work_dir / "half.txt").write_text("half")
    del first
    second = open_stage(tmp_path, source)
    assert not second.complete
    assert second.resumed
    assert (second.work_dir / "half.txt").exists()
    assert not (tmp_path / "out").exists()


def test_a_run_stopped_just_before_the_rename_is_finished_by_the_next(tmp_path, source, monkeypatch):
    stage = open_stage(tmp_path, source)
    monkeypatch.setattr(Stage, "_move_into_place", lambda self: None)
    finish(stage)
    monkeypatch.undo()
    del stage
    assert not (tmp_path / "out").exists()
    assert open_stage(tmp_path, source).complete
    assert (tmp_path / "out" / "result.txt").exists()


class KilledError(BaseException):
    """Stands for `kill -9`: nothing that the program does about exceptions applies."""


def killed_after_move(monkeypatch, count):
    """Let the process end when it has moved so many folders."""
    moved = []

    def move(source, target):
        if len(moved) == count:
            raise KilledError
        moved.append(source)
        move_folder(source, target)

    monkeypatch.setattr(stage_module, "move_folder", move)


def test_a_replacement_killed_half_way_costs_nobody_an_output(tmp_path, source, monkeypatch):
    finish(open_stage(tmp_path, source), "first")
    second = open_stage(tmp_path, source, "--steps", "2", overwrite=True)
    with monkeypatch.context() as patch:
        killed_after_move(patch, 1)
        with pytest.raises(KilledError):
            finish(second, "second")
    del second
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"steps=its default, now 3; .*overwrite_output_dir"):
        open_stage(tmp_path, source, "--steps", "3")
    assert (tmp_path / "out" / "result.txt").read_text() == "first"
    with pytest.raises(UserError, match="overwrite_output_dir"):
        open_stage(tmp_path, source, "--steps", "2")
    assert (tmp_path / "out" / "result.txt").read_text() == "first"
    assert open_stage(tmp_path, source, "--steps", "2", overwrite=True).complete
    assert (tmp_path / "out" / "result.txt").read_text() == "second"
    assert not (tmp_path / ".out.replaced").exists()


def test_a_replacement_killed_at_its_end_is_the_output(tmp_path, source, monkeypatch):
    finish(open_stage(tmp_path, source), "first")
    second = open_stage(tmp_path, source, "--steps", "2", overwrite=True)
    with monkeypatch.context() as patch:
        patch.setattr(stage_module, "remove_tree", lambda folder: None)
        finish(second, "second")
    assert (tmp_path / ".out.replaced").exists()
    assert open_stage(tmp_path, source, "--steps", "2").complete
    assert not (tmp_path / ".out.replaced").exists()


def test_what_appeared_while_a_stage_ran_is_not_replaced_unasked(tmp_path, source):
    stage = open_stage(tmp_path, source)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("the user's")
    with pytest.raises(UserError, match="was not made by hfchat"):
        finish(stage)
    assert (tmp_path / "out" / "mine.txt").exists()
    shutil.rmtree(tmp_path / "out")
    assert open_stage(tmp_path, source).complete


def test_an_output_with_a_file_cut_is_not_whole(tmp_path, source):
    finish(open_stage(tmp_path, source))
    (tmp_path / "out" / "result.txt").write_text("res")
    with pytest.raises(UserError, match="its files are incomplete"):
        open_stage(tmp_path, source)
    with pytest.raises(UserError, match="missing or cut"):
        describe(tmp_path / "out")


def test_a_folder_of_the_user_is_not_overwritten(tmp_path, source):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="was not made by hfchat"):
        open_stage(tmp_path, source)


def test_two_runs_do_not_write_to_one_place(tmp_path, source):
    stage = open_stage(tmp_path, source)
    with pytest.raises(UserError, match="another run is writing there"):
        open_stage(tmp_path, source)
    assert stage.work_dir.exists()


def test_the_lock_of_a_remote_output_lies_where_nobody_else_writes(tmp_path, source, monkeypatch):
    monkeypatch.setattr(stage_module, "HF_HOME", str(tmp_path / "home"))
    config = parse(Arguments, argv=[])
    stage = Stage.begin("test", "memory://bucket/out", config=config, inputs={"source": source})
    assert len(list((tmp_path / "home").rglob("*.lock"))) == 1
    with pytest.raises(UserError, match="another run is writing there"):
        Stage.begin("test", "memory://bucket/out", config=config, inputs={"source": source})
    stage.work_dir.fs.rm("/bucket", recursive=True)


def test_only_the_main_process_finishes(tmp_path, source, monkeypatch):
    stage = open_stage(tmp_path, source)
    monkeypatch.setenv("RANK", "1")
    finish(stage)
    assert not (tmp_path / "out").exists()


def test_licences_travel_from_the_card_of_an_input(tmp_path, source):
    (source / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Card")
    finish(open_stage(tmp_path, source))
    assert read_lineage(tmp_path / "out")["licenses"] == ["cc-by-4.0"]
    (tmp_path / "out" / "merged").mkdir()
    assert describe(tmp_path / "out")["licenses"] == ["cc-by-4.0"]


def test_a_missing_input_is_named(tmp_path):
    with pytest.raises(UserError, match="outputs/nowhere/corpus: no such file or folder"):
        describe("outputs/nowhere/corpus")
    assert describe("openai-community/gpt2")["sha256"] == "hub:openai-community/gpt2"


def test_a_broken_lineage_is_named(tmp_path, source):
    finish(open_stage(tmp_path, source))
    (tmp_path / "out" / LINEAGE).write_text(json.dumps({})[:1])
    with pytest.raises(UserError, match="not valid JSON"):
        open_stage(tmp_path, source)


def _made(folder, inputs, files=("out.txt",)):
    stage = Stage.begin("stage", folder, config=[], inputs=inputs)
    for name in files:
        (stage.work_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (stage.work_dir / name).write_text(f"{folder.name} {name}")
    stage.finish()
    return folder


def test_ancestry_goes_back_to_the_raw_data(tmp_path):
    (tmp_path / "raw.txt").write_text("raw")
    corpus = _made(tmp_path / "corpus", {"source": tmp_path / "raw.txt"})
    base = _made(tmp_path / "base", {"corpus": corpus})
    tuned = _made(tmp_path / "tuned", {"base": base, "corpus": corpus}, files=("adapter/a.bin", "merged/m.bin"))
    found = ancestry(tuned / "merged")
    assert [stage["path"] for stage in found] == [str(tuned), str(base), str(corpus)]
    assert found[-1]["inputs"]["source"]["path"] == str(tmp_path / "raw.txt")
    aligned = _made(tmp_path / "aligned", {"model": tuned / "merged"})
    assert [stage["path"] for stage in ancestry(aligned)][:2] == [str(aligned), str(tuned)]


def test_what_was_made_again_since_is_no_ancestor(tmp_path):
    (tmp_path / "raw.txt").write_text("raw")
    corpus = _made(tmp_path / "corpus", {"source": tmp_path / "raw.txt"})
    base = _made(tmp_path / "base", {"corpus": corpus}, files=("merged/m.bin",))
    after = _made(tmp_path / "after", {"model": base / "merged", "corpus": corpus})
    assert len(ancestry(after)) == 3
    shutil.rmtree(corpus)
    _made(tmp_path / "corpus", {"source": tmp_path / "raw.txt"}, files=("other.txt",))
    shutil.rmtree(base)
    _made(tmp_path / "base", {"corpus": corpus}, files=("merged/n.bin",))
    assert [stage["path"] for stage in ancestry(after)] == [str(after)]


def test_what_no_stage_made_has_no_ancestry(tmp_path):
    assert ancestry(tmp_path) == ancestry("HuggingFaceTB/SmolLM2-135M") == []
